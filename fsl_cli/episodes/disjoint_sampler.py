"""Episodes in which examples that belong together are never on both sides: frames of a track, slices of a patient."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from fsl_cli.episodes.class_images import ClassImages
from fsl_cli.episodes.episodes import Task
from fsl_cli.episodes.sampler import EpisodeIndices, EpisodeSampler, draw_without_replacement, shuffled, task_problems
from fsl_cli.errors import FslError

_NUMBERS = 1 << 22  # random numbers drawn at once, 32 MiB


class DisjointSampler(EpisodeSampler):
    """Draws episodes whose support and query sets have no group in common, also not a group that several classes share.

    The examples of a class are put in random order, every order being equally likely. Its shots are the first K of them, so
    every example is as likely as without groups, and a class's shots may be of one group. Its queries are the first Q of
    those whose group has no example in the support set of the episode.

    Where the K shots of a class could take so many groups that fewer than Q examples remain, they come from the first g
    groups of the order, with the largest g that always leaves Q; see `group_limits`.

    Args:
        source: the examples of the split.
        groups: int64 ``[M]``, the group of each example of ``source``, 0, 1, ...; those of different classes may share one.
        split: name of the split.
        task: shape of the episodes.
        seed: any integer >= 0.
        device: device of the episodes.

    Raises:
        Problems: see `disjoint_task_problems`.
    """

    def __init__(
        self,
        source: ClassImages,
        groups: np.ndarray,
        split: str,
        task: Task,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.groups, self._group_count = groups, int(groups.max(initial=-1)) + 1
        super().__init__(source, split, task, seed, device)
        self._limits = group_limits(source.counts, groups, task)

    def problems(self) -> list[FslError]:
        """The reasons why the task cannot be drawn."""
        return disjoint_task_problems(self.source.counts, self.groups, self.split, self.task, lambda: self.source.names)

    def indices(self, first: int, count: int) -> EpisodeIndices:
        """The classes and images of episodes ``first .. first+count-1``."""
        block = max(1, _NUMBERS // (self.task.ways * int(self.source.counts.max()) + self._group_count))
        starts = range(first, first + count, block)
        drawn = [self._drawn(start, min(block, first + count - start)) for start in starts]
        return EpisodeIndices(*(np.concatenate(each) for each in zip(*drawn, strict=True)))

    def _drawn(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        ways, largest = self.task.ways, int(self.source.counts.max())
        uniform = self.uniform(first, count, (2 + largest) * ways)
        classes = shuffled(draw_without_replacement(uniform[:, :ways], len(self.source)), uniform[:, ways : 2 * ways])
        exists = np.arange(largest) < self.source.counts[classes][..., None]
        keys = uniform[:, 2 * ways :].reshape(count, ways, largest)
        order = np.argsort(np.where(exists, keys, 2.0), axis=-1)  # those that do not exist are last
        images = np.minimum(order + self.source.offsets[classes][..., None], len(self.groups) - 1)
        groups = self.groups[images]

        support = _first(self._of_first_groups(groups, exists, self._limits[classes]), self.task.shots)
        marked = np.zeros((count, self._group_count), dtype=bool)
        episode = np.arange(count)[:, None, None]
        marked[episode, np.take_along_axis(groups, support, -1)] = True
        query = _first(exists & ~marked[episode, groups], self.task.queries)
        return classes, np.take_along_axis(images, np.concatenate([support, query], -1), -1)

    def _of_first_groups(self, groups: np.ndarray, exists: np.ndarray, limits: np.ndarray) -> np.ndarray:
        """Which examples ``[T, N, :]`` are of one of the first ``limits`` ``[T, N]`` groups along the last axis."""
        if (limits >= self.task.shots).all():
            return exists
        found = np.zeros_like(exists)
        for number in range(int(limits.max())):
            waiting = exists & ~found
            following = np.take_along_axis(groups, waiting.argmax(-1)[..., None], -1)
            found |= waiting & (groups == following) & (number < limits)[..., None]
        return found


def _first(wanted: np.ndarray, number: int) -> np.ndarray:
    """The first ``number`` places along the last axis where ``wanted`` is true: int64 ``[..., number]``."""
    return np.argsort(~wanted, axis=-1, kind="stable")[..., :number]


def group_limits(counts: np.ndarray, groups: np.ndarray, task: Task) -> np.ndarray:
    """From how many groups at most the shots of each class come: int64 ``[classes]``, 0 where the task cannot be drawn.

    It is the largest number up to K that leaves Q queries, whichever groups these are and whichever groups the shots of the
    other classes of an episode are from.

    Args:
        counts: int64 ``[classes]``, examples per class.
        groups: int64 ``[counts.sum()]``, the group of each example, sorted by class.
        task: shape of the episodes.
    """
    total = int(groups.max(initial=0)) + 1
    pairs, sizes = np.unique(np.repeat(np.arange(len(counts)), counts) * total + groups, return_counts=True)
    classes, group = np.divmod(pairs, total)
    shared = np.bincount(group)[group] > 1
    ends = np.searchsorted(classes, np.arange(1, len(counts)))
    each = zip(np.split(sizes, ends), np.split(shared, ends), strict=True)
    return np.array([_limit(*of_class, task) for of_class in each], dtype=np.int64)


def _limit(sizes: np.ndarray, shared: np.ndarray, task: Task) -> int:
    """`group_limits` of one class, with the sizes of its groups and whether other classes have examples of them."""
    largest_shared = np.flatnonzero(shared)[np.argsort(-sizes[shared])]
    others = largest_shared[: (task.ways - 1) * task.shots]  # the most that the shots of other classes can take
    own = -np.sort(-np.delete(sizes, others))
    left = own.sum() - np.cumsum(own)  # after the shots of this class have taken the largest 1, 2, ... groups
    limit = min(task.shots, int((left >= task.queries).sum()))
    return limit if np.sort(sizes)[:limit].sum() >= task.shots else 0


def disjoint_task_problems(
    counts: np.ndarray, groups: np.ndarray, split: str, task: Task, names: Callable[[], Sequence[str]]
) -> list[FslError]:
    """The reasons why ``task`` cannot be drawn from such examples; empty if it can be.

    Args:
        counts: int64 ``[classes]``, examples per class.
        groups: int64 ``[counts.sum()]``, the group of each example, sorted by class.
        split: name of the split.
        task: shape of the episodes.
        names: returns the names of the classes; called if there are problems.
    """
    problems = task_problems(counts, split, task)
    if problems:
        return problems
    bad = np.flatnonzero(group_limits(counts, groups, task) == 0)
    if len(bad) == 0:
        return []
    first = int(bad[0])
    start = int(counts[:first].sum())
    mine = len(np.unique(groups[start : start + counts[first]]))
    what = (
        f"{task.shots} shots and {task.queries} queries of different groups: too many for {len(bad)} classes of the {split} "
        f"split, such as {names()[first]}, which has {counts[first]} examples in {mine} group{'s' * (mine > 1)}"
    )
    return [FslError(what, where="task.shots, task.queries", hint="use fewer, or leave these classes out")]
