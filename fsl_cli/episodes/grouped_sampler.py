"""Episodes whose classes are groups of the classes of a split: alphabets of characters, for example."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fsl_cli.episodes.class_images import ClassImages
from fsl_cli.episodes.sampler import EpisodeIndices, EpisodeSampler, draw_without_replacement, shuffled
from fsl_cli.episodes.task import Task
from fsl_cli.errors import FslError


class GroupedSampler(EpisodeSampler):
    """Draws episodes of multimodal classes (Allen et al. 2019, section 4.1), in which support and queries share the modes.

    An episode has N groups, and of each ``modes`` classes of the split. The K shots and Q queries of a group are shared evenly
    by these classes: with ten modes, 10-shot is one image of each.

    Args:
        source: the images of the split.
        groups: int64 ``[classes]``, the group of each class of ``source``, 0, 1, ...
        modes: classes of a group that occur in an episode, >= 1.
        split: name of the split.
        task: shape of the episodes; shots and queries are multiples of ``modes``.
        seed: any integer >= 0.
        device: device of the episodes.

    Raises:
        Problems: see `grouped_task_problems`.
    """

    images_are_independent = False

    def __init__(
        self,
        source: ClassImages,
        groups: np.ndarray,
        modes: int,
        split: str,
        task: Task,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.groups, self.modes = groups, modes
        self._sizes = np.bincount(groups)
        self._classes = np.argsort(groups, kind="stable")  # those of a group follow each other
        self._starts = np.cumsum(self._sizes) - self._sizes
        super().__init__(source, split, task, seed, device)

    def problems(self) -> list[FslError]:
        """The reasons why the task cannot be drawn."""
        return grouped_task_problems(self.source.counts, self.groups, self.modes, self.split, self.task)

    def class_names(self, classes: Sequence[int]) -> list[str]:
        """What the names of all classes of a group have before a ``/``; or the number of the group."""
        members = [[self.source.names[i] for i in np.flatnonzero(self.groups == group).tolist()] for group in classes]
        before = [{name.rpartition("/")[0] for name in names} for names in members]
        return [next(iter(each)) if len(each) == 1 else f"group {k}" for each, k in zip(before, classes, strict=True)]

    def indices(self, first: int, count: int) -> EpisodeIndices:
        """The groups, in place of classes, and the images of episodes ``first .. first+count-1``."""
        ways, modes, shots = self.task.ways, self.modes, self.task.shots // self.modes
        per_class = shots + self.task.queries // modes
        shapes = [(ways,), (ways, modes), (ways, modes, per_class)]
        sizes = [int(np.prod(shape)) for shape in shapes for _ in range(2)]
        numbers = np.split(self.uniform(first, count, sum(sizes)), np.cumsum(sizes)[:-1], axis=1)
        picks, orders = ([n.reshape(count, *s) for n, s in zip(numbers[i::2], shapes, strict=True)] for i in (0, 1))

        groups = shuffled(draw_without_replacement(picks[0], len(self._sizes)), orders[0])
        members = shuffled(draw_without_replacement(picks[1], self._sizes[groups]), orders[1])
        classes = self._classes[self._starts[groups][..., None] + members]
        images = shuffled(draw_without_replacement(picks[2], self.source.counts[classes]), orders[2])
        images = images + self.source.offsets[classes][..., None]
        support, query = (each.reshape(count, ways, -1) for each in (images[..., :shots], images[..., shots:]))
        return EpisodeIndices(groups, np.concatenate([support, query], axis=-1))


def grouped_task_problems(counts: np.ndarray, groups: np.ndarray, modes: int, split: str, task: Task) -> list[FslError]:
    """The reasons why ``task`` cannot be drawn from groups of classes with ``counts`` images each; empty if it can be."""
    sizes = np.bincount(groups)
    problems = []
    if task.ways > len(sizes):
        what = f"{task.ways} ways, but the {split} split has {len(sizes)} groups of classes"
        problems.append(FslError(what, where="task.ways", hint=f"use at most {len(sizes)}"))
    if modes > sizes.min():
        what = f"{modes} classes of a group, but one of the {split} split has {sizes.min()}"
        problems.append(FslError(what, where="dataset", hint=f"use at most {sizes.min()}"))
    if not task.balanced or (modes > 1 and not all(isinstance(task.sizes[name], int) for name in ("shots", "queries"))):
        what = "the classes of a group share as many shots and queries in every episode"
        problems.append(FslError(what, where="task.shots, task.queries", hint="use one number of shots and one of queries"))
    elif task.shots % modes or task.queries % modes:
        what = f"{task.shots} shots and {task.queries} queries cannot be shared evenly by the {modes} classes of a group"
        problems.append(FslError(what, where="task.shots, task.queries", hint=f"use multiples of {modes}"))
    elif (task.shots + task.queries) // modes > counts.min():
        most = counts.min() * modes
        what = f"{task.shots} shots + {task.queries} queries, but {modes} classes of the {split} split have {most} images"
        hint = f"their sum may be at most {most}"
        problems.append(FslError(what, where="task.shots, task.queries", hint=hint))
    return problems
