"""What an episode asks to be predicted: the loss, the scores, and which score counts.

A problem comes with the data set. Training, evaluation and the inner loop know it through `Problem` alone.
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
    """What is predicted for each example.

    Axes in front of ``[B, O]``, B examples of O outputs each, are episodes: ``[T, B, O]``, or none for one episode. A
    ``mask``, bool ``[..., B]``, says which rows are examples; None: all.

    Attributes:
        name: what messages call it.
        headline: the score that counts: for the best checkpoint, for patience, in tables.
        further: the other scores.
        has_ways: whether an episode has classes, ``task.ways`` of them.
        outputs: width O of the output of a network that solves it.
    """

    name: ClassVar[str]
    headline: ClassVar[Score]
    further: ClassVar[tuple[Score, ...]] = ()
    has_ways: ClassVar[bool] = False
    outputs: int

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mean loss of each episode, ``[...]``, differentiable twice."""

    @abstractmethod
    def headline_score(self, outputs: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        """The score that counts, ``[...]``."""

    def scores(self, outputs: Tensor, targets: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """The headline score, then the further ones, ``[...]`` each, by name."""
        return {self.headline.name: self.headline_score(outputs, targets, mask)}

    @abstractmethod
    def encoded(self, targets: Tensor, dtype: torch.dtype) -> Tensor:
        """Targets of the shape of outputs, ``[..., B, O]``, as `loss_gradient` takes them."""

    @abstractmethod
    def loss_gradient(self, outputs: Tensor, encoded: Tensor, weights: Tensor | float, saved: dict[str, Any]) -> Tensor:
        """Derivative of ``sum(weights * loss of each row)`` by the outputs.

        Args:
            outputs: ``[..., B, O]``.
            encoded: `encoded` targets.
            weights: what each row counts, ``[..., B, 1]`` or one number.
            saved: gets what `loss_gradient_tangent` needs; tensors of the shape of the outputs.
        """

    @abstractmethod
    def loss_gradient_tangent(self, tangent: Tensor, weights: Tensor | float, saved: dict[str, Any]) -> Tensor:
        """How `loss_gradient` changes when the outputs move along ``tangent``: the Hessian of the loss times it."""

    @property
    def every_score(self) -> tuple[Score, ...]:
        """The headline score and the further ones."""
        return (self.headline, *self.further)


@dataclass(frozen=True)
class Classification(Problem):
    """One of N classes: logits ``[..., B, N]``, labels int64 ``[..., B]``, cross-entropy.

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
        """One-hot."""
        return F.one_hot(targets, self.outputs).to(dtype)

    def loss_gradient(self, outputs: Tensor, encoded: Tensor, weights: Tensor | float, saved: dict[str, Any]) -> Tensor:
        """``weights (p - y)`` with the probabilities p."""
        saved["probabilities"] = probabilities = outputs.softmax(-1)
        return (probabilities - encoded) * weights

    def loss_gradient_tangent(self, tangent: Tensor, weights: Tensor | float, saved: dict[str, Any]) -> Tensor:
        """``weights (diag(p) - p p^T) tangent``."""
        probabilities = saved["probabilities"]
        return probabilities * (tangent - (probabilities * tangent).sum(-1, keepdim=True)) * weights


@dataclass(frozen=True)
class Regression(Problem):
    """Real numbers: outputs and targets ``[..., B, O]``, mean squared error.

    Attributes:
        outputs: O, numbers of an example.
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
        """As they are."""
        return targets.to(dtype)

    def loss_gradient(self, outputs: Tensor, encoded: Tensor, weights: Tensor | float, saved: dict[str, Any]) -> Tensor:
        """``2/O weights (outputs - targets)``."""
        return (outputs - encoded) * (2 / self.outputs * weights)

    def loss_gradient_tangent(self, tangent: Tensor, weights: Tensor | float, saved: dict[str, Any]) -> Tensor:
        """``2/O weights tangent``."""
        return tangent * (2 / self.outputs * weights)
