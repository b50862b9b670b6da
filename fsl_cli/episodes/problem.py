"""The prediction problem of an episode: its loss, its scores, and the main score.

The data set defines the problem. Training, evaluation and the inner loop access it only through `Problem`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fsl_cli.statistics.classification import accuracy, cross_entropy
from fsl_cli.statistics.regression import mean_squared_error
from fsl_cli.statistics.scores import ACCURACY, LOSS, MSE, Score


@dataclass(frozen=True)
class Problem(ABC):
    """A prediction problem.

    Outputs have the shape ``[..., B, O]``: B examples with O outputs each, preceded by an episode axis, ``[T, B, O]``, or
    by nothing for a single episode. A ``mask``, bool ``[..., B]``, is true for examples and false for padding rows;
    None: no padding.

    Attributes:
        name: name used in messages.
        headline: the main score, which selects the best checkpoint, drives patience and appears in tables.
        further: the other scores.
        has_ways: whether an episode has classes, ``task.ways`` of them.
        outputs: output width O of the network.
    """

    name: ClassVar[str]
    headline: ClassVar[Score]
    further: ClassVar[tuple[Score, ...]] = ()
    has_ways: ClassVar[bool] = False
    outputs: int

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mean loss of each episode, ``[...]``, twice differentiable."""

    @abstractmethod
    def headline_score(self, outputs: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        """The main score of each episode, ``[...]``."""

    def scores(self, outputs: Tensor, targets: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """The main score followed by the others, ``[...]`` each, by name."""
        return {self.headline.name: self.headline_score(outputs, targets, mask)}

    @abstractmethod
    def encoded(self, targets: Tensor, dtype: torch.dtype) -> Tensor:
        """Targets in the shape of the outputs, ``[..., B, O]``, as expected by `loss_gradient`."""

    @abstractmethod
    def loss_gradient(self, outputs: Tensor, encoded: Tensor, weights: Tensor | float, saved: dict[str, Any]) -> Tensor:
        """Derivative of ``sum(weights * loss of each row)`` w.r.t. the outputs.

        Args:
            outputs: ``[..., B, O]``.
            encoded: `encoded` targets.
            weights: weight of each row, ``[..., B, 1]`` or one number.
            saved: receives the tensors that `loss_gradient_tangent` needs, in the shape of the outputs.
        """

    @abstractmethod
    def loss_gradient_tangent(self, tangent: Tensor, weights: Tensor | float, saved: dict[str, Any]) -> Tensor:
        """Directional derivative of `loss_gradient` for the outputs' ``tangent``: the Hessian of the loss times it."""

    @property
    def every_score(self) -> tuple[Score, ...]:
        """The main score followed by the others."""
        return (self.headline, *self.further)


@dataclass(frozen=True)
class Classification(Problem):
    """Classification into N classes: logits ``[..., B, N]``, labels int64 ``[..., B]``, cross-entropy loss.

    Attributes:
        outputs: N, the ways of an episode.
    """

    name = "classification"
    headline = ACCURACY
    further = (LOSS,)
    has_ways = True

    def loss(self, outputs: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        """Cross-entropy in nats."""
        return cross_entropy(outputs, targets, mask)

    def headline_score(self, outputs: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        """Accuracy in 0..1."""
        return accuracy(outputs, targets, mask)

    def scores(self, outputs: Tensor, targets: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """``accuracy`` and ``loss``."""
        return {**super().scores(outputs, targets, mask), "loss": cross_entropy(outputs, targets, mask)}

    def encoded(self, targets: Tensor, dtype: torch.dtype) -> Tensor:
        """One-hot targets."""
        return F.one_hot(targets, self.outputs).to(dtype)

    def loss_gradient(self, outputs: Tensor, encoded: Tensor, weights: Tensor | float, saved: dict[str, Any]) -> Tensor:
        """``weights (p - y)`` with probabilities p."""
        saved["probabilities"] = probabilities = outputs.softmax(-1)
        return (probabilities - encoded) * weights

    def loss_gradient_tangent(self, tangent: Tensor, weights: Tensor | float, saved: dict[str, Any]) -> Tensor:
        """``weights (diag(p) - p p^T) tangent``."""
        probabilities = saved["probabilities"]
        return probabilities * (tangent - (probabilities * tangent).sum(-1, keepdim=True)) * weights


@dataclass(frozen=True)
class Regression(Problem):
    """Regression of real numbers: outputs and targets ``[..., B, O]``, mean squared error loss.

    Attributes:
        outputs: O, numbers predicted per example.
    """

    name = "regression"
    headline = MSE
    outputs: int = 1

    def loss(self, outputs: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mean squared error."""
        return mean_squared_error(outputs, targets, mask)

    def headline_score(self, outputs: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mean squared error."""
        return mean_squared_error(outputs, targets, mask)

    def encoded(self, targets: Tensor, dtype: torch.dtype) -> Tensor:
        """The targets, as ``dtype``."""
        return targets.to(dtype)

    def loss_gradient(self, outputs: Tensor, encoded: Tensor, weights: Tensor | float, saved: dict[str, Any]) -> Tensor:
        """``2/O weights (outputs - targets)``."""
        return (outputs - encoded) * (2 / self.outputs * weights)

    def loss_gradient_tangent(self, tangent: Tensor, weights: Tensor | float, saved: dict[str, Any]) -> Tensor:
        """``2/O weights tangent``."""
        return tangent * (2 / self.outputs * weights)
