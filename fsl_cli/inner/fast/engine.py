"""The fast engine: all tasks of a chunk at once, with layers whose first and second derivatives are hand-written.

A gradient step of the inner loop needs g(theta) = grad L(theta). The outer gradient needs the transposed Jacobian of g
times a vector v, which is the Hessian times v, since the Jacobian of a gradient is symmetric. `_SupportGradient` is g as
an autograd function: its forward pass computes g, its backward pass the Hessian-vector product in forward-over-reverse
mode. The rest (the update rule, learned step sizes) is ordinary PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fsl_cli.episodes import Episodes, Problem
from fsl_cli.errors import FslError
from fsl_cli.inner.adaptation import of_step
from fsl_cli.inner.fast.layers import Saved
from fsl_cli.inner.fast.network import Network
from fsl_cli.inner.fast.products import to_shape_of
from fsl_cli.inner.fast.translation import network_of
from fsl_cli.inner.inner_loop import InnerLoop
from fsl_cli.inner.tasks import TaskBatch, check_rows_are_alone
from fsl_cli.inner.update_rules import Parameters


def check_supported(inner: InnerLoop) -> None:
    """Raise `FslError` if `network_of` cannot translate the network."""
    if network_of(inner.net) is None:
        what = "fast is not valid: the backbone is not a torch.nn.Sequential of layers that the fast engine supports"
        raise FslError(what, where="hardware.engine", hint="leave it at auto, or use vmap")


class FastTaskBatch(TaskBatch):
    """TaskBatch for a network of layers with hand-written derivatives; computes all tasks at once."""

    def __init__(self, inner: InnerLoop, episodes: Episodes, batches: Tensor | None = None) -> None:
        super().__init__(inner, episodes, batches)
        check_rows_are_alone(inner, episodes)
        support_x, self._query_x, body = episodes.support.x, episodes.query.x, inner.net.body
        if inner.module is inner.net.head:  # the features are constant while the head adapts: compute them once
            fast_body = FastModule(body)
            self._query_x = inner.query_outputs(body, fast_body, support_x, self._query_x, axis=1)
            support_x = fast_body(support_x)
        self._support_x, self._fast = support_x, FastModule(inner.module)
        self._prepared = self._fast.network.prepare(support_x)
        self._targets = episodes.problem.encoded(episodes.support.y, support_x.dtype)
        self._step_weights = [self.pack(inner.local(each)) for each in inner.step_weights]
        names = self.pack(inner.local(of_step(inner.step_sizes, 0)))
        self.start = {name: self._fast.weights[name] for name in names}

    def pack(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """See `Network.pack`."""
        return self._fast.network.pack(values)

    def gradient(self, adapted: Parameters, step: int, *, first_order: bool) -> Parameters:
        """See `TaskBatch`."""
        x, targets = self.rows_of(self._prepared, step), self.rows_of(self._targets, step)
        network, problem = self._fast.network, self.episodes.problem
        loss = SupportLoss(network, self._weights(step), x, problem, targets, self._row_weights(step, x.shape[1]))
        return loss.gradient(adapted, first_order=first_order)

    def support_loss(self, adapted: Parameters, step: int) -> Tensor:
        """See `TaskBatch`."""
        support = self.episodes.support
        outputs = self._fast.of_prepared(self.rows_of(self._prepared, step), self._weights(step) | adapted)
        mask = None if support.mask is None else self.rows_of(support.mask, step)
        return self.episodes.problem.loss(outputs, self.rows_of(support.y, step), mask)

    def _row_weights(self, step: int, count: int) -> Tensor | float:
        """Weight of each support row in the loss of a step: equal for all examples of a task, 0 for padding rows."""
        if self.episodes.support.mask is None:
            return 1 / count
        mask = self.rows_of(self.episodes.support.mask, step).to(self._targets.dtype)
        return (mask / mask.sum(1, keepdim=True)).unsqueeze(-1)

    def query_outputs(self, adapted: Parameters, step: int) -> Tensor:
        """See `TaskBatch`."""
        forward = partial(self._fast, weights=self._weights(step) | adapted)
        return self.inner.query_outputs(self.inner.module, forward, self._support_x, self._query_x, axis=1)

    def support_features(self) -> Tensor:
        """See `TaskBatch`."""
        return FastModule(self.inner.net.body)(self.episodes.support.x)

    def _weights(self, step: int) -> Parameters:
        return self._fast.weights | of_step(self._step_weights, step)


class FastModule:
    """A module that is run for many tasks at once.

    Attributes:
        network: the translated layers.
        weights: the parameters in the layout of the layers, differentiable.
    """

    def __init__(self, module: nn.Module) -> None:
        network = network_of(module)
        assert network is not None
        self.network = network
        self.weights = network.pack(dict(module.named_parameters()))

    def __call__(self, x: Tensor, weights: Parameters | None = None) -> Tensor:
        """Outputs ``[T, B, N]`` of images ``[T, B, C, H, W]`` or features ``[T, B, D]``, differentiable once.

        Args:
            x: the images or features.
            weights: replace the module's weights; shared by all tasks, or one set per task.
        """
        return self.of_prepared(self.network.prepare(x), weights or self.weights)

    def of_prepared(self, x: Tensor, weights: Parameters) -> Tensor:
        """Outputs for inputs that `Network.prepare` returned."""
        y: Tensor = _Outputs.apply(self.network, tuple(weights), x, *weights.values())
        return y


@dataclass(frozen=True)
class SupportLoss:
    """The loss of the support sets of T tasks.

    Attributes:
        network: the layers.
        weights: all weights; the adapted ones have their initial values.
        x: support examples, from `Network.prepare`.
        problem: defines the loss.
        targets: `Problem.encoded` targets ``[T, B, O]``.
        row_weights: weight of each row in the loss, ``[T, B, 1]`` or one number.
    """

    network: Network
    weights: Parameters
    x: Tensor
    problem: Problem
    targets: Tensor
    row_weights: Tensor | float

    def gradient(self, adapted: Parameters, *, first_order: bool) -> Parameters:
        """Gradient of each task's loss w.r.t. ``adapted``, ``[T, ...]``; differentiable once unless ``first_order``."""
        weights = self.weights | adapted
        with torch.set_grad_enabled(torch.is_grad_enabled() and not first_order):
            values = _SupportGradient.apply(self, tuple(adapted), tuple(weights), self.x, *weights.values())
        return dict(zip(adapted, values, strict=True))


