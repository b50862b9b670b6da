"""Rows of `scripts/benchmark.py` that need processes of their own: waiting threads beside other work, and the start of a run.

    python scripts/benchmark.py --suite busy       # OMP_WAIT_POLICY=passive, which fsl sets, against OpenMP's default
    python scripts/benchmark.py --suite startup    # from `fsl train` to the end of the first iteration

The two sides of a row take turns, after one turn that is not counted; figures are medians.
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

Change = Mapping[str, str | None]  # environment variables; None: not set
POLICY = "OMP_WAIT_POLICY"

# torch comes first: OpenMP reads its variables when it is loaded, before fsl_cli could set one.
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

# What `fsl train` does, stopped after the first iteration. Prints the processor time of the process and of those it waited for.
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
    """One comparison of two sides: their names, their median seconds, and how many times longer the second one takes."""

    name: str
    what: str
    sides: tuple[str, str]
    seconds: tuple[float, float]
    ratio: float


def in_turns(name: str, what: str, sides: Mapping[str, Callable[[], float]], repeats: int) -> Pair:
    """Median of the seconds that each of two sides reports, measured in turns; the first turn is not counted."""
    turns = [[side() for side in sides.values()] for _ in range(repeats + 1)][1:]
    first, second = (statistics.median(each) for each in zip(*turns, strict=True))
    one, other = sides
    return Pair(name, what, (one, other), (first, second), second / first)


def busy(repeats: int) -> Iterator[Pair]:
    """A training step alone and beside a process that never rests, with both policies of waiting threads."""
    policies: dict[str, Change] = {"passive": {POLICY: "passive"}, "default": {POLICY: None}}
    with ExitStack() as stack:
        sides = {name: stack.enter_context(_worker(change)) for name, change in policies.items()}
        what = "a training step of MAML (4 tasks, 5-way 1-shot, 15 queries, 1 inner step)"
        yield in_turns("step_quiet", f"{what}, nothing beside it", sides, repeats)
        with _busy_process():
            yield in_turns("step_busy", f"{what}, beside a process that never rests", sides, repeats)


def startup(repeats: int) -> Iterator[Pair]:
    """Processor time from the command to the end of the first iteration, W&B disabled, caches warm."""
    with tempfile.TemporaryDirectory() as scratch:
        compiled: Change = {"PYTHONPYCACHEPREFIX": f"{scratch}/bytecode", "PYTHONDONTWRITEBYTECODE": None}
        none = {"PYTHONPYCACHEPREFIX": f"{scratch}/none", "PYTHONDONTWRITEBYTECODE": "1"}
        sides = {"with bytecode": lambda: first_iteration(compiled), "without": lambda: first_iteration(none)}
        yield in_turns("startup", "processor time from `fsl train` to the end of the first iteration", sides, repeats)


def first_iteration(change: Change) -> float:
    """Processor seconds of one run, up to the end of its first iteration."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["algo=protonet", "dataset=glyphs", "hardware.device=cpu", "wandb.mode=disabled", f"hydra.run.dir={folder}/run"]
        command = [sys.executable, "-c", START, "train", *words]
        done = subprocess.run(command, env=_environment(change), stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


SUITES = {"busy": (busy, 15, "random"), "startup": (startup, 5, "glyphs")}  # rows, timed turns, images


@contextmanager
def _worker(change: Change) -> Iterator[Callable[[], float]]:
    """A process that has built a training; calling what is yielded makes it take one step and gives its seconds."""
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
    """The environment of this process with some variables changed, in which the same modules are found."""
    path = os.pathsep.join([os.path.dirname(os.path.abspath(__file__)), *filter(None, sys.path)])
    changed = {**os.environ, "PYTHONPATH": path, **change}
    return {name: value for name, value in changed.items() if value is not None}
