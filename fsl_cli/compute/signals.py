"""Signals: those that stop a run, held back while something must not be torn apart, and those that ask for a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


def _existing(*names: str) -> tuple[signal.Signals, ...]:
    """The signals of these names that this platform has."""
    return tuple(getattr(signal, name) for name in names if hasattr(signal, name))


STOP = _existing("SIGINT", "SIGTERM", "SIGHUP")
SAVE = _existing("SIGUSR1", "SIGUSR2")


class Stopped(KeyboardInterrupt):
    """A signal has stopped the program.

    Args:
        number: of the signal.

    Attributes:
        exit_code: what the program ends with, as a shell counts it: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number, self.exit_code = number, 128 + number


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """The exit code of a program that ends with ``interrupt``."""
    return interrupt.exit_code if isinstance(interrupt, Stopped) else 128 + signal.SIGINT


class _Stop:
    """A signal handler that raises `Stopped` and remembers that it did."""

    def __init__(self) -> None:
        self.received: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        raise Stopped(number)


class _Save:
    """A signal handler that remembers that a checkpoint has been asked for."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise a `KeyboardInterrupt` as Ctrl-C does, and SIGUSR1 and SIGUSR2 ask for a checkpoint.

    Signals interrupt the main thread only; in another thread nothing changes. A signal that is ignored, as SIGINT is for a
    background job of a script and SIGHUP under nohup, stays ignored. Inside another ``interruptible``, nothing changes either.
    """
    if any(isinstance(handler, _Stop) for handler in _handlers(STOP)):
        yield
        return
    with _handled({**dict.fromkeys(STOP, _Stop()), **dict.fromkeys(SAVE, _Save())}):
        yield


def raise_if_interrupted(cause: Exception | None = None) -> None:
    """Raise `Stopped` if a signal has stopped the program since `interruptible` was entered; long loops call it in every round.

    An exception that a signal handler raises can disappear: Python ignores those of ``__del__`` and of callbacks of weak
    references.
    """
    for handler in _handlers(STOP):
        if isinstance(handler, _Stop) and handler.received is not None:
            raise Stopped(handler.received) from cause


def take_save_request() -> bool:
    """Whether a checkpoint has been asked for since `interruptible` was entered or this was called last."""
    asked = [handler for handler in _handlers(SAVE) if isinstance(handler, _Save) and handler.asked]
    for handler in asked:
        handler.asked = False
    return bool(asked)


@contextmanager
def interrupts_keep_their_type() -> Iterator[None]:
    """Inside, a `KeyboardInterrupt` that came out as another exception is one again.

    An extension module that is being imported, for example, turns it into ImportError.
    """
    try:
        yield
    except Exception as error:
        raise_if_interrupted(error)
        raise


@contextmanager
def held_back() -> Iterator[list[int]]:
    """Deliver the signals that stop after the block instead of in its middle; yields those that have come so far."""
    received: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        received.append(number)

    with _handled(dict.fromkeys(STOP, remember)):
        yield received
    if received:
        signal.raise_signal(received[-1])


def _handlers(numbers: tuple[signal.Signals, ...]) -> list[Any]:
    return [signal.getsignal(number) for number in numbers]


@contextmanager
def _handled(handlers: dict[signal.Signals, Callable[[int, FrameType | None], None]]) -> Iterator[None]:
    """Inside, these handlers replace those of signals that are not ignored; only in the main thread."""
    if threading.current_thread() is not threading.main_thread():  # signals only ever interrupt the main thread
        yield
        return
    unchanged = (signal.SIG_IGN, None)  # None: a handler that is no Python function and could not be restored
    before = {number: signal.getsignal(number) for number in handlers}
    replaced = [number for number, handler in before.items() if handler not in unchanged]
    for number in replaced:
        signal.signal(number, handlers[number])
    try:
        yield
    finally:
        for number in replaced:
            signal.signal(number, before[number])
