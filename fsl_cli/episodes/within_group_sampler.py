"""Episodes whose classes all come from one group of classes: the characters of one alphabet, for example."""

from __future__ import annotations

import numpy as np
import torch

from fsl_cli.episodes.class_images import ClassImages
from fsl_cli.episodes.sampler import EpisodeIndices, EpisodeSampler, draw_without_replacement, shuffled, task_problems
from fsl_cli.episodes.task import Task
from fsl_cli.errors import FslError


class WithinGroupSampler(EpisodeSampler):
    """Draws episodes within one group of classes, as Lake et al. (2015) test within alphabets: the classes are more alike.

    The group is drawn first, each with the same probability, then N of its classes. Groups with fewer than N classes are not
    drawn.

    Args:
        source: the images of the split.
        groups: int64 ``[classes]``, the group of each class of ``source``, 0, 1, ...
        split: name of the split.
        task: shape of the episodes.
        seed: any integer >= 0.
        device: device of the episodes.

    Raises:
        Problems: see `within_group_problems`.
    """

    images_are_independent = False

    def __init__(
        self, source: ClassImages, groups: np.ndarray, split: str, task: Task, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        self.groups = groups
        self._sizes = np.bincount(groups)
        self._classes = np.argsort(groups, kind="stable")  # those of a group follow each other
        self._starts = np.cumsum(self._sizes) - self._sizes
        super().__init__(source, split, task, seed, device)

    def problems(self) -> list[FslError]:
        """The reasons why the task cannot be drawn."""
        return within_group_problems(self.source.counts, self.groups, self.split, self.task)

    def indices(self, first: int, count: int) -> EpisodeIndices:
        """The classes and images of episodes ``first .. first+count-1``."""
        ways, per_class = self.task.ways, self.task.shots + self.task.queries
        uniform = self.uniform(first, count, 1 + 2 * ways + 2 * ways * per_class)
        large_enough = np.flatnonzero(self._sizes >= ways)
        groups = large_enough[(uniform[:, 0] * len(large_enough)).astype(np.int64)]
        pick, order = uniform[:, 1 : 1 + ways], uniform[:, 1 + ways : 1 + 2 * ways]
        image_pick, image_order = np.split(uniform[:, 1 + 2 * ways :].reshape(count, ways, -1), 2, axis=-1)

        members = shuffled(draw_without_replacement(pick, self._sizes[groups]), order)
        classes = self._classes[self._starts[groups][:, None] + members]
        images = shuffled(draw_without_replacement(image_pick, self.source.counts[classes]), image_order)
        return EpisodeIndices(classes, images + self.source.offsets[classes][..., None])


def within_group_problems(counts: np.ndarray, groups: np.ndarray, split: str, task: Task) -> list[FslError]:
    """The reasons why ``task`` cannot be drawn within one of the groups of classes with ``counts`` images each."""
    most = int(np.bincount(groups).max())
    problems = [each for each in task_problems(counts, split, task) if each.where != "task.ways"]
    if task.ways > most:
        what = f"{task.ways} ways, but no group of classes of the {split} split has more than {most}"
        problems.insert(0, FslError(what, where="task.ways", hint=f"use at most {most}"))
    return problems
