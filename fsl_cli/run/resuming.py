"""Where a training run starts: at a checkpoint or anew, never over a run that it does not go on with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from fsl_cli.errors import FslError
from fsl_cli.results import checkpoint
from fsl_cli.results.files import read_json
from fsl_cli.results.run_folder import RunFolder
from fsl_cli.settings.saved import completed


def resume_point(resume: Literal[False] | str, config: Mapping[str, Any], folder: RunFolder) -> Path | None:
    """The checkpoint to go on from; None: the run begins anew.

    Args:
        resume: the setting: false, ``auto``, or a run folder or checkpoint.
        config: the configuration of the run that is about to start.
        folder: where it is going to write.

    Raises:
        FslError: there is no checkpoint where one was asked for, or what is in the folder would be overwritten.
    """
    path = None
    if resume == "auto":
        if folder.last.is_file():
            return folder.last
        _check_unfinished(folder, config)
        return None
    if isinstance(resume, str):
        path = Path(resume).expanduser().absolute()
        path = RunFolder(path).last if path.is_dir() else path
        if not path.is_file():
            raise FslError("there is no such checkpoint", where=f"resume={resume}", hint="name a run folder")
        if folder.last.is_file() and path.samefile(folder.last):
            return folder.last
    folder.check_free()
    return path


def _check_unfinished(folder: RunFolder, config: Mapping[str, Any]) -> None:
    """Make sure that a folder without ``last.pt`` holds at most a run of this configuration that had not come far.

    Raises:
        FslError: it holds another run, or results.
    """
    status = read_json(folder.status) or {}
    if folder.results.exists() or status.get("state") == "done" or "run" in status:  # the last is a test by fsl eval
        raise FslError(
            "holds a finished run or test, and no checkpoints/last.pt to go on from",
            where=str(folder.path),
            hint="choose another hydra.run.dir",
        )
    if folder.config.exists() and folder.config.stat().st_size == 0:  # claimed, and ended before anything was written
        return
    if folder.config.exists():
        checkpoint.check_same_configuration(completed(folder.read_config()), completed(config), folder.config)
    elif folder.best.exists():
        raise FslError("holds a checkpoint of an unknown run", where=str(folder.path), hint="choose another hydra.run.dir")
