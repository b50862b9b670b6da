"""Config node to object: an allow-listed ``_target_`` and arguments bound to its signature.

The constructor's signature is the schema. Arguments the program supplies itself (the backbone, the image shape, ...) are
``runtime`` arguments; every other parameter is an option, and its annotation says which values are valid. Options that
several classes share may stand in a `TypedDict`: ``**options: Unpack[SharedOptions]`` (PEP 692) has all of its keys.
An option of the type ``dict[str, Dataset]`` has config nodes as its values, which are checked and built like sections.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from typing_extensions import NotRequired, Required, Unpack

from fsl_cli.errors import FslError, close_match, first_line, raise_all
from fsl_cli.settings.conf_files import RESERVED
from fsl_cli.settings.schema import common
from fsl_cli.settings.targets import kind_of, target_of


def check(node: Mapping[str, Any], where: str, runtime: Collection[str], section: str | None = None) -> list[FslError]:
    """Everything wrong with the options of ``node``, without building it; arguments as in `build`."""
    try:
        cls = target_of(node, section or where, where)
    except FslError as error:
        return [error]
    schema = _schema(cls, runtime)
    try:
        schema(**_options(node, where))
    except ValidationError as error:
        return problems_of(error, schema, where, _options(node, where))
    inner = nodes_in(node, where, cls)
    return [problem for place, (each, kind) in inner.items() for problem in check(each, place, runtime, kind)]


def build(node: Mapping[str, Any], where: str, runtime: Mapping[str, Any], section: str | None = None) -> Any:
    """Build the object a config node describes.

    Args:
        node: ``_target_`` and options.
        where: name of the node, for messages.
        runtime: arguments the program supplies; those that the constructor does not take are left out.
        section: the section whose kind of class it must be; None: ``where``.

    Raises:
        Problems: options that are unknown, missing or invalid, all of them.
        FslError: the constructor refuses their values.
    """
    raise_all(check(node, where, runtime, section))
    cls = target_of(node, section or where, where)
    taken = arguments_of(cls)
    valid = _schema(cls, runtime)(**_options(node, where))  # of their types: the words "no" and "0.4" are a bool, a float
    options = {name: getattr(valid, name) for name in valid.model_fields_set}
    for place, (each, kind) in nodes_in(node, where, cls).items():
        name, _, label = place.removeprefix(f"{where}.").partition(".")
        options[name] = {**options[name], label: build(each, place, runtime, kind)}
    try:
        return cls(**{name: value for name, value in runtime.items() if name in taken}, **options)
    except ValueError as error:  # torch.optim checks its ranges itself
        raise FslError(first_line(error), where=where) from error


def nodes_in(node: Mapping[str, Any], where: str, cls: type) -> dict[str, tuple[Mapping[str, Any], str]]:
    """The config nodes among the options of a node by their dotted names, each with the section of its kind.

    Args:
        node: ``_target_`` and options.
        where: name of the node.
        cls: its class.
    """
    found: dict[str, tuple[Mapping[str, Any], str]] = {}
    for name, kind in kinds_of_nodes(cls).items():
        nodes = node.get(name)
        if isinstance(nodes, Mapping):
            found |= {f"{where}.{name}.{label}": (each, kind) for label, each in nodes.items() if isinstance(each, Mapping)}
    return found


def kinds_of_nodes(cls: type) -> dict[str, str]:
    """The options of a class that have config nodes as their values, each with the section of their kind."""
    kinds = {name: _kind_of_values(annotation) for name, (annotation, _) in arguments_of(cls).items()}
    return {name: kind for name, kind in kinds.items() if kind}


def _kind_of_values(annotation: Any) -> str | None:
    """``dataset`` for ``dict[str, Dataset]``; None for an annotation of something else."""
    key_and_value = typing.get_args(annotation) if typing.get_origin(annotation) is dict else ()
    return kind_of(key_and_value[1]) if key_and_value else None


def takes(node: Mapping[str, Any], where: str, argument: str) -> bool:
    """Whether the constructor of ``node`` has this argument."""
    return argument in arguments_of(target_of(node, where))


def arguments_of(cls: type) -> dict[str, tuple[Any, Any]]:
    """Annotation and default of each argument of a constructor; the default of a required argument is ``...``."""
    constructor = cls.__init__  # type: ignore[misc]
    try:
        hints = typing.get_type_hints(constructor, include_extras=True)
    except (NameError, TypeError):  # a third party's annotations that only exist for type checkers
        hints = {}
    found: dict[str, tuple[Any, Any]] = {}
    for name, parameter in inspect.signature(cls).parameters.items():
        hint = hints.get(name, Any)
        if parameter.kind is parameter.VAR_KEYWORD and typing.get_origin(hint) is Unpack:
            found |= _keys_of(typing.get_args(hint)[0])
        elif parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            found[name] = hint, ... if parameter.default is parameter.empty else parameter.default
    return found


def defaults_of(cls: type) -> dict[str, Any]:
    """Default of each argument of a constructor, or of those of its base classes, that has one."""
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        for name, parameter in inspect.signature(base.__init__).parameters.items():  # type: ignore[misc]
            if parameter.default is not parameter.empty:
                found.setdefault(name, parameter.default)
    return found


def _keys_of(options: Any) -> dict[str, tuple[Any, Any]]:
    """The keys of a `TypedDict` as `arguments_of`; what is left out is not passed on, so that None stands for any default."""
    found = {}
    for name, hint in typing.get_type_hints(options, include_extras=True).items():
        required = name in options.__required_keys__
        if typing.get_origin(hint) in (Required, NotRequired):
            required, hint = typing.get_origin(hint) is Required, typing.get_args(hint)[0]
        found[name] = hint, ... if required else None
    return found


def problems_of(error: ValidationError, schema: type[BaseModel], where: str, data: Mapping[str, Any]) -> list[FslError]:
    """Pydantic's findings as one `FslError` for each option."""
    found: dict[str, FslError] = {}
    for item in error.errors(include_url=False):
        path = _path(item["loc"], data)
        if item["type"] == "missing" and len(path) < len(item["loc"]):  # what is missing cannot be in ``data``
            path.append(str(item["loc"][-1]))
        place = ".".join(part for part in (where, *path) if part)
        if item["type"] == "extra_forbidden":
            problem = FslError("unknown option", where=place, hint=close_match(path[-1], _fields(schema, path[:-1])))
        elif item["type"] == "missing":
            problem = FslError("is missing", where=place)
        else:
            problem = FslError(f"{item['input']!r} is not valid", where=place, hint=_readable(item["msg"]))
        if place in found and problem.hint:  # another member of a union
            problem = FslError(problem.what, where=place, hint=f"{found[place].hint} or {problem.hint}")
        found[place] = problem
    return list(found.values())


