"""Samples episodes from classes of images as a pure function of seed, split and index."""

from __future__ import annotations

import copy
import hashlib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from fsl_cli.compute.hardware import free_memory
from fsl_cli.episodes.class_images import ClassImages
from fsl_cli.episodes.episodes import Episodes, Examples
from fsl_cli.episodes.problem import Classification, Problem
from fsl_cli.episodes.randomness import episode_seeds
from fsl_cli.episodes.task import Task
from fsl_cli.errors import FslError, raise_all

_HASHED = 1024  # images read at once for a digest


class Sampler(Protocol):
    """A source of episodes."""

    @property
    def task(self) -> Task:
        """Shape of the episodes."""

    @property
    def problem(self) -> Problem:
        """The prediction problem of the episodes."""

    def batch(self, first: int, count: int) -> Episodes:
        """Episodes ``first .. first+count-1``: a pure function of seed, split and index."""

    def digest(self, count: int) -> str:
        """A hash of the first ``count`` episodes; runs with the same digest were tested on the same episodes."""


@dataclass(frozen=True)
class EpisodeIndices:
    """The classes and images of T episodes; row n of an episode belongs to the class with label n.

    Attributes:
        classes: int64 ``[T, N]``, indices of classes in the split.
        images: int64 ``[T, N, K+Q]``, indices of images in the split; the first K of each class are support images.
    """

    classes: np.ndarray
    images: np.ndarray


def draw_without_replacement(
    uniform: np.ndarray, population: int | np.ndarray, size: int | np.ndarray | None = None
) -> np.ndarray:
    """Draw an unordered sample without replacement for each row (Floyd's algorithm, one column at a time).

    Bentley and Floyd, "A sample of brilliance", CACM 30(9), 1987. Every subset is equally likely; the order of the
    columns is not uniform.

    Args:
        uniform: float64 ``[..., n]`` in [0, 1).
        population: draw from ``0..population-1``; a number, or an array broadcastable to ``uniform.shape[:-1]``.
        size: how many are drawn, a number or an array likewise; None: n.

    Returns:
        int64 ``[..., n]``, distinct along the last axis up to ``size``; the columns after it mean nothing.
    """
    columns = uniform.shape[-1]
    n = columns if size is None else size
    chosen = np.empty(uniform.shape, dtype=np.int64)
    for column in range(columns):
        last = np.asarray(population, dtype=np.int64) - n + column
        candidate = (uniform[..., column] * (last + 1)).astype(np.int64)
        taken = (chosen[..., :column] == candidate[..., None]).any(-1)
        chosen[..., column] = np.where(taken, last, candidate)
    return chosen


