"""The saved configuration of a trained run, with overrides on top: it is never composed again."""

from __future__ import annotations

import os
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fsl_cli.errors import FslError, close_match, first_line, raise_all
from fsl_cli.settings import overrides, plain_yaml
from fsl_cli.settings.build import arguments_of, defaults_of, nodes_in
from fsl_cli.settings.compose import Composer, without_hydra
from fsl_cli.settings.conf_files import conf_dir
from fsl_cli.settings.resolve import FOLDERS, RUNTIME, resolve
from fsl_cli.settings.schema import (
    EvalSettings,
    HardwareSettings,
    InputSettings,
    Section,
    TaskSettings,
    TrainSettings,
    common,
)
from fsl_cli.settings.targets import target_of

# Overrides that change how a trained model is tested; everything else belongs to training.
SECTIONS = ("task", "eval", "hardware", "dataset", "algo", "backbone", "data_dir", "cache_dir")
BUILT = ("dataset", "backbone", "algo")  # sections that name a class
SWAPPABLE = ("dataset", "hardware")


def completed(saved: Mapping[str, Any]) -> dict[str, Any]:
    """A saved configuration with the options that its version did not have, at their defaults: it was run with these.

    Sections of a class that are missing or name one that may not be built stay as they are.
    """
    config = _with_defaults(saved)
    for section in BUILT:
        cls = _class_of(config, section)
        if cls:
            new = arguments_of(cls).keys() - RUNTIME[section] - config[section].keys()
            config[section] = {**config[section], **{key: value for key, value in defaults_of(cls).items() if key in new}}
    sections: dict[str, type[Section]] = {"task": TaskSettings, "train": TrainSettings}
    for section, schema in sections.items():
        if isinstance(config.get(section), Mapping):
            fields = schema.model_fields.items()
            later = {name: field.default for name, field in fields if not field.is_required()}
            plain = {name: value.model_dump() if isinstance(value, Section) else value for name, value in later.items()}
            config[section] = {**plain, **config[section]}
    return config


def without_unknown(saved: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A saved configuration without the settings of ``eval`` and ``hardware`` that this version does not know.

    They say how a run is tested and where, not what it is.

    Returns:
        The configuration, and the dotted names of what was left out.
    """
    found, unknown = dict(saved), []
    for section, schema in (("eval", EvalSettings), ("hardware", HardwareSettings)):
        node = saved.get(section)
        if isinstance(node, Mapping):
            unknown += [f"{section}.{key}" for key in node if key not in schema.model_fields]
            found[section] = {key: value for key, value in node.items() if key in schema.model_fields}
    return found, unknown


def _class_of(config: Mapping[str, Any], section: str) -> type | None:
    """The class that a section names; None where there is no such section or the class may not be built."""
    node = config.get(section)
    try:
        return target_of(node, section) if isinstance(node, Mapping) else None
    except FslError:  # reported when the configuration is checked
        return None


def _with_defaults(saved: Mapping[str, Any]) -> dict[str, Any]:
    """A saved configuration that has all settings of ``eval`` and ``hardware``, those that are missing as in ``conf/``."""
    found = {
        "eval": plain_yaml.read(conf_dir() / "train.yaml")["eval"],
        "hardware": plain_yaml.read(conf_dir() / "hardware" / "auto.yaml"),
    }
    given = {name: saved.get(name, {}) for name in found}
    return {**saved, **{name: {**found[name], **node} for name, node in given.items() if isinstance(node, Mapping)}}


def named_files(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options that name files or folders, such as ``dataset.root``, with their values."""
    return {name: value for section in BUILT for name, value in _files_of(config.get(section), section, section).items()}


def _files_of(node: Any, where: str, section: str) -> dict[str, Any]:
    cls = _class_of({section: node}, section)
    if cls is None:
        return {}
    own = {f"{where}.{name}": node[name] for name, (hint, _) in arguments_of(cls).items() if name in node and _is_path(hint)}
    inner = nodes_in(node, where, cls)
    return own | {name: path for place, (each, kind) in inner.items() for name, path in _files_of(each, place, kind).items()}


def _is_path(hint: Any) -> bool:
    return hint is Path or any(_is_path(each) for each in typing.get_args(hint))


def _opened(saved: Mapping[str, Any]) -> DictConfig:
    """A saved configuration to be changed, in which ``${...}`` is text and the two folders are the caller's."""
    plain = completed(saved) | {key: os.environ.get(variable) or None for key, (variable, _) in FOLDERS.items()}
    try:
        return OmegaConf.create(plain_yaml.escaped(plain))
    except OmegaConfBaseException as error:
        raise FslError(f"is not the configuration of a run: {first_line(error)}", where="config.yaml") from error


def _not_given(files: Mapping[str, Any], given: Collection[str]) -> list[FslError]:
    """Files and folders of a saved configuration that the caller has not named; those of another data set do not matter."""
    return [
        FslError(
            f"is missing: a test takes no folders from a saved run, where it was {value}", where=key, hint=f"add {key}=..."
        )
        for key, value in files.items()
        if value is not None and not {key, key.partition(".")[0]} & set(given)
    ]


def changed(saved: Mapping[str, Any], parsed: Sequence[Override]) -> dict[str, Any]:
    """A saved configuration with overrides on top.

    Its files and folders are not used: it may come from another machine, or from somebody who has put other images there.

    Raises:
        Problems: overrides of keys that do not exist or that only matter in training, files and folders that are not given.
    """
    config = _opened(saved)
    node = saved.get("dataset")
    kept = InputSettings().model_dump() | (common("dataset", node) if isinstance(node, Mapping) else {})
    keys = [key for key in overrides.all_keys(config) if key.split(".")[0] in SECTIONS]
    problems = _not_given(named_files(saved), {each.key_or_group for each in parsed})
    for each in sorted(parsed, key=lambda each: each.key_or_group not in SWAPPABLE):  # groups first, then their keys
        key, place = each.key_or_group, each.input_line or each.key_or_group
        if each.is_sweep_override():
            problems.append(FslError("one value at a time", where=place, hint="scripts/meta_test.sh tests many tasks"))
        elif key in SWAPPABLE:
            problems += overrides.group_problems([each])
            if not problems:
                composed = without_hydra(Composer("train").compose([place]))
                config[key] = plain_yaml.escaped(resolve(composed, throw_on_missing=False)[key])
                if key == "dataset":
                    config[key].update(plain_yaml.escaped(kept))  # as in the training, whatever the data set
                keys += [name for name in overrides.all_keys(config) if name.startswith(f"{key}.")]
        elif key in ("algo", "backbone", "experiment"):
            problems.append(FslError("a trained model cannot change it", where=place, hint="override its options"))
        elif key.startswith("dataset.") and key.removeprefix("dataset.") in kept:
            what = "belongs to training: the images of every test are normalised as those of the training"
            problems.append(FslError(what, where=place, hint="leave it out"))
        elif key.split(".")[0] not in SECTIONS and OmegaConf.select(config, key) is not None:
            problems.append(FslError("belongs to training", where=place, hint=f"fsl eval takes {', '.join(SECTIONS)}"))
        elif key not in keys or each.type is not OverrideType.CHANGE:
            problems.append(FslError("there is no such key", where=place, hint=close_match(key, ["run", *keys])))
        else:
            OmegaConf.update(config, key, each.value())
    raise_all(problems)
    return resolve(config)
