"""Saved configurations as data: YAML in which ``${...}`` is text like any other, never an interpolation.

A saved configuration comes with a run folder, perhaps from somebody else. Resolving ``${oc.env:NAME}`` in it would show and
save what is in the environment of the reader.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from omegaconf._utils import get_omega_conf_dumper, get_yaml_loader


def read(path: Path) -> Any:
    """The content of a YAML file, as plain containers.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not UTF-8 text.
        yaml.YAMLError: it is not YAML.
    """
    return yaml.load(path.read_text(encoding="utf-8"), Loader=get_yaml_loader())  # a safe loader


def text(config: Mapping[str, Any]) -> str:
    """A configuration of plain containers as YAML, which `read` reads back as it was."""
    dumper = get_omega_conf_dumper()
    return str(yaml.dump(dict(config), Dumper=dumper, default_flow_style=False, allow_unicode=True, sort_keys=False))


def escaped(value: Any) -> Any:
    """Plain containers whose strings OmegaConf takes literally: it resolves them to ``value``."""
    if isinstance(value, Mapping):
        return {key: escaped(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [escaped(item) for item in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value
