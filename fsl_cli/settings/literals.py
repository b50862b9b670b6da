"""The words that an option may be, read from the source of its class: nothing is imported, because a shell waits for them."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from fsl_cli.settings.plugins import plugin_of

_SETTINGS = "fsl_cli.settings.schema.Settings"


def words_of(target: str, option: str) -> list[str]:
    """The words that an argument of a class may be; empty: it is not limited to some.

    Args:
        target: dotted name of the class.
        option: name of an argument of its constructor, or of a field.
    """
    plugin_of(target)  # makes it findable
    module, _, name = target.rpartition(".")
    found = list(dict.fromkeys(_of_class(module, name, option)))
    return found if found != ["null"] else []


def words_of_setting(key: str) -> list[str]:
    """The same for a setting by its dotted name, such as ``train.schedule``."""
    section, _, option = key.partition(".")
    module, _, name = _SETTINGS.rpartition(".")
    if not option:
        return words_of(_SETTINGS, section)
    sections = (each.id for _, each in _annotations(module, name, section) if isinstance(each, ast.Name))
    return [word for each in sections for word in words_of(f"{module}.{each}", option)]


def _of_class(module: str, name: str, option: str) -> Iterator[str]:
    for place, annotation in _annotations(module, name, option):
        yield from _words(place, annotation)


def _annotations(module: str, name: str, option: str) -> Iterator[tuple[str, ast.expr]]:
    """What a class says of an argument or a field, also in its base classes and in what its constructor unpacks; and where."""
    found = _defined(module, name)
    if found is None:
        return
    module, cls = found
    if not isinstance(cls, ast.ClassDef):
        return
    further = [base for base in cls.bases if isinstance(base, ast.Name)]
    for node in cls.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == option:
            yield module, node.annotation
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            arguments = node.args
            every = [*arguments.args, *arguments.kwonlyargs]
            yield from ((module, each.annotation) for each in every if each.arg == option and each.annotation)
            unpacked = arguments.kwarg and arguments.kwarg.annotation
            if isinstance(unpacked, ast.Subscript) and isinstance(unpacked.slice, ast.Name):
                further.append(unpacked.slice)
    for each in further:
        yield from _annotations(module, each.id, option)


def _words(module: str, annotation: ast.expr) -> Iterator[str]:
    """The words of an annotation: those of ``Literal[...]``, wherever it stands in it, and ``null`` for None."""
    if isinstance(annotation, ast.BinOp):
        yield from _words(module, annotation.left)
        yield from _words(module, annotation.right)
    elif isinstance(annotation, ast.Constant) and annotation.value is None:
        yield "null"
    elif isinstance(annotation, ast.Name) and annotation.id == "bool":
        yield from ("true", "false")
    elif isinstance(annotation, ast.Name):
        found = _defined(module, annotation.id)
        if found and isinstance(found[1], ast.Assign):
            yield from _words(found[0], found[1].value)
    elif isinstance(annotation, ast.Subscript) and isinstance(annotation.value, ast.Name):
        parts = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        if annotation.value.id == "Literal":
            values = [part.value for part in parts if isinstance(part, ast.Constant)]
            yield from (str(value).lower() if isinstance(value, bool) else str(value) for value in values)
        elif annotation.value.id == "Annotated":
            yield from _words(module, parts[0])


def _defined(module: str, name: str) -> tuple[str, ast.ClassDef | ast.Assign] | None:
    """The module and the statement that define a name which a module uses."""
    tree = _tree(module)
    for node in tree.body if tree else ():
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, node
        if isinstance(node, ast.Assign) and any(isinstance(each, ast.Name) and each.id == name for each in node.targets):
            return module, node
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for each in node.names:
                if (each.asname or each.name) == name:
                    return _defined(node.module, each.name)
    return None


def _tree(module: str) -> ast.Module | None:
    path = _file(module)
    try:
        return ast.parse(path.read_text(encoding="utf-8")) if path else None
    except (OSError, ValueError, SyntaxError):
        return None


def _file(module: str) -> Path | None:
    """The file of a module, whose packages are not imported for it."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin else None
    places = [Path(folder).joinpath(*rest) for folder in spec.submodule_search_locations or ()]
    files = [file for place in places for file in (place.with_suffix(".py"), place / "__init__.py")]
    return next((file for file in files if file.is_file()), None)
