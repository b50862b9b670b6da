"""The inner loop: gradient descent on one support set (MAML, Finn et al. 2017, eq. 1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as checkpointed

Parameters = dict[str, Tensor]
LossFunction = Callable[[Parameters], Tensor]
Gradient = Callable[[Parameters], Parameters]
Step = Callable[[Parameters], Parameters]


class GradientOf(Protocol):
    """A way to differentiate: the gradient of a loss at some parameters."""

    def __call__(self, loss: LossFunction, parameters: Parameters, *, first_order: bool) -> Parameters:
        """Gradient by name; a constant if ``first_order``."""


def adapt(
    gradient: Gradient,
    parameters: Parameters,
    step_sizes: Mapping[str, Tensor | float],
    steps: int,
    *,
    checkpoint: bool = False,
) -> Parameters:
    """Take ``steps`` gradient steps on the support loss of a task: theta' = theta - alpha * grad L(theta).

    The steps stay in the graph of ``parameters`` and ``step_sizes``, so that an outer loss of the result can be
    differentiated through them. Several tasks are adapted together when ``gradient`` gives each its own.

    Args:
        gradient: gradient of the support loss as a function of the adapted parameters.
        parameters: the adapted parameters theta, by name.
        step_sizes: alpha by name, a number or a tensor that broadcasts to the parameter.
        steps: number of steps, >= 0.
        checkpoint: keep the parameters of about log2(steps) steps and nothing else, and run the steps again for the
            outer gradient (Chen et al. 2016, "Training deep nets with sublinear memory cost"); same values.

    Returns:
        The adapted parameters, by name.
    """

    def step(theta: Parameters) -> Parameters:
        gradients = gradient(theta)
        return {name: _descend(value, gradients[name], step_sizes[name]) for name, value in theta.items()}

    if checkpoint and torch.is_grad_enabled():
        return _repeat_from_checkpoints(step, parameters, steps)
    return _repeat(step, parameters, steps)


def _repeat(step: Step, parameters: Parameters, times: int) -> Parameters:
    for _ in range(times):
        parameters = step(parameters)
    return parameters


def _repeat_from_checkpoints(step: Step, parameters: Parameters, times: int) -> Parameters:
    """`_repeat` that keeps a few of the parameters on the way; to go backwards, each half is repeated by itself."""
    if times <= 1:
        return _checkpoint(partial(_repeat, step, times=times), parameters)
    for half in (times // 2, times - times // 2):
        parameters = _checkpoint(partial(_repeat_from_checkpoints, step, times=half), parameters)
    return parameters


def _checkpoint(function: Step, parameters: Parameters) -> Parameters:
    names = tuple(parameters)

    def of_values(*values: Tensor) -> tuple[Tensor, ...]:
        return tuple(function(dict(zip(names, values, strict=True))).values())

    # As separate tensors: a checkpoint inside a checkpoint frees what it was given only then.
    values = checkpointed(of_values, *parameters.values(), use_reentrant=False)
    return dict(zip(names, values, strict=True))


def _descend(theta: Tensor, gradient: Tensor, alpha: Tensor | float) -> Tensor:
    if isinstance(alpha, Tensor):
        return torch.addcmul(theta, alpha, gradient, value=-1)
    return torch.add(theta, gradient, alpha=-alpha)


def autograd_gradient(loss: LossFunction, parameters: Parameters, *, first_order: bool) -> Parameters:
    """Gradient by `torch.autograd.grad`; differentiable unless ``first_order`` or inside ``torch.no_grad()``."""
    constant = first_order or not torch.is_grad_enabled()
    if constant:
        parameters = {name: theta.detach().requires_grad_() for name, theta in parameters.items()}
    with torch.enable_grad():
        value = loss(parameters)
    gradients = torch.autograd.grad(value, list(parameters.values()), create_graph=not constant)
    return dict(zip(parameters, gradients, strict=True))


def functional_gradient(loss: LossFunction, parameters: Parameters, *, first_order: bool) -> Parameters:
    """Gradient by `torch.func.grad`, which may run under `torch.func.vmap`; differentiable unless ``first_order``."""
    if first_order:
        parameters = {name: theta.detach() for name, theta in parameters.items()}
    gradients = torch.func.grad(loss)(parameters)
    return {name: value.detach() for name, value in gradients.items()} if first_order else gradients
