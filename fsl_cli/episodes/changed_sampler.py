"""Episodes of another sampler, changed as they are drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from fsl_cli.episodes import uneven_sampler
from fsl_cli.episodes.episodes import Episodes
from fsl_cli.episodes.problem import Problem
from fsl_cli.episodes.sampler import Sampler
from fsl_cli.episodes.task import Task


class ChangedSampler:
    """The episodes of any sampler, of even or uneven sizes, changed one by one.

    Args:
        sampler: draws the episodes.
        change: changes a batch of them, each episode as it would alone.
    """

    def __init__(self, sampler: Sampler, change: Callable[[Episodes], Episodes]) -> None:
        self._sampler, self._change = sampler, change

    @property
    def task(self) -> Task:
        """Shape of the episodes."""
        return self._sampler.task

    @property
    def problem(self) -> Problem:
        """The prediction problem of the episodes."""
        return self._sampler.problem

    def batch(self, first: int, count: int) -> Episodes:
        """Episodes ``first .. first+count-1``."""
        return self._change(self._sampler.batch(first, count))

    def order(self, first: int, count: int) -> Sequence[int]:
        """See `uneven_sampler.order`."""
        return uneven_sampler.order(self._sampler, first, count)

    def batches(self, numbers: Sequence[int]) -> Iterator[Episodes]:
        """See `uneven_sampler.batches`."""
        yield from map(self._change, uneven_sampler.batches(self._sampler, numbers))

    def digest(self, count: int) -> str:
        """A hash of the first ``count`` episodes before they are changed."""
        return self._sampler.digest(count)
