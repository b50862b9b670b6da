"""Fitting a new head to the frozen support features of each task, all tasks at once."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fsl_cli.episodes import Examples
from fsl_cli.inner.adaptation import adapt, autograd_gradient
from fsl_cli.inner.update_rules import Parameters, UpdateRule, parameters_in
from fsl_cli.statistics.classification import cross_entropy

Logits = Callable[[Parameters, Tensor], Tensor]


def fitted(
    logits: Logits, start: Parameters, features: Tensor, support: Examples, *, rule: UpdateRule, lr: float, steps: int
) -> Parameters:
    """Full-batch gradient descent on the cross-entropy of each task's own images.

    Args:
        logits: parameters and features to logits ``[T, B, N]``, each task's from its own.
        start: parameters before the first step, ``[T, ...]`` each.
        features: ``[T, B, D]``.
        support: the examples that the features are of.
        rule: what a step makes of a gradient.
        lr: step size, > 0.
        steps: how many, >= 0.

    Returns:
        The parameters after the last step; their gradients are constants.
    """

    def loss(parameters: Parameters) -> Tensor:
        return cross_entropy(logits(parameters, features.detach()), support.y, support.mask).sum()  # of independent tasks

    def gradient(parameters: Parameters, step: int) -> Parameters:
        return autograd_gradient(loss, parameters, first_order=True)

    sizes = dict.fromkeys(start, lr)
    return parameters_in(adapt(gradient, rule, rule.begin(start), [sizes], range(steps)))
