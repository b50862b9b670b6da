"""Time and memory of two sides, measured in alternating runs."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity

Run = Callable[[], Any]


@dataclass(frozen=True)
class Row:
    """One comparison: median seconds of both sides, the peer's seconds divided by ours, and peak tensor memory in MiB."""

    name: str
    what: str
    ours_s: float
    peer_s: float
    ratio: float
    ours_peak_mb: float
    peer_peak_mb: float


def compare(
    name: str,
    what: str,
    ours: Run,
    theirs: Run,
    repeats: int,
    device: torch.device,
    *,
    times: float = 1,
    theirs_small: Run | None = None,
) -> Row:
    """Time both sides in alternating runs, then measure their memory.

    Args:
        name: name of the row.
        what: description of the comparison.
        ours: a run of fsl.
        theirs: a run of the peer.
        repeats: timed runs of each side.
        device: device of both sides.
        times: factor for the peer's seconds, if it does only a part of the work.
        theirs_small: a shorter run of the peer with the same peak memory.
    """
    mine, other = alternate([ours, theirs], repeats, device)
    return Row(
        name, what, mine, times * other, times * other / mine, peak_mb(ours, device), peak_mb(theirs_small or theirs, device)
    )


def alternate(runs: list[Run], repeats: int, device: torch.device) -> list[float]:
    """Median seconds of each run; the runs alternate, after one warm-up turn."""
    seconds: list[list[float]] = [[] for _ in runs]
    for turn in range(repeats + 1):
        for run, measured in zip(runs, seconds, strict=True):
            wait_for(device)
            started = time.perf_counter()
            run()
            wait_for(device)
            if turn:
                measured.append(time.perf_counter() - started)
    return [statistics.median(each) for each in seconds]


def wait_for(device: torch.device) -> None:
    """Wait until all work on the device is finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_mb(run: Run, device: torch.device) -> float:
    """Peak tensor memory during a run in MiB, in addition to the memory allocated before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    with (
        _silent_stderr(),
        torch.profiler.profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profile,
    ):
        run()
    assert profile.profiler is not None
    changes = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak / 2**20


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Discard standard error, where the profiler's library reports its start and end at any log level."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
