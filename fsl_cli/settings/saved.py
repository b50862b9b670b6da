"""The saved configuration of a trained run, with overrides on top: it is never composed again."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import OmegaConf

from fsl_cli.errors import FslError, close_match, raise_all
from fsl_cli.settings import overrides
from fsl_cli.settings.build import arguments_of, defaults_of
from fsl_cli.settings.compose import Composer, without_hydra
from fsl_cli.settings.resolve import resolve
from fsl_cli.settings.schema import TrainSettings
from fsl_cli.settings.targets import target_of

# Overrides that change how a trained model is tested; everything else belongs to training.
SECTIONS = ("task", "eval", "hardware", "dataset", "algo", "backbone", "data_dir", "cache_dir")
SWAPPABLE = ("dataset", "hardware")
FOLDERS = {"data_dir": "FSL_DATA_DIR", "cache_dir": "FSL_CACHE_DIR"}


def completed(saved: Mapping[str, Any]) -> dict[str, Any]:
    """A saved configuration with the options that its version did not have, at their defaults: it was run with these."""
    config = dict(saved)
    for section in ("dataset", "backbone", "algo"):
        cls = target_of(config[section], section)
        options = arguments_of(cls)
        new = {name: value for name, value in defaults_of(cls).items() if name in options and name not in config[section]}
        config[section] = {**config[section], **new}
    fields = TrainSettings.model_fields.items()
    config["train"] = {**{name: field.default for name, field in fields if not field.is_required()}, **config["train"]}
    return config


def changed(saved: dict[str, Any], parsed: Sequence[Override]) -> dict[str, Any]:
    """A saved configuration with overrides on top.

    Raises:
        Problems: overrides of keys that do not exist or that only matter in training.
    """
    config = OmegaConf.create(saved)
    for key, variable in FOLDERS.items():
        if os.environ.get(variable):
            config[key] = os.environ[variable]  # the run may have been trained on another machine
    keys = [key for key in overrides.all_keys(config) if key.split(".")[0] in SECTIONS]
    problems = []
    for each in sorted(parsed, key=lambda each: each.key_or_group not in SWAPPABLE):  # groups first, then their keys
        key, place = each.key_or_group, each.input_line or each.key_or_group
        if each.is_sweep_override():
            problems.append(FslError("one value at a time", where=place, hint="scripts/meta_test.sh tests many tasks"))
        elif key in SWAPPABLE:
            problems += overrides.group_problems([each])
            if not problems:
                config[key] = resolve(without_hydra(Composer("train").compose([place])))[key]
                keys += [name for name in overrides.all_keys(config) if name.startswith(f"{key}.")]
        elif key in ("algo", "backbone", "experiment"):
            problems.append(FslError("a trained model cannot change it", where=place, hint="override its options"))
        elif key.split(".")[0] not in SECTIONS and OmegaConf.select(config, key) is not None:
            problems.append(FslError("belongs to training", where=place, hint=f"fsl eval takes {', '.join(SECTIONS)}"))
        elif key not in keys or each.type is not OverrideType.CHANGE:
            problems.append(FslError("there is no such key", where=place, hint=close_match(key, ["run", *keys])))
        else:
            OmegaConf.update(config, key, each.value())
    raise_all(problems)
    return resolve(config)
