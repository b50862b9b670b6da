"""The life of a run, the same for every verb: its folder is claimed, its log and status are kept, and its end is recorded."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch

from fsl_cli.compute import processes
from fsl_cli.compute.signals import exit_code, held_back, interruptible, interrupts_keep_their_type
from fsl_cli.errors import FslError, UnexpectedError, first_line, keep_traceback
from fsl_cli.results import environment
from fsl_cli.results.files import read_json
from fsl_cli.results.run_folder import RunFolder, SilentRunFolder
from fsl_cli.show import console
from fsl_cli.show.streams import lasting_streams

EARLIER = "earlier"  # key in ``status.json``


class Life:
    """A run between its start and its end.

    Args:
        folder: where the run writes.
        identity: what every ``status.json`` of the run says besides its state.

    Attributes:
        details: what the status is going to say, for example the iteration; the run keeps it up to date.
        begun: whether the run has its folder; before, nothing has been written.
        at_end: called with the exit code, 0 or 1, when the end of the run has been recorded, as they may take long.
    """

    def __init__(self, folder: RunFolder, identity: Mapping[str, Any]) -> None:
        self.folder, self.details = folder, dict(identity)
        self._started = time.perf_counter()
        self._handler: logging.Handler | None = None
        self._finished: dict[Path, bytes] = {}
        self.begun = False
        self.at_end: list[Callable[[int], None]] = []

    def begin(self, config: Mapping[str, Any], device: torch.device, command: str, *, claim: bool = True) -> None:
        """Take the folder and write what the run is: configuration, environment, status, log.

        Args:
            config: the resolved configuration.
            device: where it computes.
            command: what started it.
            claim: whether the folder must be free; False for a run that goes on.

        Raises:
            FslError: another run is in the folder, or it cannot be written to.
        """
        with held_back():  # whoever stops the run from here on finds its folder and records that
            if claim:
                self.folder.claim()
            self.begun = True
        self._finished = _files_of_finished(self.folder)
        self.details |= _earlier_end(self.folder)
        self.folder.write_config(config)
        self.folder.write_json(self.folder.env, environment.describe(device, command))
        self.status("running")
        self._handler = self.folder.log_handler()
        console.start_log(self._handler)

    def give_back(self) -> None:
        """Undo `begin`: the folder is free again, as if the run had never begun."""
        self.close()
        self._handler, self.begun = None, False
        self.folder.release()

    def status(self, state: str, **details: Any) -> None:
        """Write ``status.json``; ``details`` stay in it."""
        self.details |= details
        self.folder.write_status(state, **self.details)

    def done(self, **details: Any) -> None:
        """Record that everything was done and written."""
        self.details.pop(EARLIER, None)
        self.status("done", seconds=round(time.perf_counter() - self._started, 1), exit_code=0, **details)

    def interrupted(self, exit_code: int, hint: str) -> None:
        """Record a signal that has stopped the run, and tell the user how to go on."""
        if self.begun:
            with held_back():  # a second Ctrl-C must not leave half of this
                self._ended("interrupted", exit_code=exit_code)
                where = f" at iteration {self.details['iteration']}" if "iteration" in self.details else ""
                hint = hint if self.folder.last.is_file() or not hint else "nothing has been saved yet"
                console.warn(f"interrupted{where}" + (f"; {hint}" if hint else ""))
        else:
            self._leave()

    def failed(self, reason: str, exit_code: int) -> None:
        """Record why there are no results; before the run has its folder, only that of a job of a sweep.

        A job that may not go on with the run in its folder leaves the status of that run, with a ``refused`` added.
        """
        if self.begun or ("launch" in self.details and not self.folder.config.exists()):
            self._ended("failed", error=reason, exit_code=exit_code)
        elif "launch" in self.details:
            self._refused("failed", error=reason, exit_code=exit_code)
        else:
            self._leave()

    def _leave(self) -> None:
        """Remove the folder, which is made before the run is checked, if the run has not begun and nothing is in it."""
        if not self.folder.silent and self.folder.path.is_dir() and not any(self.folder.path.iterdir()):
            self.folder.path.rmdir()

    def _ended(self, state: str, **details: Any) -> None:
        """Record the end. A finished run that this attempt has not changed stays as it was, with a ``refused`` added."""
        if not self._finished or not self._unchanged():
            self.status(state, **details)
            return
        for path, content in self._finished.items():
            self.folder.write(path, partial(_write, content))
        self._refused(state, **details)

    def _unchanged(self) -> bool:
        """Whether the finished run has neither been trained further nor tested again."""
        status, results = json.loads(self._finished[self.folder.status]), self.folder.results
        tested_again = results.is_file() and results.read_bytes() != self._finished.get(results)
        return status.get("iteration") == self.details.get("iteration") and not tested_again

    def _refused(self, state: str, **details: Any) -> None:
        self.details.pop(EARLIER, None)
        refused = {"state": state, **self.details, **details}
        self.folder.write_json(self.folder.status, {**(read_json(self.folder.status) or {}), "refused": refused})

    def unexpected(self, error: Exception) -> UnexpectedError:
        """The error that a user sees instead of a traceback, which goes to the log or, without one, to a file."""
        if self._handler is None or self.folder.silent:
            return UnexpectedError(keep_traceback(error))
        console.log.error("the run failed", exc_info=error)
        return UnexpectedError(f"{type(error).__name__}: {first_line(error)} (traceback: {self.folder.log})")

    def close(self) -> None:
        """Do what is left for the end, and close the log."""
        try:
            for call in self.at_end:
                call(min(int(self.details.get("exit_code", 0)), 1))
        finally:
            if self._handler is not None:
                console.stop_log(self._handler)


def _files_of_finished(folder: RunFolder) -> dict[Path, bytes]:
    """What a finished run in the folder says about itself; nothing where there is none."""
    if folder.silent or (read_json(folder.status) or {}).get("state") != "done":
        return {}
    files = (folder.config, folder.env, folder.status, folder.results)
    return {path: path.read_bytes() for path in files if path.is_file()}


def _earlier_end(folder: RunFolder) -> dict[str, Any]:
    """What ``status.json`` says as long as ``results.json`` is that of an earlier end of the run: how it ended then."""
    if folder.silent or not folder.results.is_file():
        return {}
    status = read_json(folder.status) or {}
    earlier = status if status.get("state") == "done" else status.get(EARLIER)
    return {EARLIER: {key: value for key, value in earlier.items() if key not in (EARLIER, "refused")}} if earlier else {}


def _write(content: bytes, file: IO[bytes]) -> None:
    file.write(content)


@contextmanager
def lifecycle(path: Path, *, identity: Mapping[str, Any] | None = None, resume_hint: str = "") -> Iterator[Life]:
    """Follow a run from its start to its end; whatever ends it is recorded, then raised.

    Args:
        path: the folder that the run writes to once it calls `Life.begin`; of several processes, only the first one writes.
        identity: see `Life`; with a ``launch`` the folder belongs to one job of a sweep, whose failure is always recorded.
        resume_hint: how to go on after an interruption, if a checkpoint has been saved.

    Raises:
        UnexpectedError: in place of any exception that is not an `FslError`.
    """
    life = Life(RunFolder(path) if processes.current().first else SilentRunFolder(path), identity or {})
    with lasting_streams(), interruptible():
        try:
            with interrupts_keep_their_type():
                yield life
        except KeyboardInterrupt as interrupt:
            life.interrupted(exit_code(interrupt), resume_hint)
            raise
        except FslError as error:
            life.failed(str(error), error.exit_code)
            raise
        except Exception as error:
            life.failed(f"{type(error).__name__}: {error}", UnexpectedError.exit_code)
            raise life.unexpected(error) from error
        except SystemExit:
            life.failed("a part of the run has ended the program", UnexpectedError.exit_code)
            raise
        finally:
            life.close()
