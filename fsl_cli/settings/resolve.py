"""A composed configuration made plain, then checked: every problem of every section is reported together."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import platformdirs
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from fsl_cli.errors import FslError, first_line, raise_all
from fsl_cli.settings import build
from fsl_cli.settings.nested import with_nodes
from fsl_cli.settings.schema import COMMON, DataSettings, ModelSettings, Section, Settings, common
from fsl_cli.settings.targets import target_of

Checked = TypeVar("Checked", bound=DataSettings)

# What the program hands to a constructor itself; every other parameter is an option of the YAML file.
RUNTIME = {
    "dataset": {"data_dir", "cache_dir", "progress", "warn"},
    "backbone": {"image_shape", "example_shape", "vocabulary"},
    "algo": {"backbone", "features", "ways", "engine", "classes", "image_shape", "problem"},
    "train.optimizer": {"params"},
}

FOLDERS: dict[str, tuple[str, Callable[[str], str]]] = {  # the variable that sets each, and the platform's default
    "data_dir": ("FSL_DATA_DIR", platformdirs.user_data_dir),
    "cache_dir": ("FSL_CACHE_DIR", platformdirs.user_cache_dir),
}


def resolve(config: DictConfig, *, throw_on_missing: bool = True) -> dict[str, Any]:
    """The configuration as plain containers, with folders filled in.

    Args:
        config: composed, or a saved one with overrides on top.
        throw_on_missing: whether a setting without a default must have a value; otherwise it is left as ``???``.

    Raises:
        FslError: an interpolation does not resolve, or a setting without a default is missing.
        Problems: data sets inside the data set that do not exist or are incomplete.
    """
    try:
        missing = sorted(key for key in OmegaConf.missing_keys(config) if throw_on_missing and not key.startswith("hydra."))
        raise_all([FslError("is missing", where=key, hint=f"it has no default: add {key}=...") for key in missing])
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=throw_on_missing)
    except OmegaConfBaseException as error:
        raise FslError(first_line(error), where="configuration") from error
    assert isinstance(plain, dict)
    values = {str(key): value for key, value in plain.items()}
    if "dataset" in values:
        values["dataset"] = with_nodes(values["dataset"], "dataset")
    for name in FOLDERS:
        values[name] = str(folder(name, values.get(name)))
    return values


def folder(name: str, path: str | None) -> Path:
    """One of `FOLDERS`: ``path`` made absolute, ``~`` expanded; None or empty: the platform's.

    Raises:
        FslError: the platform's is asked for, and this user has no home folder; or there is a carriage return in the path.
    """
    variable, default = FOLDERS[name]
    if path and "\r" in str(path):
        hint = f"set by a script that was edited on Windows? check {variable}"
        raise FslError("has a carriage return in it", where=f"{name}={path!r}", hint=hint)
    try:
        return Path(os.path.expanduser(path or default("fsl"))).absolute()
    except (RuntimeError, KeyError) as error:  # HOME is not set, and the system does not know the user
        what = "is not set, and there is no home folder for a default"
        hint = f"set {' and '.join(each for each, _ in FOLDERS.values())}, or HOME"
        raise FslError(what, where=name, hint=hint) from error


def validate(config: dict[str, Any]) -> Settings:
    """Check the resolved configuration of a training run.

    Raises:
        Problems: everything that is wrong with it.
    """
    return _validated(config, Settings)


def validate_model(config: dict[str, Any]) -> ModelSettings:
    """Check what a test needs of the configuration of a trained run; the rest of it may be anything.

    Raises:
        Problems: everything that is wrong with it.
    """
    return _validated({key: value for key, value in config.items() if key in ModelSettings.model_fields}, ModelSettings)


def validate_data(config: dict[str, Any]) -> DataSettings:
    """Check what a data set and its episodes need of a configuration; the rest of it may be anything.

    Raises:
        Problems: everything that is wrong with it.
    """
    return _validated({key: value for key, value in config.items() if key in DataSettings.model_fields}, DataSettings)


def _validated(config: dict[str, Any], schema: type[Checked]) -> Checked:
    problems: list[FslError] = _unsolved(config)
    for where, runtime in RUNTIME.items():
        section, _, part = where.partition(".")
        if section not in schema.model_fields:
            continue
        node = config.get(section)
        if part:
            node = node.get(part) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            problems.append(FslError("is missing", where=where))
        else:
            found = build.check(node, where, runtime)
            if not found and where != "train.optimizer" and not isinstance(node.get("name"), str):
                found.append(FslError("is missing: the word that tables and folders call it by", where=f"{where}.name"))
            problems += found + _common_problems(where, node)
    if not problems:
        problems += _engine_problems(config)
    settings: Checked | None = None
    try:
        settings = schema(**config)
    except ValidationError as error:
        problems += build.problems_of(error, schema, "", config)
    raise_all(problems)
    assert settings is not None
    return settings


def _common_problems(section: str, node: dict[str, Any]) -> list[FslError]:
    """What is wrong with the settings of a section that are not options of its class."""
    given = common(section, node)
    try:
        COMMON.get(section, Section)(**given)
    except ValidationError as error:
        return build.problems_of(error, COMMON[section], section, given)
    return []


def _unsolved(config: dict[str, Any]) -> list[FslError]:
    """An algorithm that cannot solve what the data set asks for, classes of a data set that has none, or the reverse."""
    algorithm: Any
    dataset: Any
    try:
        algorithm, dataset = (target_of(config[name], name) for name in ("algo", "dataset"))
    except (FslError, KeyError, TypeError, AttributeError):
        return []  # reported by the checks of that section
    problem, task = dataset.problem_type, config.get("task")
    ways = task.get("ways") if isinstance(task, dict) else 2  # anything else is reported by the check of that section
    found = []
    if not issubclass(problem, algorithm.problems):
        what = (
            f"{config['algo'].get('name')} does not do {problem.name}, which dataset={config['dataset'].get('name')} asks for"
        )
        found.append(FslError(what, where="algo", hint="methods with an inner loop, like maml, do any problem"))
    if problem.has_ways and ways is None:
        found.append(FslError("is missing: the classes of an episode", where="task.ways", hint="for example task.ways=5"))
    if not problem.has_ways and ways is not None:
        what = f"{ways} is not valid: dataset={config['dataset'].get('name')} has no classes"
        found.append(FslError(what, where="task.ways", hint="leave it out, or task.ways=null"))
    return found


def _engine_problems(config: dict[str, Any]) -> list[FslError]:
    """An engine is an option of algorithms with an inner loop only."""
    engine = (config.get("hardware") or {}).get("engine")
    if engine in (None, "auto") or build.takes(config["algo"], "algo", "engine"):
        return []
    what = f"{engine} is not valid: {config['algo'].get('name')} has no inner loop to run"
    return [FslError(what, where="hardware.engine", hint="leave it at auto")]
