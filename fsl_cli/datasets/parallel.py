"""Calls functions in several threads."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_MOST = 32  # threads


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(calls: Iterable[Callable[[], T]]) -> Generator[T, None, None]:
    """The results of the calls, in their order; as many run at a time as there are cores.

    Threads, because Pillow, zlib and hashlib let others run while they work. Only a few results wait to be taken, which bounds
    the memory. Warnings are ignored meanwhile: Pillow warns of damaged metadata, and threads share the list of what to ignore.
    """
    threads = min(_MOST, cores())
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        warnings.simplefilter("ignore")
        waiting: deque[Future[T]] = deque()
        try:
            for call in calls:
                waiting.append(pool.submit(call))
                if len(waiting) > threads + 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for each in waiting:
                each.cancel()
