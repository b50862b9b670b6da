"""Fitting a new head to the frozen support features of each task, all tasks at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fsl_cli.metrics import cross_entropy

Logits = Callable[[list[Tensor], Tensor], Tensor]


@dataclass(frozen=True)
class GradientDescent:
    """Full-batch gradient descent on the cross-entropy, as `torch.optim.SGD` does it.

    Attributes:
        steps: number of steps, >= 0.
        lr: step size.
        momentum: in 0..1.
        dampening: what part of a gradient the momentum leaves out, in 0..1; the first gradient counts whole.
        weight_decay: factor of the parameters that is added to their gradient.
    """

    steps: int
    lr: float
    momentum: float
    dampening: float
    weight_decay: float

    def fit(self, logits: Logits, parameters: list[Tensor], features: Tensor, labels: Tensor) -> list[Tensor]:
        """Fit each task's head to its own images.

        Args:
            logits: parameters and features to logits ``[T, B, N]``, each task's from its own.
            parameters: where to start, ``[T, ...]`` each.
            features: ``[T, B, D]``.
            labels: int64 ``[T, B]``.

        Returns:
            The parameters after the last step, without a graph.
        """
        velocities: list[Tensor] = []
        for _ in range(self.steps):
            leaves = [each.detach().requires_grad_() for each in parameters]
            with torch.enable_grad():
                loss = cross_entropy(logits(leaves, features.detach()), labels).sum()  # of independent tasks
            gradients = torch.autograd.grad(loss, leaves)
            forces = [g + self.weight_decay * p.detach() for g, p in zip(gradients, leaves, strict=True)]
            if velocities:
                forces = [self.momentum * v + (1 - self.dampening) * f for v, f in zip(velocities, forces, strict=True)]
            velocities = forces
            parameters = [p.detach() - self.lr * v for p, v in zip(leaves, velocities, strict=True)]
        return parameters
