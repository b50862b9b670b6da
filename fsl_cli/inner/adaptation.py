"""The inner loop: gradient descent on one support set (MAML, Finn et al. 2017, section 2.2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as checkpointed

from fsl_cli.inner.update_rules import Parameters, UpdateRule, parameters_in

LossFunction = Callable[[Parameters], Tensor]
Gradient = Callable[[Parameters, int], Parameters]
TakeStep = Callable[[Parameters, int], Parameters]
T = TypeVar("T")


class GradientOf(Protocol):
    """A function that returns the gradient of a loss with respect to its parameters."""

    def __call__(self, loss: LossFunction, parameters: Parameters, *, first_order: bool) -> Parameters:
        """Gradient by parameter name; detached from the graph if ``first_order``."""


def adapt(
    gradient: Gradient,
    rule: UpdateRule,
    state: Parameters,
    step_sizes: Sequence[Mapping[str, Tensor | float]],
    steps: range,
    *,
    checkpoint: bool = False,
) -> Parameters:
    """Take inner-loop steps on the support loss of a task; with plain SGD, theta' = theta - alpha * grad L(theta).

    The result is differentiable with respect to the initial parameters and ``step_sizes``, so an outer loss can be
    backpropagated through the steps. Several tasks are adapted together when ``gradient`` returns one gradient per task.

    Args:
        gradient: returns the gradient of the support loss with respect to the given parameters, for step 0, 1, ...
        rule: the update rule that applies the gradient.
        state: ``rule.begin`` of the parameters theta, or the state returned by earlier steps.
        step_sizes: alpha by parameter name for step 0, 1, ..., a number or a tensor that broadcasts to the parameter;
            the last entry also applies to all later steps.
        steps: indices of the steps to take, in ascending order; may be empty.
        checkpoint: gradient checkpointing: store the state of only about log2(steps) steps and recompute the steps for
            the outer gradient (Chen et al. 2016, "Training deep nets with sublinear memory cost"); the values are the
            same.

    Returns:
        The state after the steps.
    """

    def step(state: Parameters, number: int) -> Parameters:
        return rule.step(state, gradient(parameters_in(state), number), of_step(step_sizes, number), number)

    if checkpoint and torch.is_grad_enabled():
        return _run_from_checkpoints(step, state, steps)
    return _run(step, state, steps)


def of_step(values: Sequence[T], step: int) -> T:
    """The entry for a step; the last entry also applies to all later steps."""
    return values[min(step, len(values) - 1)]


def _run(step: TakeStep, state: Parameters, steps: range) -> Parameters:
    for number in steps:
        state = step(state, number)
    return state


def _run_from_checkpoints(step: TakeStep, state: Parameters, steps: range) -> Parameters:
    """`_run` that stores only a few intermediate states; the backward pass recomputes one half at a time."""
    if len(steps) <= 1:
        return _checkpoint(lambda state: _run(step, state, steps), state)
    for half in (steps[: len(steps) // 2], steps[len(steps) // 2 :]):
        state = _checkpoint(lambda state, half=half: _run_from_checkpoints(step, state, half), state)  # type: ignore[misc]
    return state


def _checkpoint(function: Callable[[Parameters], Parameters], state: Parameters) -> Parameters:
    names = tuple(state)

    def of_values(*values: Tensor) -> tuple[Tensor, ...]:
        after = function(dict(zip(names, values, strict=True)))
        return tuple(after[name] for name in names)

    # Passed as separate tensors: otherwise a nested checkpoint would not free its inputs.
    values = checkpointed(of_values, *state.values(), use_reentrant=False)
    return dict(zip(names, values, strict=True))


def autograd_gradient(loss: LossFunction, parameters: Parameters, *, first_order: bool) -> Parameters:
    """Gradient by `torch.autograd.grad`; differentiable unless ``first_order`` or inside ``torch.no_grad()``."""
    constant = first_order or not torch.is_grad_enabled()
    if constant:
        parameters = {name: theta.detach().requires_grad_() for name, theta in parameters.items()}
    else:  # one parameter may be computed from another (a head from the body's features); views make them independent
        parameters = {name: theta.view_as(theta) for name, theta in parameters.items()}
    with torch.enable_grad():
        value = loss(parameters)
    gradients = torch.autograd.grad(value, list(parameters.values()), create_graph=not constant)
    return dict(zip(parameters, gradients, strict=True))


def functional_gradient(loss: LossFunction, parameters: Parameters, *, first_order: bool) -> Parameters:
    """Gradient by `torch.func.grad`, which works under `torch.func.vmap`; differentiable unless ``first_order``."""
    if first_order:
        parameters = {name: theta.detach() for name, theta in parameters.items()}
    gradients = torch.func.grad(loss)(parameters)
    return {name: value.detach() for name, value in gradients.items()} if first_order else gradients
