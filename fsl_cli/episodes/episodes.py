"""Episodes and their shape.

An episode is an N-way K-shot task: K labelled support images and Q query images for each of N classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Task:
    """The shape of an episode: ``ways`` classes, ``shots`` support and ``queries`` query images per class."""

    ways: int
    shots: int
    queries: int

    def __str__(self) -> str:
        return f"{self.ways}-way {self.shots}-shot, {self.queries} queries per class"


@dataclass(frozen=True)
class Episodes:
    """T episodes of one shape, N ways, K shots, Q queries per class.

    Attributes:
        support_x: float ``[T, N*K, C, H, W]`` in 0..1.
        support_y: int64 ``[T, N*K]``, labels 0..N-1.
        query_x: float ``[T, N*Q, C, H, W]`` in 0..1.
        query_y: int64 ``[T, N*Q]``.
        ways: N.
        seeds: int64 ``[T]``, what an algorithm's own random numbers start from, see `episodes.randomness`; left out: zeros.
        classes: int64 ``[T, N]``, which classes of the split are labelled 0..N-1; left out: unknown, -1.
    """

    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor
    ways: int
    seeds: Tensor = None  # type: ignore[assignment]
    classes: Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.seeds is None:
            object.__setattr__(self, "seeds", torch.zeros_like(self.support_y[:, 0]))
        if self.classes is None:
            object.__setattr__(self, "classes", self.support_y.new_full((len(self), self.ways), -1))

    def __len__(self) -> int:
        """Number of episodes, T."""
        return len(self.support_y)

    def split(self, size: int) -> Iterator[Episodes]:
        """Yield these episodes in order, at most ``size`` at a time."""
        for first in range(0, len(self), size):
            part = slice(first, first + size)
            yield self._with(lambda values: values[part])  # noqa: B023 - called at once

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Episodes:
        """The same episodes on ``device``, images as ``dtype``."""
        return self._with(lambda values: values.to(device=device, dtype=dtype if values.is_floating_point() else None))

    def _with(self, change: Callable[[Tensor], Tensor]) -> Episodes:
        changed: dict[str, Any] = {name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **changed)
