"""The folder of a run: which files it holds, and how they are written."""

from __future__ import annotations

import itertools
import logging
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from yaml import YAMLError  # type: ignore[import-untyped]

from fsl_cli.errors import FslError, first_line
from fsl_cli.results.files import WriteFile, to_json, unwritable, write_atomically
from fsl_cli.settings import plain_yaml


class RunFolder:
    """Paths and files of one run.

    Args:
        path: the folder; it is created by the first file written to it.

    Attributes:
        silent: whether nothing is written, see `SilentRunFolder`.
    """

    silent = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.env, self.results = path / "config.yaml", path / "env.json", path / "results.json"
        self.status, self.metrics, self.log = path / "status.json", path / "metrics.jsonl", path / "run.log"
        self.episodes, self.curves = path / "episodes.npz", path / "curves.png"
        self.best, self.last = path / "checkpoints" / "best.pt", path / "checkpoints" / "last.pt"

    def write(self, path: Path, write: WriteFile) -> None:
        """Write a file of this folder atomically; every file but logs and metrics is written through this method."""
        write_atomically(path, write)

    @property
    def holds_a_run(self) -> bool:
        """Whether a run has been here: its configuration, results or checkpoints."""
        return any(path.exists() for path in (self.config, self.results, self.best, self.last))

    def check_free(self, hint: str = "go on with resume=auto, or choose another hydra.run.dir") -> None:
        """Make sure that no run is in this folder.

        Raises:
            FslError: there is one; ``hint`` says what to do.
        """
        if self.holds_a_run:
            raise FslError("already holds a run", where=str(self.path), hint=hint)

    def claim(self) -> None:
        """Make this the folder of the calling process, even if another one was started in the same second.

        Raises:
            FslError: another run has been here, or the folder cannot be written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.config.touch(exist_ok=False)
        except OSError as error:
            self.check_free()
            raise unwritable(self.path, error) from error

    def release(self) -> None:
        """Undo `claim`, and remove what says which run is here."""
        for path in (self.config, self.env, self.status, self.log):
            path.unlink(missing_ok=True)

    def log_handler(self) -> logging.Handler:
        """What appends to ``run.log``."""
        self.path.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(self.log, delay=True, encoding="utf-8", errors="backslashreplace")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        return handler

    def write_config(self, config: Mapping[str, Any]) -> None:
        """``config.yaml``: the resolved configuration."""
        self._write_text(self.config, plain_yaml.text(config))

    def read_config(self) -> dict[str, Any]:
        """The configuration of a finished or interrupted run; ``${...}`` in it is text.

        Raises:
            FslError: the folder is not a run folder, or its config cannot be read.
        """
        if self.path.is_file():
            run = self.path.parent.parent if self.path.parent.name == "checkpoints" else self.path.parent
            last = " eval.checkpoint=last" if self.path.name == "last.pt" else ""
            raise FslError("is a file: name the run folder", where=str(self.path), hint=f"run={shlex.quote(str(run))}{last}")
        if not self.config.is_file():
            reason = "holds no config.yaml" if self.path.is_dir() else "does not exist"
            raise FslError(f"is not a run folder: it {reason}", where=str(self.path), hint=known_runs())
        try:
            config = plain_yaml.read(self.config)
        except (YAMLError, OSError, ValueError) as error:
            raise FslError(f"cannot be read: {first_line(error)}", where=str(self.config)) from error
        if not isinstance(config, dict):
            raise FslError("is not the configuration of a run", where=str(self.config))
        return {str(key): value for key, value in config.items()}

    def write_json(self, path: Path, content: Mapping[str, Any]) -> None:
        """A JSON file of this folder; NaN and infinity become null."""
        self._write_text(path, to_json(content))

    def write_status(self, state: str, **details: Any) -> None:
        """``status.json``: ``running``, ``done``, ``interrupted`` or ``failed``, and details."""
        self.write_json(self.status, {"state": state, **details})

    def write_episodes(self, arrays: Mapping[str, np.ndarray]) -> None:
        """``episodes.npz``: one row per test episode."""
        self.write(self.episodes, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]

    def _write_text(self, path: Path, text: str) -> None:
        def write(file: IO[bytes]) -> None:
            file.write(text.encode())

        self.write(path, write)


class SilentRunFolder(RunFolder):
    """The run folder as processes other than the first see it: they read what the first one writes, and write nothing."""

    silent = True

    def write(self, path: Path, write: WriteFile) -> None:
        """Do nothing."""

    def claim(self) -> None:
        """Do nothing."""

    def release(self) -> None:
        """Do nothing."""

    def log_handler(self) -> logging.Handler:
        """What ignores every line."""
        return logging.NullHandler()


def make_new(path: Path) -> Path:
    """Make the folder ``path``, or ``path_2`` and so on where there is one; no other process or machine gets the same one.

    Raises:
        FslError: it cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        others = (path.with_name(f"{path.name}_{number}") for number in itertools.count(2))
        return next(each for each in itertools.chain([path], others) if _made(each))
    except OSError as error:
        raise unwritable(path, error) from error


def _made(folder: Path) -> bool:
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def known_runs(root: Path = Path("outputs/train")) -> str:
    """Hint naming the newest run folder below ``root``, or how to make one."""
    runs = sorted(root.glob("*/config.yaml"), key=lambda path: path.stat().st_mtime)
    return f"the newest one is {runs[-1].parent}" if runs else "fsl train makes one"
