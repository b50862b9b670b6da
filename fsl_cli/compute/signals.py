"""Ctrl-C and SIGTERM, held back while something must not be torn apart."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_NUMBERS = (signal.SIGINT, signal.SIGTERM)


class _Interrupt:
    """A signal handler that raises `KeyboardInterrupt` and remembers that it did."""

    def __init__(self) -> None:
        self.received = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, SIGTERM does what Ctrl-C does: it raises `KeyboardInterrupt`.

    Signals interrupt the main thread only; in another thread nothing changes. A signal that is ignored, as SIGINT is for a
    background job of a script, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupt = _Interrupt()
    numbers = [each for each in _NUMBERS if signal.getsignal(each) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def raise_if_interrupted(cause: Exception | None = None) -> None:
    """Raise `KeyboardInterrupt` if there has been one since `interruptible` was entered; long loops call it in every round.

    An exception that a signal handler raises can disappear: Python ignores those of ``__del__`` and of callbacks of weak
    references, which every import of a module has.
    """
    handlers = [signal.getsignal(each) for each in _NUMBERS]
    if any(isinstance(each, _Interrupt) and each.received for each in handlers):
        raise KeyboardInterrupt from cause


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
    """Deliver SIGINT and SIGTERM after the block instead of in its middle; yields those that have come so far."""
    if threading.current_thread() is not threading.main_thread():  # signals only ever interrupt the main thread
        yield []
        return
    received: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, remember) for number in _NUMBERS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        signal.raise_signal(received[-1])
