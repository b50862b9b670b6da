"""Episodes of different sizes, and how they are put into batches: those of one shape follow each other."""

from __future__ import annotations

import hashlib
import itertools
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from fsl_cli.episodes.class_sizes import in_range
from fsl_cli.episodes.episodes import Episodes, joined
from fsl_cli.episodes.imbalanced_sampler import ImbalancedSampler
from fsl_cli.episodes.problem import Problem
from fsl_cli.episodes.randomness import seeds_of, uniform64
from fsl_cli.episodes.sampler import EpisodeSampler, Sampler
from fsl_cli.episodes.task import Task
from fsl_cli.errors import FslError


@runtime_checkable
class OrderingSampler(Protocol):
    """A sampler whose episodes differ in size."""

    def order(self, first: int, count: int) -> Sequence[int]:
        """The numbers of episodes ``first .. first+count-1``, those of one shape next to each other."""

    def batches(self, numbers: Sequence[int]) -> Iterator[Episodes]:
        """The episodes with these numbers, in their order: as many as have one shape at a time."""


def order(sampler: Sampler, first: int, count: int) -> Sequence[int]:
    """The numbers of episodes ``first .. first+count-1`` in the order in which they are best computed."""
    return sampler.order(first, count) if isinstance(sampler, OrderingSampler) else range(first, first + count)


def batches(sampler: Sampler, numbers: Sequence[int]) -> Iterator[Episodes]:
    """The episodes with the numbers of a part of `order`, in batches of one number of ways."""
    if isinstance(sampler, OrderingSampler):
        yield from sampler.batches(numbers)
    else:
        yield sampler.batch(numbers[0], len(numbers))


