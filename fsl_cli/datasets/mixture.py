"""Several data sets as one: every episode is of one of them, drawn by weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt

from fsl_cli.datasets.adapted import Adapted, adapted_to
from fsl_cli.datasets.dataset import Dataset, SplitName
from fsl_cli.episodes import Classification, Problem, Task
from fsl_cli.episodes.mixture_sampler import MixtureSampler
from fsl_cli.errors import FslError


class Mixture:
    """Data sets with classes: pictures, which are adapted to one shape, or vectors of one width.

    Training, validation and test episodes are drawn alike: each is of set s with probability ``weights[s] / sum(weights)``,
    independently of the others, and then drawn as that set draws it alone. The mean over the test episodes therefore estimates
    the score on this mixture, and its interval holds for new episodes of this mixture.

    Args:
        sets: the data sets by name, at least two.
        weights: one for each set; None: all the same.
        size: height and width of the pictures in pixels; None: those of the first set.
        channels: 1: grey, 3: colours; None: those of the first set.

    Raises:
        FslError: the sets cannot be mixed.
    """

    name = "mixture"
    problem_type: type[Problem] = Classification

    def __init__(
        self,
        sets: dict[str, Dataset],
        *,
        weights: list[Annotated[float, Gt(0)]] | None = None,
        size: Annotated[int, Ge(8)] | None = None,
        channels: Literal[1, 3] | None = None,
    ) -> None:
        if len(sets) < 2:
            raise FslError(f"{len(sets)} data sets are no mixture", where="dataset.sets", hint="for example [omniglot,glyphs]")
        if weights is not None and len(weights) != len(sets):
            what = f"{len(weights)} weights for {len(sets)} data sets"
            raise FslError(what, where="dataset.weights", hint=f"one for each of {', '.join(sets)}")
        for label, each in sets.items():
            if not issubclass(each.problem_type, Classification):
                what = f"{label} is {each.problem_type.name}, and only data sets with classes can be mixed"
                raise FslError(what, where="dataset.sets", hint="leave it out")
        self.weights = [1.0] * len(sets) if weights is None else weights
        self._given, self._size, self._channels = sets, size, channels
        self._shape: tuple[int, ...] | None = None

    def with_shape(self, shape: tuple[int, ...]) -> Mixture:
        """The same mixture with examples of this shape, whatever its options say."""
        changed = copy.copy(self)
        changed._shape = shape
        return changed

    @property
    def sets(self) -> dict[str, Dataset]:
        """The data sets by name, with examples of one shape.

        Raises:
            FslError: their examples cannot be given one shape.
        """
        shape = self.example_shape
        try:
            return {label: adapted_to(each, shape, "the mixture") for label, each in self._given.items()}
        except FslError as problem:
            shapes = ", ".join(f"{label} {list(each.example_shape)}" for label, each in self._given.items())
            hint = "pictures can be mixed with pictures, vectors with vectors of the same width"
            raise FslError(f"cannot be mixed: {shapes}", where="dataset.sets", hint=hint) from problem

    def adaptations(self) -> dict[str, str]:
        """How the pictures of each set are adapted, where they are."""
        return {label: str(each.adaptation) for label, each in self.sets.items() if isinstance(each, Adapted)}

    @property
    def example_shape(self) -> tuple[int, ...]:
        """Shape of every example."""
        first = tuple(next(iter(self._given.values())).example_shape)
        if self._shape is not None or len(first) != 3:
            return self._shape or first
        size = (self._size, self._size) if self._size else first[1:]
        return self._channels or first[0], *size

    def problem(self, task: Task) -> Problem:
        """Classification into the ways of the task."""
        return Classification(task.ways)

    def classes(self) -> int:
        """Number of classes in the training splits of all sets."""
        return int(sum(self._classes))

    def most_ways(self) -> int:
        """Ways that a training episode of every set can have."""
        return min(self._classes)

    @property
    def _classes(self) -> list[int]:
        return [each.classes() or 0 for each in self._given.values()]

    def task_problems(self, tasks: Mapping[SplitName, Task]) -> list[FslError]:
        """The reasons why a set cannot draw the tasks; for each setting, that of the first set that has one."""
        found: dict[str | None, FslError] = {}
        words = [label for label, each in self._given.items() if getattr(each, "vocabulary", None) is not None]
        if words:
            what = f"{', '.join(words)}: numbers of words, which mean other words in another set"
            return [FslError(what, where="dataset.sets", hint="choose an encoder of texts that makes vectors")]
        for label, each in self.sets.items():
            for problem in each.task_problems(tasks):
                found.setdefault(problem.where, FslError(f"{label}: {problem.what}", where=problem.where, hint=problem.hint))
        return list(found.values())

    def sampler(self, split: SplitName, task: Task, seed: int, device: torch.device | str = "cpu") -> MixtureSampler:
        """Episodes of a split of all sets; in training, classes of different sets have different numbers.

        Raises:
            FslError: a set draws other tasks than those it is asked for, as alphabets of Omniglot do in validation.
        """
        samplers = {label: each.sampler(split, task, seed, device) for label, each in self.sets.items()}
        for label, each in samplers.items():
            if each.task != task:
                what = f"{label} draws {each.task} in the {split} split, not {task}"
                raise FslError(what, where="dataset.sets", hint="use fewer ways, or leave it out")
        offsets = np.cumsum([0, *self._classes[:-1]]).tolist() if split == "train" else None
        return MixtureSampler(samplers, self.weights, split, seed, offsets)
