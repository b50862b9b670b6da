"""Episodes: their examples, and the algorithm's random numbers for them.

A classification episode is an N-way K-shot task: K labelled support images and Q query images for each of N classes.
A regression episode has K support points and Q query points of one function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fsl_cli.episodes.problem import Problem


@dataclass(frozen=True)
class Examples:
    """The support or the query sets of T episodes, B rows each.

    Attributes:
        x: inputs ``[T, B, ...]``: pixels in 0..1 ``[T, B, C, H, W]``, features, a real number; int32 numbers of words.
        y: targets: int64 labels ``[T, B]``, or float ``[T, B, O]``.
        mask: bool ``[T, B]``, true for examples and false for padding rows; each episode has at least one example.
            Padding rows hold finite numbers and valid labels, which must not affect any result. None: no padding. Classes
            may have different numbers of examples with a mask or without.
    """

    x: Tensor
    y: Tensor
    mask: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Examples:
        """Apply ``change`` to every tensor."""
        return Examples(change(self.x), change(self.y), None if self.mask is None else change(self.mask))

    def padded(self, rows: int) -> Examples:
        """The same examples with padding after them, copies of the first one, so that there are ``rows`` of each episode."""
        more = rows - self.y.shape[1]
        if not more:
            return self
        x, y = (torch.cat([each, each[:, :1].expand(-1, more, *each.shape[2:])], dim=1) for each in (self.x, self.y))
        return Examples(x, y, torch.cat([self.real, self.real.new_zeros(len(y), more)], dim=1))

    def followed_by(self, other: Examples) -> Examples:
        """These rows, followed by those of ``other``."""
        mask = None
        if self.mask is not None or other.mask is not None:
            mask = torch.cat([self.real, other.real], dim=1)
        return Examples(torch.cat([self.x, other.x], dim=1), torch.cat([self.y, other.y], dim=1), mask)

    @property
    def real(self) -> Tensor:
        """The mask; all true if it is None."""
        return torch.ones(self.y.shape[:2], dtype=torch.bool, device=self.y.device) if self.mask is None else self.mask


def spread(values: Tensor, mask: Tensor) -> Tensor:
    """Scatter values ``[R, ...]`` to the R rows where ``mask``, bool ``[B]``, is true: ``[B, ...]``, other rows zero."""
    return values.new_zeros(len(mask), *values.shape[1:]).index_put((mask,), values)


@dataclass(frozen=True)
class Episodes:
    """T episodes of one shape.

    Attributes:
        support: labelled examples to learn from.
        query: examples to predict; their targets are used to score the predictions.
        problem: the prediction problem.
        seeds: int64 ``[T]``, seeds of the algorithm's own random numbers, see `episodes.randomness`; default: zeros.
        classes: for classification, int64 ``[T, N]``: the classes of the split with labels 0..N-1; default: -1, unknown.
    """

    support: Examples
    query: Examples
    problem: Problem
    seeds: Tensor = None  # type: ignore[assignment]
    classes: Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        count, device = len(self), self.support.y.device
        if self.seeds is None:
            object.__setattr__(self, "seeds", torch.zeros(count, dtype=torch.int64, device=device))
        if self.classes is None:
            unknown = torch.full((count, self.problem.outputs), -1, device=device)
            object.__setattr__(self, "classes", unknown)

    def __len__(self) -> int:
        """Number of episodes, T."""
        return len(self.support.y)

    @property
    def ways(self) -> int:
        """N, the number of classes of a classification episode."""
        return self.problem.outputs

    @property
    def masked(self) -> bool:
        """Whether there may be padding rows."""
        return self.support.mask is not None or self.query.mask is not None

    def split(self, size: int) -> Iterator[Episodes]:
        """Yield these episodes in order, at most ``size`` at a time."""
        for first in range(0, len(self), size):
            part = slice(first, first + size)
            yield self._with(lambda values: values[part])  # noqa: B023 - called at once

    def without_padding(self) -> Episodes:
        """The same episode without its padding rows; only of one episode, since several may differ in size."""
        assert len(self) == 1
        support, query = (Examples(each.x[each.real][None], each.y[each.real][None]) for each in (self.support, self.query))
        return replace(self, support=support, query=query)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Episodes:
        """The same episodes on ``device``, with inputs and floating-point targets converted to ``dtype``."""
        return self._with(lambda values: values.to(device=device, dtype=dtype if values.is_floating_point() else None))

    def with_embeddings(self, support: Tensor, query: Tensor) -> Episodes:
        """The same episodes with the inputs replaced by embeddings ``[T, B, ...]``."""
        return replace(self, support=replace(self.support, x=support), query=replace(self.query, x=query))

    def _with(self, change: Callable[[Tensor], Tensor]) -> Episodes:
        return replace(
            self,
            support=self.support.map(change),
            query=self.query.map(change),
            seeds=change(self.seeds),
            classes=change(self.classes),
        )


def joined(parts: Sequence[Episodes]) -> Episodes:
    """The episodes of all parts, which have the same ways, with padding where their sizes differ."""
    if len(parts) == 1:
        return parts[0]
    return Episodes(
        _joined([each.support for each in parts]),
        _joined([each.query for each in parts]),
        parts[0].problem,
        torch.cat([each.seeds for each in parts]),
        torch.cat([each.classes for each in parts]),
    )


def _joined(parts: Sequence[Examples]) -> Examples:
    rows = max(each.y.shape[1] for each in parts)
    parts = [each.padded(rows) for each in parts]
    mask = torch.cat([each.real for each in parts]) if any(each.mask is not None for each in parts) else None
    return Examples(torch.cat([each.x for each in parts]), torch.cat([each.y for each in parts]), mask)
