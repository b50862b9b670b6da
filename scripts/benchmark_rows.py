"""The comparisons (rows) of `scripts/benchmark.py`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import benchmark_peer as peer
import torch
from benchmark_timing import Row, Run, compare

from fsl_cli.algos.maml import MAML
from fsl_cli.algos.protonet import ProtoNet
from fsl_cli.backbones.conv4 import Conv4
from fsl_cli.compute import hardware
from fsl_cli.episodes import Classification, Episodes, EpisodeSampler, Examples, Task
from fsl_cli.episodes.class_images import ClassImages
from fsl_cli.evaluation import evaluate
from fsl_cli.settings.schema import TrainSettings
from fsl_cli.training import Training

INNER_LR = 0.4


@dataclass(frozen=True)
class Bench:
    """The settings shared by all rows.

    Attributes:
        used: device, precision and chunk.
        repeats: timed runs of each side.
        train: classes for training episodes.
        test: classes for test episodes.
        pictures: folder of image files for learn2learn's pipeline.
        task_chunk: tasks that fsl computes at once; None: as chosen by `fsl train`.
    """

    used: hardware.Hardware
    repeats: int
    train: ClassImages
    test: ClassImages
    pictures: Path
    task_chunk: int | None = None

    def hardware_for(self, task: Task) -> hardware.Hardware:
        """The hardware settings, with the number of tasks at once that `fsl train` would choose."""
        pixels = task.ways * (task.shots + task.queries) * math.prod(self.train.example_shape)
        return replace(self.used, task_chunk=self.task_chunk or hardware.automatic_chunk(self.used.device, pixels))

    def compare(self, name: str, what: str, ours: Run, theirs: Run, **options: Any) -> Row:
        """See `benchmark_timing.compare`."""
        return compare(name, what, ours, theirs, self.repeats, self.used.device, **options)


def maml(bench: Bench, ways: int, steps: int, **options: Any) -> MAML:
    """MAML on Conv4 with default options and ``steps`` inner steps."""
    torch.manual_seed(0)
    algorithm = MAML(Conv4((1, 28, 28)), 64, ways, inner_steps=steps, inner_lr=INNER_LR, **options)
    torch.nn.init.normal_(algorithm.net.head.weight)  # with a zero head the first step would need less work
    return algorithm.to(bench.used.device)


def outer_gradient(used: hardware.Hardware, algorithm: MAML, episodes: Episodes) -> float:
    """Outer gradient, one chunk at a time as in `fsl_cli.training.Training`. Returns the mean loss."""
    algorithm.zero_grad()
    total = 0.0
    for chunk in episodes.split(used.task_chunk):
        with used.autocast():
            loss = algorithm.loss(chunk).loss * (len(chunk) / len(episodes))
        loss.backward()
        total += loss.item()
    return total


def meta_step(bench: Bench, name: str, task: Task, steps: int, tasks: int = 32) -> Row:
    """Loss and outer gradient of the same episodes on both sides."""
    episodes = EpisodeSampler(bench.train, "train", task, 0, bench.used.device).batch(0, tasks)
    algorithm = maml(bench, task.ways, steps)
    theirs = peer.meta_learner(peer.omniglot_net(algorithm.net, task.ways, bench.used.device), INNER_LR)

    few, used = next(episodes.split(2)), bench.hardware_for(task)

    def mine(drawn: Episodes = episodes) -> float:
        return outer_gradient(used, algorithm, drawn)

    def other(drawn: Episodes = episodes) -> float:
        return peer.meta_step(theirs, drawn, steps)

    must_agree(name, mine(few), other(few))
    what = f"outer gradient, {task}, {steps} steps, {tasks} tasks, second order"
    return bench.compare(name, what, mine, other, theirs_small=lambda: other(few))


def must_agree(name: str, mine: float, other: float) -> None:
    """Exit if the losses of the two sides differ by more than the rounding errors of many float32 steps."""
    if abs(mine - other) > 1e-2 * abs(other):
        raise SystemExit(f"{name}: the losses differ, fsl {mine} and learn2learn {other}")


def iteration_with_data(bench: Bench) -> Row:
    """A complete training iteration, each side with its own data pipeline."""
    task, steps = Task(5, 1, 1), 5
    algorithm = maml(bench, task.ways, steps)
    theirs = peer.meta_learner(peer.omniglot_net(algorithm.net, task.ways, bench.used.device), INNER_LR)
    optimizer = torch.optim.Adam(algorithm.parameters(), lr=0.001)
    sampler = EpisodeSampler(bench.train, "train", task, 0, bench.used.device)
    training = Training(algorithm, optimizer, sampler, settings(), bench.hardware_for(task))
    draw = peer.tasks(bench.pictures, task, bench.used.device)
    their_optimizer = torch.optim.Adam(theirs.parameters(), lr=0.001)

    def other(count: int = 32) -> None:
        support_x, support_y, query_x, query_y = map(torch.stack, zip(*(draw() for _ in range(count)), strict=True))
        peer.meta_step(
            theirs, Episodes(Examples(support_x, support_y), Examples(query_x, query_y), Classification(task.ways)), steps
        )
        their_optimizer.step()

    what = f"episodes, outer gradient, Adam: {task}, {steps} steps, 32 tasks"
    return bench.compare("iteration_with_data", what, training.step, other, theirs_small=lambda: other(2))


def sampling(bench: Bench) -> Row:
    """Sampling episodes as tensors on the device."""
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
        evaluate(algorithm, sampler, 10_000, bench.hardware_for(task))

    def other() -> None:
        for _ in range(20):
            peer.prototypical_accuracy(theirs, draw())

    what = f"testing ProtoNet on 10,000 episodes, {task} (learn2learn: 20, times 500)"
    return bench.compare("proto_eval_10k", what, mine, other, times=500)


def inner_steps_memory(bench: Bench, queries: int) -> Row:
    """20 inner steps with gradient checkpointing against a single step; both sides are fsl."""
    task = Task(5, 1, queries)
    used = bench.hardware_for(task)
    episodes = EpisodeSampler(bench.train, "train", task, 0, used.device).batch(0, used.task_chunk)
    twenty, one = maml(bench, 5, 20, checkpoint_inner=True), maml(bench, 5, 1)
    runs = [lambda: outer_gradient(used, twenty, episodes), lambda: outer_gradient(used, one, episodes)]
    what = f"{task}, {used.task_chunk} tasks: 20 steps with checkpoint_inner; instead of learn2learn, fsl with 1 step"
    return bench.compare(f"checkpoint_inner_{queries}query", what, *runs)


def quick(bench: Bench) -> Iterator[Row]:
    """The rows of the README."""
    yield meta_step(bench, "meta_step_5steps_1query", Task(5, 1, 1), 5)
    yield meta_step(bench, "meta_step_5steps_15query", Task(5, 1, 15), 5)
    yield iteration_with_data(bench)
    yield sampling(bench)
    yield proto_eval(bench)


def full(bench: Bench) -> Iterator[Row]:
    """The rows of the README and other task sizes."""
    yield from quick(bench)
    yield meta_step(bench, "meta_step_1step_1query", Task(5, 1, 1), 1)
    yield meta_step(bench, "meta_step_1step_15query", Task(5, 1, 15), 1)
    yield meta_step(bench, "meta_step_5way_5shot", Task(5, 5, 5), 5)
    for tasks in (1, 4, 16):
        yield meta_step(bench, f"meta_step_20way_5shot_{tasks}tasks", Task(20, 5, 5), 5, tasks)
    for queries in (1, 15):
        yield inner_steps_memory(bench, queries)


SUITES = {"quick": (quick, 3), "full": (full, 7)}


def settings() -> TrainSettings:
    """Ordinary training settings."""
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
