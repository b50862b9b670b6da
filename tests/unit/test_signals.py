"""An interruption ends a run as an interruption, whatever Python or an extension module makes of the exception."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from recorded_training import ALGORITHMS, Recorder, new_training

from fsl_cli.compute.signals import SAVE, STOP, held_back, interruptible, take_save_request
from fsl_cli.errors import UnexpectedError
from fsl_cli.run.lifecycle import lifecycle


class StopsWhenDeleted:
    """Python ignores the exception that the signal handler raises here, as in the callback of a weak reference."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


def stop_while_an_extension_module_is_imported() -> None:
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except KeyboardInterrupt:
        raise ImportError("initialization failed") from None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("stop", [StopsWhenDeleted, stop_while_an_extension_module_is_imported])
@pytest.mark.parametrize("event", ["log", "validate", "save"])
def test_training_stops(event: str, stop: Callable[[], object]):
    def at(happened: str, now: int) -> None:
        if (happened, now) == (event, 4):
            stop()

    recorder = Recorder(new_training(next(iter(ALGORITHMS.values()))), at=at)
    with interruptible(), pytest.raises(KeyboardInterrupt):
        recorder.run()
    assert recorder.training.progress.iteration == 4


def live(folder: Path, work: Callable[[], object]) -> None:
    with lifecycle(folder) as life:
        life.begin({}, torch.device("cpu"), "fsl train")
        work()


def test_the_status_says_interrupted(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        live(tmp_path, stop_while_an_extension_module_is_imported)
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "interrupted"


def test_an_error_without_a_signal_stays_an_error(tmp_path: Path):
    def fail() -> None:
        raise ImportError("initialization failed")

    with pytest.raises(UnexpectedError):
        live(tmp_path, fail)
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "failed"


@pytest.mark.parametrize("number", [*STOP, *SAVE])
def test_an_ignored_signal_stays_ignored(number: signal.Signals):
    before = signal.signal(number, signal.SIG_IGN)  # as SIGINT in a background job of a script, SIGHUP under nohup
    try:
        with interruptible(), held_back() as received:
            signal.raise_signal(number)
        assert received == []
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", SAVE)
def test_a_checkpoint_is_asked_for_once(number: signal.Signals):
    with interruptible(), interruptible():
        assert not take_save_request()
        with held_back():
            signal.raise_signal(number)
        assert take_save_request()
        assert not take_save_request()
