"""`fsl ls`: what can be named on the command line, one line each, read from ``conf/``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fsl_cli.errors import FslError, close_match
from fsl_cli.settings.conf_files import GROUPS, Member, members
from fsl_cli.show import console


def main(arguments: Sequence[str]) -> int:
    """Run the verb. Returns the exit code."""
    for name in arguments:
        if name not in GROUPS:
            raise FslError(f"there is no group {name}", where="fsl ls", hint=close_match(name, GROUPS))
    groups = list(arguments) or list(GROUPS)
    for group in groups:
        rows = [(f"{group}={name}", _described(member)) for name, member in members(group).items()]
        console.table(group, ("option", "what it is"), rows)
    return 0


def _described(member: Member) -> str:
    return first_line(member.path) + (f" [from {member.plugin}]" if member.plugin else "")


def first_line(path: Path) -> str:
    """What a config file says it is: its first comment, Hydra's ``# @package`` line left out."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = (line.lstrip("# ") for line in lines if line.startswith("#") and not line.startswith("# @"))
    return next(comments, "no description: its first line is no comment")