def _readable(message: str) -> str:
    return message.removeprefix("Input ").removeprefix("Value error, ")


def _path(location: tuple[int | str, ...], data: Any) -> list[str]:
    """The part of pydantic's location that is a path in ``data``; it appends the names of union members."""
    path: list[str] = []
    for part in location:
        known = isinstance(data, Mapping) and part in data
        if path and not known:
            break
        path.append(str(part))
        data = data[part] if known else None
    return path


def _fields(schema: type[BaseModel], path: Sequence[str]) -> list[str]:
    for part in path:
        annotation = schema.model_fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        schema = annotation
    return list(schema.model_fields)


def _options(node: Mapping[str, Any], where: str) -> dict[str, Any]:
    others = RESERVED | common(where, node).keys()
    if where == "train.optimizer":  # null takes back what another optimizer, that of the method, has options for
        others |= {key for key, value in node.items() if value is None} - arguments_of(target_of(node, where)).keys()
    return {str(key): value for key, value in node.items() if key not in others}


def _schema(cls: type, runtime: Collection[str]) -> type[BaseModel]:
    fields: dict[str, Any] = {
        name: (dict[str, dict[str, Any]], default) if _kind_of_values(annotation) else (annotation, default)
        for name, (annotation, default) in arguments_of(cls).items()
        if name not in runtime
    }
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())
    return create_model(cls.__name__, __config__=config, **fields)
