"""Where the config groups are and what they hold. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

GROUPS = ("algo", "dataset", "backbone", "hardware", "experiment")
RESERVED = frozenset({"_target_", "name"})  # keys of a member that are no options


def conf_dir() -> Path:
    """The folder of the config groups: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).parent.parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parent.parent.parent / "conf"


def choices(group: str) -> list[str]:
    """Names of a config group's members, sorted."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))
