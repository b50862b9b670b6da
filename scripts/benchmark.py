"""How fast and how lean: this project against learn2learn 0.2.0, on the same tensors, in one process, alternating.

    python scripts/benchmark.py                         # the rows of the README, under two minutes on two cores
    python scripts/benchmark.py --suite full --json benchmark.json

Before anything is timed, both sides must give the same loss. A figure is the median of alternating runs after one that is
not counted. Peak memory is that of tensors, above what was there before (on CUDA as PyTorch counts it).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import benchmark_peer as peer
import platformdirs
import torch
from benchmark_timing import Row, Run, compare
from rich.console import Console
from rich.table import Table

from fsl_cli import environment, hardware
from fsl_cli.algos.maml import MAML
from fsl_cli.algos.protonet import ProtoNet
from fsl_cli.backbones.conv4 import Conv4
from fsl_cli.config import TrainSettings
from fsl_cli.datasets.class_images import ClassImages
from fsl_cli.datasets.glyphs import Glyphs
from fsl_cli.datasets.omniglot import Omniglot
from fsl_cli.episodes import Episodes, EpisodeSampler, Task
from fsl_cli.errors import FslError
from fsl_cli.evaluation import evaluate
from fsl_cli.training import Training

INNER_LR = 0.4


@dataclass(frozen=True)
class Bench:
    """What the rows share.

    Attributes:
        used: device, precision and chunk.
        repeats: timed runs of each side.
        train: classes for training episodes.
        test: classes for test episodes.
        pictures: folder of image files for the peer's own pipeline.
    """

    used: hardware.Hardware
    repeats: int
    train: ClassImages
    test: ClassImages
    pictures: Path

    def compare(self, name: str, what: str, ours: Run, theirs: Run, **options: Any) -> Row:
        """See `benchmark_timing.compare`."""
        return compare(name, what, ours, theirs, self.repeats, self.used.device, **options)


# --- the rows


def maml(bench: Bench, ways: int, steps: int, **options: Any) -> MAML:
    """MAML on Conv4 as it is trained by default, with ``steps`` inner steps."""
    torch.manual_seed(0)
    algorithm = MAML(Conv4((1, 28, 28)), 64, ways, inner_steps=steps, inner_lr=INNER_LR, **options)
    torch.nn.init.normal_(algorithm.net.head.weight)  # at zero the first step would be easier than the others
    return algorithm.to(bench.used.device)


def outer_gradient(bench: Bench, algorithm: MAML, episodes: Episodes) -> float:
    """As `fsl_cli.training.Training` does it, a chunk at a time. Returns the mean loss."""
    algorithm.zero_grad()
    total = 0.0
    for chunk in episodes.split(bench.used.task_chunk):
        with bench.used.autocast():
            loss = algorithm.loss(chunk).loss * (len(chunk) / len(episodes))
        loss.backward()
        total += loss.item()
    return total


def meta_step(bench: Bench, name: str, task: Task, steps: int, tasks: int = 32) -> Row:
    """Loss and outer gradient of the same episodes."""
    episodes = EpisodeSampler(bench.train, "train", task, 0, bench.used.device).batch(0, tasks)
    algorithm = maml(bench, task.ways, steps)
    theirs = peer.meta_learner(peer.omniglot_net(algorithm.net, task.ways, bench.used.device), INNER_LR)

    few = next(episodes.split(2))

    def mine(drawn: Episodes = episodes) -> float:
        return outer_gradient(bench, algorithm, drawn)

    def other(drawn: Episodes = episodes) -> float:
        return peer.meta_step(theirs, drawn, steps)

    must_agree(name, mine(few), other(few))
    what = f"outer gradient, {task}, {steps} steps, {tasks} tasks, second order"
    return bench.compare(name, what, mine, other, theirs_small=lambda: other(few))


def must_agree(name: str, mine: float, other: float) -> None:
    """Both sides compute the same thing, to the rounding of many float32 steps."""
    if abs(mine - other) > 1e-2 * abs(other):
        raise SystemExit(f"{name}: not the same numbers, loss {mine} here and {other} there")


def iteration_with_data(bench: Bench) -> Row:
    """A whole iteration of training, each with its own data."""
    task, steps = Task(5, 1, 1), 5
    algorithm = maml(bench, task.ways, steps)
    theirs = peer.meta_learner(peer.omniglot_net(algorithm.net, task.ways, bench.used.device), INNER_LR)
    optimizer = torch.optim.Adam(algorithm.parameters(), lr=0.001)
    training = Training(
        algorithm, optimizer, EpisodeSampler(bench.train, "train", task, 0, bench.used.device), settings(), bench.used
    )
    draw = peer.tasks(bench.pictures, task, bench.used.device)
    their_optimizer = torch.optim.Adam(theirs.parameters(), lr=0.001)

    def other(count: int = 32) -> None:
        drawn = [torch.stack(part) for part in zip(*(draw() for _ in range(count)), strict=True)]
        peer.meta_step(theirs, Episodes(*drawn, task.ways), steps)
        their_optimizer.step()

    what = f"episodes, outer gradient, Adam: {task}, {steps} steps, 32 tasks"
    return bench.compare("iteration_with_data", what, training.step, other, theirs_small=lambda: other(2))


def sampling(bench: Bench) -> Row:
    """Drawing episodes, as tensors on the device."""
    task = Task(5, 1, 1)
    sampler = EpisodeSampler(bench.train, "train", task, 0, bench.used.device)
    draw = peer.tasks(bench.pictures, task, bench.used.device)

    def mine() -> None:
        for first in range(0, 3200, 32):
            sampler.batch(first, 32)

    def other() -> None:
        for _ in range(32):
            draw()

    return bench.compare("sampling", f"drawing 3,200 tasks, {task} (learn2learn: 32, times 100)", mine, other, times=100)


def proto_eval(bench: Bench) -> Row:
    """Testing ProtoNet on 10,000 episodes."""
    task = Task(5, 1, 15)
    torch.manual_seed(0)
    algorithm = ProtoNet(Conv4((1, 28, 28))).to(bench.used.device)
    theirs = peer.omniglot_net(maml(bench, task.ways, 1).net, task.ways, bench.used.device).features.eval()
    sampler = EpisodeSampler(bench.test, "test", task, 0, bench.used.device)
    draw = peer.tasks(bench.pictures, task, bench.used.device)

    def mine() -> None:
        evaluate(algorithm, sampler, 10_000, bench.used)

    def other() -> None:
        for _ in range(20):
            peer.prototypical_accuracy(theirs, draw())

    what = f"testing ProtoNet on 10,000 episodes, {task} (learn2learn: 20, times 500)"
    return bench.compare("proto_eval_10k", what, mine, other, times=500)


def inner_steps_memory(bench: Bench) -> Row:
    """20 inner steps from checkpoints against a single step: both sides are ours."""
    task = Task(5, 1, 15)
    episodes = EpisodeSampler(bench.train, "train", task, 0, bench.used.device).batch(0, bench.used.task_chunk)
    twenty, one = maml(bench, 5, 20, checkpoint_inner=True), maml(bench, 5, 1)
    runs = [lambda: outer_gradient(bench, twenty, episodes), lambda: outer_gradient(bench, one, episodes)]
    what = f"{task}: ours with 20 steps and checkpoint_inner, in place of the peer ours with 1 step"
    return bench.compare("checkpoint_inner", what, *runs)


def quick(bench: Bench) -> Iterator[Row]:
    """The rows of the README."""
    yield meta_step(bench, "meta_step_5steps_1query", Task(5, 1, 1), 5)
    yield meta_step(bench, "meta_step_5steps_15query", Task(5, 1, 15), 5)
    yield iteration_with_data(bench)
    yield sampling(bench)
    yield proto_eval(bench)


def full(bench: Bench) -> Iterator[Row]:
    """Those and more sizes."""
    yield from quick(bench)
    yield meta_step(bench, "meta_step_1step_1query", Task(5, 1, 1), 1)
    yield meta_step(bench, "meta_step_1step_15query", Task(5, 1, 15), 1)
    yield meta_step(bench, "meta_step_5way_5shot", Task(5, 5, 5), 5)
    for tasks in (1, 4, 16):
        yield meta_step(bench, f"meta_step_20way_5shot_{tasks}tasks", Task(20, 5, 5), 5, tasks)
    yield inner_steps_memory(bench)


SUITES = {"quick": (quick, 3), "full": (full, 7)}


# --- around them


def settings() -> TrainSettings:
    """Settings of an ordinary training."""
    return TrainSettings(
        iterations=60_000,
        meta_batch=32,
        max_minutes=None,
        optimizer={},
        schedule="constant",
        step_every=1,
        step_factor=1.0,
        clip_grad_norm=None,
        log_every=10,
        val_every=1000,
        val_episodes=2,
        patience=None,
    )


def images() -> tuple[str, ClassImages, ClassImages, ClassImages]:
    """Omniglot where it is at hand, else glyphs: name, train and test split, and some classes without rotations."""
    data_dir = Path(os.environ.get("FSL_DATA_DIR") or platformdirs.user_data_dir("fsl"))
    cache_dir = Path(os.environ.get("FSL_CACHE_DIR") or platformdirs.user_cache_dir("fsl"))
    try:
        dataset: Any = Omniglot(data_dir, cache_dir, download=False)
        train, test = dataset.split("train"), dataset.split("test")
        name = "omniglot"
    except FslError:
        dataset = Glyphs(cache_dir)
        train, test = dataset.split("train"), dataset.split("test")
        name = "glyphs"
    few = train.counts[:200]
    return name, train, test, ClassImages(train.images[: int(few.sum())], few, train.names[:200])


def machine(used: hardware.Hardware, dataset: str) -> dict[str, Any]:
    """Where it was measured."""
    found = environment.describe(used.device)
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else found["device_name"],
        **{name: found[name] for name in ("cpus", "threads", "device", "device_name", "python", "platform", "git_commit")},
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "precision": used.precision,
        "task_chunk": used.task_chunk,
        "torch": torch.__version__,
        "learn2learn": environment.version("learn2learn"),
        "images": dataset,
    }


def table(rows: list[Row]) -> Table:
    """For people."""
    made = Table(title="s: median of alternating runs; MB: peak of tensor memory", title_justify="left")
    made.add_column("row", no_wrap=True)
    for name in ("fsl s", "l2l s", "ratio", "fsl MB", "l2l MB"):
        made.add_column(name, justify="right")
    for row in rows:
        figures = (
            f"{row.ours_s:.3g}",
            f"{row.peer_s:.3g}",
            f"{row.ratio:.1f}x",
            f"{row.ours_peak_mb:.0f}",
            f"{row.peer_peak_mb:.0f}",
        )
        made.add_row(row.name, *figures)
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=SUITES, default="quick", help="quick: under two minutes on two cores")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine and rows there")
    parser.add_argument("--device", default="auto", help="as hardware.device")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of our side")
    parser.add_argument("--task-chunk", type=int, help="tasks computed at once on our side; as hardware.task_chunk")
    chosen = parser.parse_args(arguments)
    console = Console()
    try:
        used = hardware.set_up(chosen.device, chosen.precision, None, False, chosen.task_chunk or "auto")
        name, train, test, pictures = images()
        peer.imported("algorithms")
    except FslError as error:
        parser.error(str(error))
    about = machine(used, name)
    console.print(" | ".join(f"{key} {value}" for key, value in about.items()), style="dim")
    make, repeats = SUITES[chosen.suite]
    rows = []
    with tempfile.TemporaryDirectory() as scratch, console.status("measuring") as status:
        peer.write_pictures(pictures, Path(scratch))
        for row in make(Bench(used, repeats, train, test, Path(scratch))):
            rows.append(row)
            console.print(f"{row.name}: {row.ratio:.1f}x  {row.what}")
            status.update(f"measuring; {row.name} is done")
    console.print(table(rows))
    iteration = next(row.ours_s for row in rows if row.name == "iteration_with_data")
    console.print(f"MAML's 60,000 iterations of iteration_with_data: {60_000 * iteration / 3600:.1f} hours")
    if chosen.json:
        chosen.json.write_text(json.dumps({"machine": about, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")


if __name__ == "__main__":
    main()
