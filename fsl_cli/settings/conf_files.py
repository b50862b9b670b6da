"""Where the config groups are and what they hold. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fsl_cli.errors import FslError
from fsl_cli.settings.plugins import plugins

GROUPS = ("algo", "dataset", "backbone", "hardware", "experiment")
TUNED = "tuned"  # ALGO_DATASET.yaml in it: defaults that suit an algorithm on a data set; followed, never chosen
RESERVED = frozenset({"_target_", "name"})  # keys of a member that are no options


def conf_dir() -> Path:
    """The folder of the config groups: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).parent.parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parent.parent.parent / "conf"


@dataclass(frozen=True)
class Member:
    """A member of a config group.

    Attributes:
        path: its YAML file.
        plugin: the package it comes from; None: fsl itself.
    """

    path: Path
    plugin: str | None = None


def conf_dirs() -> dict[Path, str | None]:
    """The folders of config groups, that of fsl first, and the package each of the others comes from."""
    return {conf_dir(): None} | {plugin.conf: plugin.name for plugin in plugins()}


def members(group: str) -> dict[str, Member]:
    """The members of a config group by name, sorted.

    Raises:
        FslError: two packages have a member of the same name.
    """
    found: dict[str, Member] = {}
    for folder, plugin in conf_dirs().items():
        for path in (folder / group).glob("*.yaml"):
            other = found.setdefault(path.stem, Member(path, plugin))
            if other.path != path:
                what = f"is both in {other.plugin or 'fsl'} ({other.path}) and in {plugin} ({path})"
                raise FslError(what, where=f"{group}={path.stem}", hint="give one of them another name")
    return dict(sorted(found.items()))


def choices(group: str) -> list[str]:
    """Names of a config group's members, sorted."""
    return list(members(group))
