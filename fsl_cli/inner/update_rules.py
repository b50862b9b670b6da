"""Update rules (optimizers) of the inner loop, differentiable with respect to all their inputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Parameters = dict[str, Tensor]
InnerOptimizer = Literal["sgd", "momentum", "adam"]
_MARK = "//"  # NAME//velocity is optimizer state that belongs to the parameter NAME
_SECOND = f"{_MARK}second"


@dataclass(frozen=True)
class UpdateRule(ABC):
    """An update rule with its options; its optimizer state is stored together with the parameters, see `begin`.

    Attributes:
        weight_decay: coefficient of theta, added to the gradient (as in `torch.optim.SGD` and `torch.optim.Adam`), >= 0.
    """

    weight_decay: float = 0.0

    def begin(self, parameters: Parameters) -> Parameters:
        """The state before the first step: the parameters and the initial optimizer state."""
        return parameters

    def step(self, state: Parameters, gradients: Parameters, step_sizes: Mapping[str, Tensor | float], step: int) -> Parameters:
        """The state after one more step.

        Args:
            state: from `begin` or `step`.
            gradients: by name, with the shape of the parameter, optionally preceded by a task axis.
            step_sizes: alpha by name, a number or a tensor that broadcasts to the parameter.
            step: number of steps taken before this one, 0, 1, ...
        """
        after: Parameters = {}
        for name, theta in parameters_in(state).items():
            gradient = gradients[name]
            if self.weight_decay:
                gradient = gradient + self.weight_decay * theta
            after |= self._update(name, theta, gradient, step_sizes[name], state, step)
        return after

    @abstractmethod
    def _update(
        self, name: str, theta: Tensor, gradient: Tensor, alpha: Tensor | float, state: Parameters, step: int
    ) -> Parameters:
        """The new value and optimizer state of one parameter."""


@dataclass(frozen=True)
class SGD(UpdateRule):
    """``theta <- theta - alpha g``."""

    def _update(
        self, name: str, theta: Tensor, gradient: Tensor, alpha: Tensor | float, state: Parameters, step: int
    ) -> Parameters:
        return {name: descend(theta, gradient, alpha)}


@dataclass(frozen=True)
class Momentum(UpdateRule):
    """``v <- mu v + (1 - tau) g``, ``theta <- theta - alpha v`` (Sutskever et al. 2013, as in `torch.optim.SGD`).

    Attributes:
        momentum: mu, in 0..1.
        dampening: tau, in 0..1; it does not apply in the first step, nor if ``momentum`` is 0.
    """

    momentum: float = 0.9
    dampening: float = 0.0

    def begin(self, parameters: Parameters) -> Parameters:
        """The parameters, each with a velocity of zero."""
        return parameters | {f"{name}{_MARK}velocity": torch.zeros_like(theta) for name, theta in parameters.items()}

    def _update(
        self, name: str, theta: Tensor, gradient: Tensor, alpha: Tensor | float, state: Parameters, step: int
    ) -> Parameters:
        key = f"{name}{_MARK}velocity"
        whole = step == 0 or not self.momentum
        velocity = self.momentum * state[key] + (gradient if whole else (1 - self.dampening) * gradient)
        return {name: descend(theta, velocity, alpha), key: velocity}


@dataclass(frozen=True)
class Adam(UpdateRule):
    """Adam (Kingma & Ba 2015, algorithm 1); its moments are zero at the start of every task, unless ``second`` is given.

    Attributes:
        beta1: decay of the first moment, in 0..1.
        beta2: decay of the second moment, in 0..1.
        eps: added to the square root of the second moment, > 0.
        second: the second moments at the start of a task, by name; None: zeros.
        weight: of ``second``: 1 - beta2^t if they come from t steps before; a number, or a tensor ``[1]``.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    second: Parameters | None = None
    weight: Tensor | float = 0.0

    def begin(self, parameters: Parameters) -> Parameters:
        """The parameters, each with its moments."""
        zeros = {name: torch.zeros_like(theta) for name, theta in parameters.items()}
        first = {f"{name}{_MARK}first": zero for name, zero in zeros.items()}
        second = zeros if self.second is None else self.second
        return parameters | first | {f"{name}{_SECOND}": second[name] for name in parameters}

    def _update(
        self, name: str, theta: Tensor, gradient: Tensor, alpha: Tensor | float, state: Parameters, step: int
    ) -> Parameters:
        keys = f"{name}{_MARK}first", f"{name}{_SECOND}"
        first = self.beta1 * state[keys[0]] + (1 - self.beta1) * gradient
        second = self.beta2 * state[keys[1]] + (1 - self.beta2) * gradient.square()
        root = _root(second / (1 - (1 - self.weight) * self.beta2 ** (step + 1)))
        direction = first / (1 - self.beta1 ** (step + 1)) / (root + self.eps)
        return {name: descend(theta, direction, alpha), keys[0]: first, keys[1]: second}


@dataclass(frozen=True)
class Proximal(UpdateRule):
    """Another rule applied to ``L + strength/2 |theta - start|^2``, which keeps theta near the start (Rajeswaran et al. 2019).

    Attributes:
        rule: the rule that applies the gradient; its own weight decay is ignored, that of this rule is used.
        strength: lambda, >= 0.
    """

    rule: UpdateRule = SGD()
    strength: float = 0.0

    def begin(self, parameters: Parameters) -> Parameters:
        """The initial state of ``rule``, and the starting value of each parameter."""
        starts = {f"{name}{_MARK}start": theta for name, theta in parameters.items()}
        return self.rule.begin(parameters) | starts

    def _update(
        self, name: str, theta: Tensor, gradient: Tensor, alpha: Tensor | float, state: Parameters, step: int
    ) -> Parameters:
        key = f"{name}{_MARK}start"
        pulled = gradient + self.strength * (theta - state[key])
        return self.rule._update(name, theta, pulled, alpha, state, step) | {key: state[key]}


PLAIN_SGD = SGD()


def update_rule(optimizer: InnerOptimizer, weight_decay: float) -> UpdateRule:
    """The update rule for a value of the option ``inner_optimizer``."""
    rules = {"sgd": SGD, "momentum": Momentum, "adam": Adam}
    return rules[optimizer](weight_decay)


def parameters_in(state: Parameters) -> Parameters:
    """The parameters of a state, without the optimizer state."""
    return {name: value for name, value in state.items() if _MARK not in name}


def second_moments_in(state: Parameters) -> Parameters:
    """Adam's second moments in a state, by the names of the parameters."""
    return {key.removesuffix(_SECOND): value for key, value in state.items() if key.endswith(_SECOND)}


def descend(theta: Tensor, direction: Tensor, alpha: Tensor | float) -> Tensor:
    """``theta - alpha * direction``."""
    if isinstance(alpha, Tensor):
        return torch.addcmul(theta, alpha, direction, value=-1)
    return torch.add(theta, direction, alpha=-alpha)


def _root(square: Tensor) -> Tensor:
    """The square root with derivative 0 at 0; the infinite one would turn the gradients of unused weights into NaN."""
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1.0).sqrt(), 0.0)