class _Outputs(torch.autograd.Function):
    """Outputs of a network as a function of its input and its weights."""

    @staticmethod
    def forward(ctx: Any, network: Network, names: tuple[str, ...], x: Tensor, *values: Tensor) -> Tensor:
        y, saved = network.forward(dict(zip(names, values, strict=True)), x)
        ctx.network, ctx.names, ctx.autocast = network, names, _autocast(x)
        _keep(ctx, values, saved)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        values, saved = _kept(ctx)
        w = dict(zip(ctx.names, values, strict=True))
        with torch.autocast(*ctx.autocast):
            dx, dw = ctx.network.backward(w, dy, saved, need_dx=ctx.needs_input_grad[2])
        return None, None, dx, *(to_shape_of(w[name], dw[name]) for name in ctx.names)


class _SupportGradient(torch.autograd.Function):
    """Gradient of the support loss w.r.t. the adapted weights, as a function of all weights and of the input."""

    @staticmethod
    def forward(
        ctx: Any, loss: SupportLoss, adapted: tuple[str, ...], names: tuple[str, ...], x: Tensor, *values: Tensor
    ) -> tuple[Tensor, ...]:
        w = dict(zip(names, values, strict=True))
        outputs, saved = loss.network.forward(w, x)
        of_loss: Saved = {}
        doutputs = loss.problem.loss_gradient(outputs, loss.targets, loss.row_weights, of_loss)
        _, dw = loss.network.backward(w, doutputs, saved, need_dx=False)
        ctx.loss, ctx.adapted, ctx.names, ctx.autocast = loss, adapted, names, _autocast(x)
        _keep(ctx, values, [*saved, of_loss])
        return tuple(dw[name] for name in adapted)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *direction: Tensor) -> tuple[Tensor | None, ...]:
        values, (*saved, of_loss) = _kept(ctx)
        w = dict(zip(ctx.names, values, strict=True))
        tw = dict(zip(ctx.adapted, direction, strict=True))
        network, problem = ctx.loss.network, ctx.loss.problem
        with torch.autocast(*ctx.autocast):
            toutputs = network.forward_tangent(w, tw, saved)
            tdoutputs = problem.loss_gradient_tangent(toutputs, ctx.loss.row_weights, of_loss)
            tdx, tdw = network.backward_tangent(w, tw, tdoutputs, saved, need_dx=ctx.needs_input_grad[3])
        return None, None, None, tdx, *(tdw[name] for name in ctx.names)


def _autocast(x: Tensor) -> tuple[str, torch.dtype, bool]:
    kind = x.device.type
    return kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)


def _keep(ctx: Any, values: Sequence[Tensor], saved: list[Saved]) -> None:
    """Save the weights and what the layers saved; tensors with ``save_for_backward``, so that autograd frees them."""
    places = [(layer, name) for layer, each in enumerate(saved) for name in each]
    tensors = [(layer, name) for layer, name in places if isinstance(saved[layer][name], Tensor)]
    ctx.places, ctx.layers, ctx.weights = tensors, len(saved), len(values)
    ctx.others = [(layer, name, saved[layer][name]) for layer, name in places if (layer, name) not in tensors]
    ctx.save_for_backward(*values, *(saved[layer][name] for layer, name in tensors))


def _kept(ctx: Any) -> tuple[Sequence[Tensor], list[Saved]]:
    """What `_keep` saved."""
    tensors = ctx.saved_tensors
    saved: list[Saved] = [{} for _ in range(ctx.layers)]
    for (layer, name), value in zip(ctx.places, tensors[ctx.weights :], strict=True):
        saved[layer][name] = value
    for layer, name, value in ctx.others:
        saved[layer][name] = value
    return tensors[: ctx.weights], saved
