"""A data set whose pictures are given the channels and the size of another one's."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fsl_cli.datasets.dataset import Dataset, SplitName
from fsl_cli.episodes import Problem, Task
from fsl_cli.episodes.adapted_sampler import PixelAdaptation, adapted_sampler
from fsl_cli.episodes.sampler import Sampler
from fsl_cli.errors import FslError


def adapted_to(dataset: Dataset, shape: tuple[int, ...], whose: str) -> Dataset:
    """The data set with examples of this shape: itself where it has them already.

    Args:
        dataset: any data set.
        shape: of the examples that are wanted.
        whose: what needs them, for the message.

    Raises:
        FslError: its examples cannot be given this shape.
    """
    if hasattr(dataset, "with_shape"):
        return dataset.with_shape(tuple(shape))
    found = tuple(dataset.example_shape)
    if found == tuple(shape):
        return dataset
    if len(found) == len(shape) == 3 and {found[0], shape[0]} <= {1, 3}:
        return Adapted(dataset, PixelAdaptation(found, tuple(shape)))
    what = f"an example of {dataset.name} has the shape {list(found)}, and {whose} takes {list(shape)}"
    hint = "pictures of 1 or 3 channels are adapted to each other; vectors need the same width"
    raise FslError(what, where="dataset", hint=hint)


def adaptations(dataset: Dataset) -> dict[str, str]:
    """How pictures are adapted, by the name of the data set they are from; empty where they are not."""
    return dataset.adaptations() if hasattr(dataset, "adaptations") else {}


class Adapted:
    """A data set of pictures, each adapted when an episode is drawn.

    Args:
        dataset: the pictures.
        adaptation: of its shape to that of the examples.
    """

    def __init__(self, dataset: Dataset, adaptation: PixelAdaptation) -> None:
        self.dataset, self.adaptation = dataset, adaptation
        self.name, self.problem_type = dataset.name, dataset.problem_type

    @property
    def example_shape(self) -> tuple[int, ...]:
        """``(C, H, W)`` after the adaptation."""
        return self.adaptation.target

    def adaptations(self) -> dict[str, str]:
        """How the pictures are adapted."""
        return {self.name: str(self.adaptation)}

    def problem(self, task: Task) -> Problem:
        """That of the data set."""
        return self.dataset.problem(task)

    def classes(self) -> int | None:
        """Those of the data set."""
        return self.dataset.classes()

    def task_problems(self, tasks: Mapping[SplitName, Task]) -> list[FslError]:
        """Those of the data set."""
        return self.dataset.task_problems(tasks)

    def sampler(self, split: SplitName, task: Task, seed: int, device: torch.device | str = "cpu") -> Sampler:
        """The data set's episodes with adapted pictures."""
        return adapted_sampler(self.dataset.sampler(split, task, seed, device), self.adaptation)
