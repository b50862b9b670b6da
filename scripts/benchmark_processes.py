"""Rows of `scripts/benchmark.py` that need separate processes: waiting threads on a busy machine, and starting a run.

    python scripts/benchmark.py --suite busy       # how fsl lets threads wait, against OpenMP's default
    python scripts/benchmark.py --suite startup    # from `fsl train` to the end of the first iteration

The two sides of a row alternate, after one warm-up turn; times are medians.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

Change = Mapping[str, str | None]  # environment variables; None: unset
WAITING: dict[str, Change] = {
    "fsl": {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"},
    "default": {"OMP_WAIT_POLICY": None, "GOMP_SPINCOUNT": None},
}

# torch is imported first: OpenMP reads its environment variables when loaded, before fsl_cli can set one.
STEP = """
import sys, time
import torch
import benchmark_rows as rows
from fsl_cli.compute import hardware
from fsl_cli.episodes.class_images import ClassImages
from fsl_cli.episodes import EpisodeSampler, Task
from fsl_cli.training import Training

pixels = torch.randint(256, (1000, 1, 28, 28), dtype=torch.uint8)
images = ClassImages(pixels, torch.full((50,), 20).numpy(), [str(index) for index in range(50)])
bench = rows.Bench(hardware.set_up("cpu", "fp32", None, True, "auto"), 1, images, images, None)
task, algorithm = Task(5, 1, 15), rows.maml(bench, 5, 1)
sampler, used = EpisodeSampler(images, "train", task, 0), bench.hardware_for(task)
settings = rows.settings().model_copy(update={"meta_batch": 4})
training = Training(algorithm, torch.optim.Adam(algorithm.parameters()), sampler, settings, used)
for _ in sys.stdin:
    started = time.perf_counter()
    training.step()
    print(time.perf_counter() - started, flush=True)
"""

BUSY = "while True: pass"

# Runs `fsl train` up to the end of the first iteration and prints the CPU time of the process and its finished children.
START = """
import os, sys
from fsl_cli import cli
from fsl_cli.training import Training

step = Training.step

def first(training):
    step(training)
    spent = os.times()
    print(spent.user + spent.system + spent.children_user + spent.children_system, flush=True)
    os._exit(0)

Training.step = first
sys.exit(cli.main(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Pair:
    """One comparison of two sides: their names, their median seconds, and the ratio of the second to the first."""

    name: str
    what: str
    sides: tuple[str, str]
    seconds: tuple[float, float]
    ratio: float


def in_turns(name: str, what: str, sides: Mapping[str, Callable[[], float]], repeats: int) -> Pair:
    """Compare the median seconds that two sides report in alternating runs, after one warm-up turn."""
    turns = [[side() for side in sides.values()] for _ in range(repeats + 1)][1:]
    first, second = (statistics.median(each) for each in zip(*turns, strict=True))
    one, other = sides
    return Pair(name, what, (one, other), (first, second), second / first)


def busy(repeats: int) -> Iterator[Pair]:
    """A training step alone and next to a busy process, with threads that wait as fsl sets it and as OpenMP does."""
    with ExitStack() as stack:
        sides = {name: stack.enter_context(_worker(change)) for name, change in WAITING.items()}
        what = "a training step of MAML (4 tasks, 5-way 1-shot, 15 queries, 1 inner step)"
        yield in_turns("step_quiet", f"{what}, on an idle machine", sides, repeats)
        with _busy_process():
            yield in_turns("step_busy", f"{what}, next to a busy process", sides, repeats)


def startup(repeats: int) -> Iterator[Pair]:
    """CPU time from the command to the end of the first iteration, with W&B disabled and warm caches."""
    with tempfile.TemporaryDirectory() as scratch:
        compiled: Change = {"PYTHONPYCACHEPREFIX": f"{scratch}/bytecode", "PYTHONDONTWRITEBYTECODE": None}
        none = {"PYTHONPYCACHEPREFIX": f"{scratch}/none", "PYTHONDONTWRITEBYTECODE": "1"}
        sides = {"with bytecode": lambda: first_iteration(compiled), "without": lambda: first_iteration(none)}
        yield in_turns("startup", "CPU time from `fsl train` to the end of the first iteration", sides, repeats)


def first_iteration(change: Change) -> float:
    """CPU seconds of one run, up to the end of its first iteration."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["algo=protonet", "dataset=glyphs", "hardware.device=cpu", "wandb.mode=disabled", f"hydra.run.dir={folder}/run"]
        command = [sys.executable, "-c", START, "train", *words]
        done = subprocess.run(command, env=_environment(change), stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


SUITES = {"busy": (busy, 15, "random"), "startup": (startup, 5, "glyphs")}  # rows, timed turns, images


@contextmanager
def _worker(change: Change) -> Iterator[Callable[[], float]]:
    """Start a process that can train; yields a function that makes it take one training step and returns its seconds."""
    with subprocess.Popen(
        [sys.executable, "-c", STEP], env=_environment(change), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        asked, answers = process.stdin, process.stdout

        def step() -> float:
            print(file=asked, flush=True)
            return float(answers.readline())

        yield step


@contextmanager
def _busy_process() -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-c", BUSY]) as process:
        try:
            yield
        finally:
            process.kill()


def _environment(change: Change) -> dict[str, str]:
    """The environment of this process with some variables changed and the same module search path."""
    path = os.pathsep.join([os.path.dirname(os.path.abspath(__file__)), *filter(None, sys.path)])
    changed = {**os.environ, "PYTHONPATH": path, **change}
    return {name: value for name, value in changed.items() if value is not None}
