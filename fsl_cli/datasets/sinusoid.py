"""Sinusoids: regression on randomly generated curves (Finn et al. 2017, "Model-agnostic meta-learning", section 5.1).

A task is the function y = A sin(x - phi) with amplitude A in 0.1..5 and phase phi in 0..pi. Support and query points have
x in -5..5. All are drawn uniformly, without noise. The splits are independent samples of the same distribution of tasks.
"""

from __future__ import annotations

import copy
import hashlib
import math
import zlib
from collections.abc import Mapping
from typing import Annotated

import numpy as np
import torch
from annotated_types import Gt

from fsl_cli.datasets.dataset import SplitName
from fsl_cli.episodes import Episodes, Examples, Problem, Regression, Task
from fsl_cli.episodes.randomness import episode_seeds, uniform
from fsl_cli.errors import FslError

_SMALLEST_AMPLITUDE = 0.1


class Sinusoid:
    """Distribution of sinusoid tasks; needs no data files.

    Args:
        amplitude: largest amplitude; the smallest is 0.1.
        reach: x is in ``-reach..reach``.

    Raises:
        FslError: ``amplitude`` is not greater than the smallest amplitude.
    """

    name = "sinusoid"
    problem_type: type[Problem] = Regression

    def __init__(self, *, amplitude: Annotated[float, Gt(0)] = 5.0, reach: Annotated[float, Gt(0)] = 5.0) -> None:
        if amplitude <= _SMALLEST_AMPLITUDE:
            what = f"{amplitude} is not greater than the smallest amplitude, {_SMALLEST_AMPLITUDE}"
            raise FslError(what, where="dataset.amplitude", hint="the paper has 5")
        self.amplitude, self.reach = amplitude, reach

    @property
    def example_shape(self) -> tuple[int, ...]:
        """``(1,)``: an example is one number."""
        return (1,)

    def problem(self, task: Task) -> Problem:
        """Regression of one number."""
        return Regression()

    def classes(self) -> int | None:
        """None: there are no classes."""
        return None

    def task_problems(self, tasks: Mapping[SplitName, Task]) -> list[FslError]:
        """Always empty: any number of points can be drawn."""
        return []

    def sampler(self, split: SplitName, task: Task, seed: int, device: torch.device | str = "cpu") -> SinusoidSampler:
        """Episodes of a split."""
        return SinusoidSampler(self, split, task, seed, device)


class SinusoidSampler:
    """Samples sinusoid tasks as a pure function of (seed, split, episode index).

    The random numbers of an episode come from `episodes.randomness.uniform` for its seed, in the order amplitude, phase, x
    of the support points, x of the query points. Episodes with more queries thus have the same curves and support points.

    Args:
        source: the distribution of tasks.
        split: name of the split; different splits read different streams.
        task: ``shots`` support and ``queries`` query points.
        seed: any integer >= 0.
        device: device of the episodes.
    """

    def __init__(self, source: Sinusoid, split: str, task: Task, seed: int, device: torch.device | str = "cpu") -> None:
        self.source, self.task, self.problem, self.device = source, task, source.problem(task), torch.device(device)
        self._entropy = [seed, zlib.crc32(split.encode())]
        self._key = int(np.random.SeedSequence(self._entropy).generate_state(1, np.uint64)[0])

    def of_shape(self, task: Task) -> SinusoidSampler:
        """A sampler of the same distribution for a task of another shape, with random numbers of its own."""
        other = copy.copy(self)
        other.task = task
        entropy = [*self._entropy, task.shots, task.queries]
        other._key = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
        return other

    def batch(self, first: int, count: int) -> Episodes:
        """Episodes ``first .. first+count-1``: x and y float32 ``[T, K, 1]`` and ``[T, Q, 1]``."""
        seeds = episode_seeds(self._key, first, count)
        amplitude, phase, places = self._curves(seeds)
        x = self.source.reach * (2 * places - 1)
        y = amplitude * torch.sin(x - phase)
        sizes = [self.task.shots, self.task.queries]
        support, query = (Examples(*each) for each in zip(x.split(sizes, 1), y.split(sizes, 1), strict=True))
        return Episodes(support, query, self.problem, seeds).to(self.device)

    def _curves(self, seeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Amplitudes and phases ``[T, 1, 1]``, and relative positions of the points ``[T, K + Q, 1]`` in 0..1."""
        drawn = uniform(seeds, (2 + self.task.shots + self.task.queries, 1), "sinusoid")
        amplitude, phase, places = drawn.split([1, 1, drawn.shape[1] - 2], dim=1)
        smallest = _SMALLEST_AMPLITUDE
        return smallest + (self.source.amplitude - smallest) * amplitude, math.pi * phase, places

    def digest(self, count: int) -> str:
        """SHA-256 of the points of the first ``count`` episodes."""
        drawn = self.batch(0, count).to("cpu")
        digest = hashlib.sha256(f"sinusoid {self.task.shots} {self.task.queries}".encode())
        for examples in (drawn.support, drawn.query):
            digest.update(torch.cat([examples.x, examples.y], -1).numpy().astype("<f4").tobytes())
        return digest.hexdigest()
