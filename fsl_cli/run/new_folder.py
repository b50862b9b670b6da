"""``resume=auto`` in a folder that is new every time never goes on with anything: the warning that says what would."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fsl_cli.errors import FslError
from fsl_cli.results.run_folder import RunFolder
from fsl_cli.show import console

_SAME = ("algo", "backbone", "dataset", "task", "seed")


def warn_of_new_folder(command: str, key: str, folder: Path, config: Mapping[str, Any], job: Path = Path()) -> None:
    """Warn that the run starts anew, with the command that goes on with the newest run like it.

    Args:
        command: the command line.
        key: the setting that names the folder.
        folder: the new folder.
        config: the configuration of the run, or of the first job of a sweep.
        job: where that job is in the folder of a sweep.
    """
    found = _newest_like(folder.parent, config, job)
    name = found or folder.parent / f"my_{'run' if job == Path() else 'sweep'}"
    hint = f"to go on with the newest run like this: {command}" if found else f"to be able to go on: {command}"
    console.warn(f"resume=auto finds nothing in a new folder; {hint} {shlex.quote(f'{key}={name}')}")


def _newest_like(above: Path, config: Mapping[str, Any], job: Path) -> Path | None:
    """The folder in ``above`` whose run has the same method, data and seed and was saved last; None: there is none."""
    checkpoints = [path for path in above.glob("*") if RunFolder(path / job).last.is_file()] if above.is_dir() else []
    for path in sorted(checkpoints, key=lambda path: RunFolder(path / job).last.stat().st_mtime, reverse=True):
        try:
            saved = RunFolder(path / job).read_config()
        except FslError:
            continue
        if all(saved.get(section) == config.get(section) for section in _SAME):
            return path
    return None
