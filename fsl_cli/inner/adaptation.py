"""The inner loop: gradient descent on one support set (MAML, Finn et al. 2017, eq. 1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Parameters = dict[str, Tensor]
LossFunction = Callable[[Parameters], Tensor]
GradientFunction = Callable[[LossFunction, Parameters, bool], Parameters]


def adapt(
    support_loss: LossFunction,
    parameters: Parameters,
    step_sizes: Mapping[str, Tensor | float],
    steps: int,
    gradient: GradientFunction,
    *,
    first_order: bool = False,
) -> Parameters:
    """Take ``steps`` gradient steps on the loss of one task: theta' = theta - alpha * grad L(theta).

    The steps stay in the graph of ``parameters`` and ``step_sizes``, so that an outer loss of the result can be
    differentiated through them.

    Args:
        support_loss: loss of one task as a function of the adapted parameters.
        parameters: the adapted parameters theta, by name.
        step_sizes: alpha by name, a number or a tensor that broadcasts to the parameter.
        steps: number of steps, >= 0.
        gradient: how to differentiate, `autograd_gradient` or `functional_gradient`.
        first_order: treat the inner gradient as a constant (FOMAML).

    Returns:
        The adapted parameters, by name.
    """
    for _ in range(steps):
        gradients = gradient(support_loss, parameters, first_order)
        parameters = {name: theta - step_sizes[name] * gradients[name] for name, theta in parameters.items()}
    return parameters


def autograd_gradient(loss: LossFunction, parameters: Parameters, first_order: bool) -> Parameters:
    """Gradient by `torch.autograd.grad`; differentiable unless ``first_order`` or inside ``torch.no_grad()``."""
    constant = first_order or not torch.is_grad_enabled()
    if constant:
        parameters = {name: theta.detach().requires_grad_() for name, theta in parameters.items()}
    with torch.enable_grad():
        value = loss(parameters)
    gradients = torch.autograd.grad(value, list(parameters.values()), create_graph=not constant)
    return dict(zip(parameters, gradients, strict=True))


def functional_gradient(loss: LossFunction, parameters: Parameters, first_order: bool) -> Parameters:
    """Gradient by `torch.func.grad`, which may run under `torch.func.vmap`; differentiable unless ``first_order``."""
    if first_order:
        parameters = {name: theta.detach() for name, theta in parameters.items()}
    gradients = torch.func.grad(loss)(parameters)
    return {name: value.detach() for name, value in gradients.items()} if first_order else gradients
