"""Averages that move in the course of training."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class RunningAverages(nn.Module, ABC):
    """Buffers r that move towards the value b of every batch: r <- (1-m) r + m b.

    Processes that share the episodes of an outer step compose what each did to them, see `fsl_cli.compute.step_sync`.

    Args:
        momentum: m, in 0..1.

    Attributes:
        moves: int64 scalar, how often they have moved since this object was made; not saved.
    """

    moves: Tensor

    def __init__(self, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        # A tensor, since torch.compile compiles again whenever a number of a module has changed.
        self.register_buffer("moves", torch.zeros((), dtype=torch.int64), persistent=False)

    @abstractmethod
    def averages(self) -> tuple[Tensor, ...]:
        """The buffers ``[C]`` that move."""


class RunningMean(RunningAverages):
    """The mean feature of a stream of batches.

    Args:
        features: C.
        momentum: weight of a new batch.
    """

    mean: Tensor

    def __init__(self, features: int, momentum: float = 0.1) -> None:
        super().__init__(momentum)
        self.register_buffer("mean", torch.zeros(features))

    def averages(self) -> tuple[Tensor, ...]:
        """The mean."""
        return (self.mean,)

    @torch.no_grad()
    def move(self, batch: Tensor) -> None:
        """Move towards the mean of a batch ``[B, C]``."""
        self.moves += 1
        self.mean.lerp_(batch.to(self.mean.dtype).mean(0), self.momentum)
