"""Multinomial logistic regression with an L2 penalty, fitted to many tasks at once.

For support features x_i with labels y_i it minimises, as scikit-learn's LogisticRegression does,

    1/2 sum_k |w_k|^2 + C sum_i CE(W x_i + b, y_i)

over W ``[N, D]`` and the offsets b, which are not penalised (Hastie, Tibshirani & Friedman 2009, section 4.4). The minimiser is
unique in W, and in b up to a number added to every offset, which cancels in the softmax.

W is in the span of the features, so the features are first replaced by their coordinates there, at most B numbers instead of D.
Newton's method follows, with Armijo's backtracking. A Newton direction is found by conjugate gradients (Nocedal & Wright 2006,
algorithm 7.1), preconditioned by Boehning's bound of the Hessian (Boehning 1992): C/2 X^T X plus the penalty for every class.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_NEWTON_STEPS = 100  # at most; about ten are enough
_CONJUGATE_STEPS = 200  # at most, for one direction
_TOLERANCE = 1e-10  # of the gradient of W, relative to C and the longest feature
_ARMIJO = 1e-4
_HALVINGS = 30


@torch.no_grad()
def fit(features: Tensor, labels: Tensor, ways: int, penalty: float, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Fit every task.

    Args:
        features: ``[T, B, D]``.
        labels: int64 ``[T, B]``, 0..N-1.
        ways: N.
        penalty: C, > 0.
        mask: bool ``[T, B]``, the rows that count; None: all.

    Returns:
        W ``[T, N, D]`` and b ``[T, N]`` with mean zero, of the type of ``features``.
    """
    exact = features.to(torch.float32 if features.device.type == "mps" else torch.float64)  # mps has no float64
    counts = torch.ones_like(exact[..., 0]) if mask is None else mask.to(exact)
    exact = exact * counts.unsqueeze(-1)
    basis, coordinates = _span(exact)
    problem = _Problem.of(coordinates, F.one_hot(labels, ways).to(exact), counts, penalty)
    solution = _newton(problem)
    weights = basis @ solution[:, :-1]
    offsets = solution[:, -1] - solution[:, -1].mean(-1, keepdim=True)
    return weights.mT.to(features.dtype), offsets.to(features.dtype)


def _span(features: Tensor) -> tuple[Tensor, Tensor]:
    """An orthonormal basis ``[T, D, R]`` of a space with all features, and their coordinates in it ``[T, B, R]``."""
    if features.shape[1] >= features.shape[2]:
        return torch.eye(features.shape[2]).to(features).expand(len(features), -1, -1), features
    basis, triangle = torch.linalg.qr(features.mT)
    return basis, triangle.mT


@dataclass(frozen=True)
class _Problem:
    """The tasks; theta is ``[T, R+1, N]``, its last row the offsets.

    Attributes:
        inputs: coordinates followed by a one, ``[T, B, R+1]``.
        targets: one-hot labels ``[T, B, N]``.
        weights: C for the rows that count, otherwise 0: ``[T, B, 1]``.
        ridge: 1 for the coordinates, 0 for the offset: ``[R+1, 1]``.
        bound: Cholesky factor of Boehning's bound, ``[T, R+1, R+1]``.
        small: a gradient of this length is zero, ``[T]``.
    """

    inputs: Tensor
    targets: Tensor
    weights: Tensor
    ridge: Tensor
    bound: Tensor
    small: Tensor

    @staticmethod
    def of(coordinates: Tensor, targets: Tensor, counts: Tensor, penalty: float) -> _Problem:
        inputs = torch.cat([coordinates, torch.ones_like(coordinates[..., :1])], dim=-1)
        weights = (penalty * counts).unsqueeze(-1)
        ridge = torch.ones_like(inputs[0, 0]).unsqueeze(-1)
        ridge[-1] = 0
        bound = torch.linalg.cholesky((weights * inputs).mT @ inputs / 2 + torch.diag_embed(ridge.squeeze(-1)))
        longest = inputs.norm(dim=-1).amax(-1)
        return _Problem(inputs, targets, weights, ridge, bound, _TOLERANCE * penalty * longest)

    def value(self, theta: Tensor) -> Tensor:
        """The objective, ``[T]``."""
        errors = -(self.targets * (self.inputs @ theta).log_softmax(-1)).sum(-1, keepdim=True)
        return (self.weights * errors).sum((1, 2)) + (self.ridge * theta.square()).sum((1, 2)) / 2

    def gradient(self, theta: Tensor, probabilities: Tensor) -> Tensor:
        """Of the objective, like ``theta``."""
        return self.inputs.mT @ (self.weights * (probabilities - self.targets)) + self.ridge * theta

    def curvature(self, probabilities: Tensor, direction: Tensor) -> Tensor:
        """The Hessian times a direction."""
        change = probabilities * (self.inputs @ direction)
        change = change - probabilities * change.sum(-1, keepdim=True)
        return self.inputs.mT @ (self.weights * change) + self.ridge * direction


def _newton(problem: _Problem) -> Tensor:
    """The minimiser, from zero."""
    theta = torch.zeros_like(problem.inputs.mT @ problem.targets)
    for _ in range(_NEWTON_STEPS):
        probabilities = (problem.inputs @ theta).softmax(-1)
        gradient = problem.gradient(theta, probabilities)
        if (_length(gradient) <= problem.small).all():
            break
        direction = _direction(problem, probabilities, gradient)
        theta = theta + _step_size(problem, theta, direction, gradient) * direction
    return theta


def _direction(problem: _Problem, probabilities: Tensor, gradient: Tensor) -> Tensor:
    """-H^-1 g by conjugate gradients; a task that has converged does not move any further."""
    residual, direction = -gradient, torch.zeros_like(gradient)
    conditioned = torch.cholesky_solve(residual, problem.bound)
    search, product = conditioned, _dot(residual, conditioned)
    # A relative tolerance that shrinks with the gradient makes Newton's method converge quadratically.
    start = _length(gradient)
    enough = torch.maximum(start * (start / problem.small * _TOLERANCE).clamp(1e-4, 0.1), problem.small / 10)
    for _ in range(_CONJUGATE_STEPS):
        running = _length(residual) > enough
        if not running.any():
            break
        bent = problem.curvature(probabilities, search)
        length = torch.where(running, product / _dot(search, bent), 0).view(-1, 1, 1)
        direction, residual = direction + length * search, residual - length * bent
        conditioned = torch.cholesky_solve(residual, problem.bound)
        following = _dot(residual, conditioned)
        search = torch.where(running.view(-1, 1, 1), conditioned + (following / product).view(-1, 1, 1) * search, search)
        product = torch.where(running, following, product)
    return direction


def _step_size(problem: _Problem, theta: Tensor, direction: Tensor, gradient: Tensor) -> Tensor:
    """The largest of 1, 1/2, 1/4, ... that decreases each objective enough, ``[T, 1, 1]``; 0 if none does."""
    before, slope = problem.value(theta), _dot(gradient, direction)
    size = torch.ones_like(before)
    noise = 4 * torch.finfo(before.dtype).eps * before.abs()
    for _ in range(_HALVINGS):
        after = problem.value(theta + size.view(-1, 1, 1) * direction)
        good = after <= before + _ARMIJO * size * slope + noise
        if good.all():
            break
        size = torch.where(good, size, size / 2)
    return torch.where(good, size, 0).view(-1, 1, 1)


def _dot(first: Tensor, second: Tensor) -> Tensor:
    return (first * second).sum((1, 2))


def _length(values: Tensor) -> Tensor:
    return values.flatten(1).norm(dim=1)
