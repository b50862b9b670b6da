"""The folder of a run: which files it holds, written so that a reader never meets half a file."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from fsl_cli.errors import FslError, first_line


def write_atomically(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Write a file beside ``path`` and move it there, so that ``path`` is either the old file or the whole new one.

    Raises:
        FslError: the folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise unwritable(path.parent, error) from error
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's files are for the user alone
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise unwritable(path, error) from error
        raise


def _umask() -> int:
    """The permissions that this process takes away from new files."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically; see `write_atomically`."""

    def write(file: IO[bytes]) -> None:
        file.write(text.encode())

    write_atomically(path, write)


def unwritable(path: Path, error: OSError) -> FslError:
    """The `FslError` for a file or folder that cannot be written."""
    reason = error.strerror or str(error)
    return FslError(f"cannot be written: {reason}", where=str(path), hint="choose a folder you may write to")


def check_writable(folder: Path) -> None:
    """Make sure that ``folder`` could be created and written to, leaving nothing behind.

    Raises:
        FslError: it could not.
    """
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise unwritable(folder, error) from error


class RunFolder:
    """Paths and files of one run.

    Args:
        path: the folder; it is created by the first file written to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.env, self.results = path / "config.yaml", path / "env.json", path / "results.json"
        self.status, self.metrics, self.log = path / "status.json", path / "metrics.jsonl", path / "run.log"
        self.episodes, self.curves = path / "episodes.npz", path / "curves.png"
        self.best, self.last = path / "checkpoints" / "best.pt", path / "checkpoints" / "last.pt"

    def claim(self) -> None:
        """Make this the folder of the calling process, even if another one was started in the same second.

        Raises:
            FslError: another run has been here, or the folder cannot be written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.config.touch(exist_ok=False)
        except OSError as error:
            if self.config.exists():
                raise already_holds_a_run(self.path) from error
            raise unwritable(self.path, error) from error

    def forget_results(self) -> None:
        """Remove what an earlier end of this run has left: it is not the result of a run that goes on."""
        for path in (self.results, self.episodes, self.curves):
            path.unlink(missing_ok=True)

    def write_config(self, config: Mapping[str, Any]) -> None:
        """``config.yaml``: the resolved configuration."""
        write_text(self.config, OmegaConf.to_yaml(OmegaConf.create(dict(config))))

    def read_config(self) -> dict[str, Any]:
        """The configuration of a finished or interrupted run.

        Raises:
            FslError: the folder is not a run folder, or its config cannot be read.
        """
        if not self.config.is_file():
            reason = "holds no config.yaml" if self.path.is_dir() else "does not exist"
            raise FslError(f"is not a run folder: it {reason}", where=str(self.path), hint=known_runs())
        try:
            config = OmegaConf.to_container(OmegaConf.load(self.config), resolve=True)
        except (OmegaConfBaseException, YAMLError, OSError, ValueError) as error:
            raise FslError(f"cannot be read: {first_line(error)}", where=str(self.config)) from error
        if not isinstance(config, dict):
            raise FslError("is not the configuration of a run", where=str(self.config))
        return {str(key): value for key, value in config.items()}

    def write_json(self, path: Path, content: Mapping[str, Any]) -> None:
        """A JSON file of this folder; NaN and infinity become null."""
        write_text(path, json.dumps(_finite(content), indent=2) + "\n")

    def write_status(self, state: str, **details: Any) -> None:
        """``status.json``: ``running``, ``done``, ``interrupted`` or ``failed``, and details."""
        self.write_json(self.status, {"state": state, **details})

    def write_episodes(self, arrays: Mapping[str, np.ndarray]) -> None:
        """``episodes.npz``: one row per test episode."""
        write_atomically(self.episodes, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]


def already_holds_a_run(path: Path) -> FslError:
    """The `FslError` for a folder whose run would be overwritten."""
    hint = "go on with resume=auto, or choose another hydra.run.dir"
    return FslError("already holds a run", where=str(path), hint=hint)


def read_json(path: Path) -> dict[str, Any] | None:
    """The content of a JSON file, or None when there is none or it cannot be read."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def known_runs(root: Path = Path("outputs/train")) -> str:
    """Hint naming the newest run folder below ``root``, or how to make one."""
    runs = sorted(root.glob("*/config.yaml"), key=lambda path: path.stat().st_mtime)
    return f"the newest one is {runs[-1].parent}" if runs else "fsl train makes one"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