class EpisodeSampler:
    """Draws episodes from one split as a pure function of (seed, split, episode index).

    Episode i reads its own section of one Philox stream (Salmon et al. 2011), a counter-based generator that can jump to
    any position. An episode therefore does not depend on the batch, the process or the device.

    Args:
        source: the images of the split.
        split: name of the split; different splits read different streams.
        task: shape of the episodes.
        seed: any integer >= 0.
        device: device of the episodes. All images are copied to it once if they fit into half of its free memory; otherwise
            those of each batch are.

    Attributes:
        prepare: applied to the images ``[B, C, H, W]`` after they are scaled to 0..1; None: nothing.

    Raises:
        Problems: the split has fewer classes than ways, or a class has fewer images than shots + queries.
    """

    images_are_independent: ClassVar[bool] = True  # whether an image of a class may occur with any other

    def __init__(self, source: ClassImages, split: str, task: Task, seed: int, device: torch.device | str = "cpu") -> None:
        self.source, self.split, self.task, self.device = source, split, task, torch.device(device)
        raise_all(self.problems())
        room = free_memory(self.device)
        fits = room is None or source.images.nbytes <= room // 2
        self._images = source.images.to(self.device) if fits else source.images
        self._entropy = [seed, zlib.crc32(split.encode())]
        self._key = np.random.SeedSequence(self._entropy).generate_state(2, np.uint64)
        self.prepare: Callable[[Tensor], Tensor] | None = None

    def of_shape(self, task: Task) -> EpisodeSampler:
        """A sampler of the same images for a task of another shape, with random numbers of its own."""
        other = copy.copy(self)
        other.task = task
        entropy = [*self._entropy, task.ways, task.shots, task.queries]
        other._key = np.random.SeedSequence(entropy).generate_state(2, np.uint64)
        return other

    def problems(self) -> list[FslError]:
        """The reasons why the task cannot be drawn."""
        return task_problems(self.source.counts, self.split, self.task)

    def class_names(self, classes: Sequence[int]) -> list[str]:
        """Names of classes by their numbers in `Episodes.classes`."""
        return [self.source.names[number] for number in classes]

    def uniform(self, first: int, count: int, needed: int) -> np.ndarray:
        """float64 ``[count, needed]`` in [0, 1): the numbers of episodes ``first .. first+count-1``."""
        stride = -(-needed // 4)  # Philox advances four 64-bit numbers at a time
        stream = np.random.Generator(np.random.Philox(key=self._key).advance(first * stride))
        return stream.random((count, 4 * stride))[:, :needed]

    def indices(self, first: int, count: int) -> EpisodeIndices:
        """The classes and images of episodes ``first .. first+count-1``."""
        ways, per_class = self.task.ways, self.task.shots + self.task.queries
        needed = 2 * ways + 2 * ways * per_class
        uniform = self.uniform(first, count, needed)
        pick, shuffle = uniform[:, :ways], uniform[:, ways : 2 * ways]
        image_pick, image_shuffle = np.split(uniform[:, 2 * ways :].reshape(count, ways, -1), 2, axis=-1)

        # The order of the classes gives the labels; the order of the images assigns support and query. Both are uniform.
        classes = shuffled(draw_without_replacement(pick, len(self.source)), shuffle)
        images = shuffled(draw_without_replacement(image_pick, self.source.counts[classes]), image_shuffle)
        return EpisodeIndices(classes, images + self.source.offsets[classes][..., None])

    @property
    def problem(self) -> Problem:
        """Classification into the ways of the task."""
        return Classification(self.task.ways)

    def batch(self, first: int, count: int) -> Episodes:
        """Episodes ``first .. first+count-1`` on the sampler's device, pixels scaled to 0..1."""
        return self.batch_of(self.images, first, count)

    def batch_of(self, inputs: Callable[[Tensor], Tensor], first: int, count: int) -> Episodes:
        """Like `batch`, with the inputs returned by ``inputs`` for rows of the split (int64 ``[B]``), instead of `images`."""
        drawn = self.indices(first, count)
        rows, shots = torch.from_numpy(drawn.images), self.task.shots
        support, query = (inputs(each.flatten()) for each in (rows[:, :, :shots], rows[:, :, shots:]))
        support_y, query_y = self.labels(count)
        return Episodes(
            Examples(support.view(*support_y.shape, *support.shape[1:]), support_y),
            Examples(query.view(*query_y.shape, *query.shape[1:]), query_y),
            self.problem,
            seeds=self.seeds(first, count).to(self.device),
            classes=torch.from_numpy(drawn.classes).to(self.device),
        )

    def seeds(self, first: int, count: int) -> Tensor:
        """`Episodes.seeds` of episodes ``first .. first+count-1``, on the CPU."""
        return episode_seeds(int(self._key[0]), first, count)

    def images(self, rows: Tensor) -> Tensor:
        """Images of the split, float ``[B, C, H, W]`` in 0..1, its features ``[B, D]`` or words, int32 ``[B, L]``.

        Args:
            rows: int64 ``[B]`` on any device.
        """
        found = self.source.gather(rows, self._images).to(self.device)
        scaled = found.float().div_(255) if found.dtype == torch.uint8 else found
        return scaled if self.prepare is None else self.prepare(scaled)

    def labels(self, count: int) -> tuple[Tensor, Tensor]:
        """Labels of ``count`` episodes, the same in each: int64 ``[count, N*K]`` for support, ``[count, N*Q]`` for queries."""
        each_once = torch.arange(self.task.ways, device=self.device)
        support, query = (each_once.repeat_interleave(each) for each in (self.task.shots, self.task.queries))
        return support.expand(count, -1), query.expand(count, -1)

    def digest(self, count: int) -> str:
        """SHA-256 of the task, the class names, and the image indices and pixels of the first ``count`` episodes.

        Runs with the same digest were tested on the same episodes.
        """
        drawn = self.indices(0, count).images
        digest = hashlib.sha256(f"{self.task} {self.source.example_shape}".encode())
        digest.update("\n".join(self.source.names).encode())
        digest.update(np.ascontiguousarray(drawn, dtype="<i8").tobytes())
        for rows in torch.from_numpy(np.unique(drawn)).split(_HASHED):
            digest.update(self.source.gather(rows).numpy().tobytes())
        return digest.hexdigest()


def task_problems(counts: np.ndarray, split: str, task: Task) -> list[FslError]:
    """The reasons why ``task`` cannot be drawn from classes with ``counts`` images each; empty if it can be."""
    problems = []
    ways = task.smallest.ways if task.limited_by_classes else task.ways
    if ways > len(counts):
        what = f"{ways} ways, but the {split} split has {len(counts)} classes"
        problems.append(FslError(what, where="task.ways", hint=f"use at most {len(counts)}"))
    fewest = int(counts.min()) if len(counts) else 0
    needed, words = task.images_of_a_class()
    if needed > fewest:
        what = f"{words}, but a class of the {split} split has {fewest} images"
        hint = f"their sum may be at most {fewest}" if " + " in words else f"{needed} are needed"
        problems.append(FslError(what, where="task.shots, task.queries", hint=hint))
    return problems


def shuffled(values: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """The values in the order of the random numbers, along the last axis; both ``[..., n]``."""
    return np.take_along_axis(values, np.argsort(uniform, axis=-1, kind="stable"), axis=-1)