class UnevenSampler:
    """Draws the sizes of every episode, then the episode from a sampler of that shape.

    The sizes are a pure function of (seed, split, episode number), and every shape has random numbers of its own. Episodes
    come in batches of one shape; they have padding only if their classes have different numbers of shots or queries.

    Args:
        even: draws episodes of the split; a sampler that has ``of_shape``.
        task: the sizes; of Meta-Dataset's sampling, no more ways than ``even`` has classes are drawn.
        split: name of the split; different splits read different streams.
        seed: any integer >= 0.

    Raises:
        FslError: the data set cannot draw such episodes.
    """

    def __init__(self, even: Sampler, task: Task, split: str, seed: int) -> None:
        if not hasattr(even, "of_shape") or not (task.balanced or isinstance(even, EpisodeSampler)):
            raise FslError("its episodes cannot be of different sizes", where="dataset", hint="use numbers instead of ranges")
        if isinstance(even, EpisodeSampler) and task.limited_by_classes:
            task = task.with_at_most(len(even.source))
        self.even, self.task = even, task
        self.problem: Problem = even.of_shape(Task(task.ways, task.shots, task.queries)).problem
        entropy = [seed, zlib.crc32(split.encode()), zlib.crc32(b"sizes")]
        self._key = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
        self._samplers: dict[Task, Any] = {}
        self._sampler(self.shapes([0])[0])  # which may raise

    def order(self, first: int, count: int) -> Sequence[int]:
        """The numbers of episodes ``first .. first+count-1``, those of one shape next to each other."""
        sizes = self._sizes(range(first, first + count))
        return [first + int(row) for row in np.lexsort(sizes.T[::-1])]

    def batches(self, numbers: Sequence[int]) -> Iterator[Episodes]:
        """The episodes with these numbers, in their order: as many as have one shape at a time."""
        yield from self._batches(numbers, lambda sampler, first, count: sampler.batch(first, count))

    def batches_of(self, inputs: Callable[[Tensor], Tensor], numbers: Sequence[int]) -> Iterator[Episodes]:
        """Like `batches`, with the inputs that `EpisodeSampler.batch_of` takes."""
        yield from self._batches(numbers, lambda sampler, first, count: sampler.batch_of(inputs, first, count))

    def batch(self, first: int, count: int) -> Episodes:
        """Episodes ``first .. first+count-1``, which must have one shape, as a single one has.

        Raises:
            FslError: their shapes differ.
        """
        found = list(self.batches(range(first, first + count)))
        if len(found) > 1:
            raise FslError("the episodes differ in size", where="task", hint="take them one at a time")
        return found[0]

    def shapes(self, numbers: Sequence[int]) -> list[Task]:
        """The shapes of the episodes with these numbers, each with the drawing that is left for its classes."""
        return [self._shape(*sizes) for sizes in self._sizes(numbers).tolist()]

    def class_names(self, classes: Sequence[int]) -> list[str]:
        """The names of classes of episodes, whose numbers are `Episodes.classes`."""
        name = getattr(self.even, "class_names", lambda classes: [str(each) for each in classes])
        return list(name(classes))

    def digest(self, count: int) -> str:
        """SHA-256 of the task, and of the inputs and targets of the first ``count`` episodes, images by their index.

        Runs with the same digest were tested on the same episodes.
        """
        digest = hashlib.sha256(str(self.task).encode())
        by_index = isinstance(self.even, EpisodeSampler)
        for number in range(count):
            (episode,) = self.batches_of(_itself, [number]) if by_index else self.batches([number])
            for examples in (episode.support, episode.query):
                digest.update(f"{list(examples.x.shape)}".encode())
                digest.update(examples.x.cpu().numpy().tobytes() + examples.y.cpu().numpy().tobytes())
        if isinstance(self.even, EpisodeSampler):
            digest.update("\n".join(self.even.source.names).encode())
            digest.update(self.even.source.images[self.occurring(range(count))].numpy().tobytes())
        return digest.hexdigest()

    def occurring(self, numbers: Sequence[int]) -> Tensor:
        """Indices of the images that occur in the episodes with these numbers, int64, in ascending order."""
        found = [
            examples.x[examples.real].cpu()
            for episodes in self.batches_of(_itself, numbers)
            for examples in (episodes.support, episodes.query)
        ]
        return torch.cat(found).unique()

    def _sizes(self, numbers: Sequence[int]) -> np.ndarray:
        """Ways, shots and queries of the episodes, int64 ``[T, 3]``; what is drawn for every class is at its largest."""
        task, how = self.task, self.task.drawing
        seeds = seeds_of(self._key, torch.tensor(list(numbers)))

        def drawn(low: int, high: int, purpose: str) -> np.ndarray:
            return in_range(uniform64(seeds, (1,), purpose).numpy()[:, 0], low, high)

        assert how is not None
        per_class = how.shots_per == "class"
        ways = drawn(how.ways, task.ways, "ways")
        shots = drawn(task.shots if per_class else how.shots, task.shots, "shots")
        queries = drawn(how.queries, task.queries, "queries") if how.images is None else how.images - shots
        return np.stack([ways, shots, queries], 1)

    def _shape(self, ways: int, shots: int, queries: int) -> Task:
        if self.task.balanced:
            return Task(ways, shots, queries)
        per_class = self.task.drawing is not None and self.task.drawing.shots_per == "class"
        return self.task.with_sizes(ways, None if per_class else shots, queries)

    def _sampler(self, shape: Task) -> Any:
        """The sampler of the episodes of a shape."""
        if shape not in self._samplers:
            even: Any = self.even
            self._samplers[shape] = even.of_shape(shape) if shape.balanced else ImbalancedSampler(even, shape)
        return self._samplers[shape]

    def _batches(self, numbers: Sequence[int], draw: Callable[[Any, int, int], Episodes]) -> Iterator[Episodes]:
        shapes = self.shapes(numbers)
        for shape, group in itertools.groupby(zip(shapes, numbers, strict=True), lambda each: each[0]):
            sampler = self._sampler(shape)
            yield joined([draw(sampler, *run) for run in _runs([number for _, number in group])])


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Numbers as runs of consecutive ones: the first of each and how many."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        first, count = runs[-1] if runs else (number, 0)
        if number == first + count and runs:
            runs[-1] = first, count + 1
        else:
            runs.append((number, 1))
    return runs


def _itself(rows: Tensor) -> Tensor:
    return rows
