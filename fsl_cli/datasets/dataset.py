"""The data set interface, and the base classes of data sets with classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, Protocol

import numpy as np
import torch

from fsl_cli.datasets.review import Read
from fsl_cli.datasets.status import Status
from fsl_cli.episodes import Classification, EpisodeSampler, Problem, Task
from fsl_cli.episodes.class_images import ClassImages
from fsl_cli.episodes.sampler import Sampler, task_problems
from fsl_cli.errors import FslError

SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")


class Dataset(Protocol):
    """The interface of a data set.

    Two more methods are for ``fsl data``, and a data set may lack them: ``status() -> Status``, where it is read from files,
    and ``examples() -> Iterator[Read]``, where its examples can be enumerated.

    Attributes:
        name: its name on the command line.
        problem_type: the type of problem of its episodes.
    """

    name: str
    problem_type: type[Problem]

    @property
    def example_shape(self) -> tuple[int, ...]:
        """Shape of one example: ``(C, H, W)`` of images, ``(D,)`` of features, ``(L,)`` of words."""

    def problem(self, task: Task) -> Problem:
        """The prediction problem of episodes with the shape ``task``."""

    def classes(self) -> int | None:
        """Number of classes in the training split; None if the data set has no classes."""

    def task_problems(self, tasks: Mapping[SplitName, Task]) -> list[FslError]:
        """The reasons why the tasks of the splits cannot be drawn; empty if all can be."""

    def sampler(self, split: SplitName, task: Task, seed: int, device: torch.device | str = "cpu") -> Sampler:
        """Episodes of a split, a pure function of seed, split and index."""


class ExampleClasses(ABC):
    """A data set of examples grouped by class, from whose splits N-way K-shot episodes are drawn."""

    name: str
    problem_type: type[Problem] = Classification

    @abstractmethod
    def split(self, name: SplitName) -> ClassImages:
        """The examples of one split."""

    @abstractmethod
    def counts(self, name: SplitName) -> np.ndarray:
        """int64 ``[classes]``, examples per class of one split; does not read images."""

    @property
    @abstractmethod
    def example_shape(self) -> tuple[int, ...]:
        """Shape of every example."""

    def status(self) -> Status:
        """What there is of it on this machine; here: it needs no files."""
        return Status()

    def examples(self) -> Iterator[Read]:
        """Every example of every split, as it is read from the files; here: as `split` returns it."""
        for split in SPLITS:
            images = self.split(split)
            for label, count, first in zip(images.names, images.counts, images.offsets, strict=True):
                for number in range(count):
                    content = images.gather(torch.tensor([first + number]))[0].numpy()
                    yield Read(split, label, f"{label} number {number + 1}", content)

    @property
    def vocabulary(self) -> Sequence[str] | None:
        """The words, where examples are numbers of words: word k has the number k + 2. None: they are something else."""
        return None

    def problem(self, task: Task) -> Problem:
        """Classification into the ways of the task."""
        return Classification(task.ways)

    def classes(self) -> int | None:
        """Number of classes in the training split."""
        return len(self.counts("train"))

    def task_problems(self, tasks: Mapping[SplitName, Task]) -> list[FslError]:
        """Too many ways for a split or too many images per class; for each setting, the error of the smallest split."""
        found: dict[str | None, FslError] = {}
        for split in sorted(tasks, key=lambda split: len(self.counts(split))):
            for problem in task_problems(self.counts(split), split, tasks[split]):
                found.setdefault(problem.where, problem)
        return list(found.values())

    def sampler(self, split: SplitName, task: Task, seed: int, device: torch.device | str = "cpu") -> EpisodeSampler:
        """Episodes of a split, with the examples on ``device``."""
        return EpisodeSampler(self.split(split), split, task, seed, device)


class ImageClasses(ExampleClasses):
    """A data set of images grouped by class."""

    @property
    @abstractmethod
    def image_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of every image."""

    @property
    def example_shape(self) -> tuple[int, ...]:
        """``(C, H, W)`` of every image."""
        return self.image_shape
