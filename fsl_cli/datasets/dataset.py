"""What a run asks of a data set, and what data sets of classes of images have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal, Protocol

import numpy as np
import torch

from fsl_cli.episodes import Classification, EpisodeSampler, Problem, Task
from fsl_cli.episodes.class_images import ClassImages
from fsl_cli.episodes.sampler import Sampler, task_problems
from fsl_cli.errors import FslError

SplitName = Literal["train", "val", "test"]


class Dataset(Protocol):
    """What a run asks of a data set.

    Attributes:
        name: what it is called on the command line.
        problem_type: what kind of problem its episodes pose.
    """

    name: str
    problem_type: type[Problem]

    @property
    def example_shape(self) -> tuple[int, ...]:
        """Shape of one example: ``(C, H, W)`` of images, ``(D,)`` of features."""

    def problem(self, task: Task) -> Problem:
        """What episodes of the shape ``task`` ask to be predicted."""

    def classes(self) -> int | None:
        """Number of classes of the training split; None: it has none."""

    def task_problems(self, tasks: Mapping[SplitName, Task]) -> list[FslError]:
        """What keeps the task of each split from being drawn; empty when nothing does."""

    def sampler(self, split: SplitName, task: Task, seed: int, device: torch.device | str = "cpu") -> Sampler:
        """Episodes of a split, a pure function of seed, split and index."""


class ImageClasses(ABC):
    """A data set of classes of images, from whose splits N-way K-shot episodes are drawn."""

    name: str
    problem_type: type[Problem] = Classification

    @abstractmethod
    def split(self, name: SplitName) -> ClassImages:
        """The images of one split."""

    @abstractmethod
    def counts(self, name: SplitName) -> np.ndarray:
        """int64 ``[classes]``, images per class of one split, without reading an image."""

    @property
    @abstractmethod
    def image_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of every image."""

    @property
    def example_shape(self) -> tuple[int, ...]:
        """``(C, H, W)`` of every image."""
        return self.image_shape

    def problem(self, task: Task) -> Problem:
        """Classification into the ways of the task."""
        return Classification(task.ways)

    def classes(self) -> int | None:
        """Number of classes of the training split."""
        return len(self.counts("train"))

    def task_problems(self, tasks: Mapping[SplitName, Task]) -> list[FslError]:
        """More ways than a split has classes, more images than a class has: for each setting the tightest split."""
        found: dict[str | None, FslError] = {}
        for split in sorted(tasks, key=lambda split: len(self.counts(split))):
            for problem in task_problems(self.counts(split), split, tasks[split]):
                found.setdefault(problem.where, problem)
        return list(found.values())

    def sampler(self, split: SplitName, task: Task, seed: int, device: torch.device | str = "cpu") -> EpisodeSampler:
        """Episodes of a split, its images on ``device``."""
        return EpisodeSampler(self.split(split), split, task, seed, device)
