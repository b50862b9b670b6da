"""The fast engine: all tasks of a chunk at once, through layers with first and second derivatives written out.

A gradient step of the inner loop needs g(theta) = grad L(theta), and its derivative applied to a vector v, which is the
Hessian times v, since the Jacobian of a gradient is symmetric. `_SupportGradient` is that function for autograd: forward
is g, backward the product with the Hessian, forward over reverse. What surrounds it (the update rule, learned step sizes)
stays ordinary PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsl_cli.episodes import Episodes
from fsl_cli.errors import FslError
from fsl_cli.inner.adaptation import Parameters, adapt
from fsl_cli.inner.inner_loop import InnerLoop
from fsl_cli.inner.layers import Saved
from fsl_cli.inner.network import Network
from fsl_cli.inner.products import to_shape_of
from fsl_cli.inner.translation import network_of


def check_supported(inner: InnerLoop) -> None:
    """Raise `FslError` for a network that has no such layers."""
    if network_of(inner.net) is None:
        what = "fast is not valid: the backbone is not a torch.nn.Sequential of layers with derivatives written out"
        raise FslError(what, where="hardware.engine", hint="leave it at auto, or use vmap")


def fast_engine(inner: InnerLoop, episodes: Episodes, steps: int) -> Tensor:
    """All tasks at once. Returns query logits ``[T, N*Q, N]``."""
    support_x, query_x = episodes.support_x, episodes.query_x
    module, step_sizes = inner.adapted_part()
    if module is inner.net.head:  # the features do not change while the head adapts: compute them once
        body = FastModule(inner.net.body)
        support_x, query_x = body(support_x), inner.query_outputs(inner.net.body, body, support_x, query_x, axis=1)
    fast = FastModule(module)
    alpha = fast.network.pack(step_sizes)
    support_loss = fast.support_loss(support_x, episodes.support_y, episodes.ways)
    gradient = partial(support_loss.gradient, first_order=inner.first_order)
    adapted = {name: fast.weights[name] for name in alpha}
    adapted = adapt(gradient, adapted, alpha, steps, checkpoint=inner.checkpoint)
    forward = partial(fast, weights=fast.weights | adapted)
    return inner.query_outputs(module, forward, support_x, query_x, axis=1)


class FastModule:
    """A module for many tasks at once.

    Attributes:
        network: its layers.
        weights: its parameters in the layout of the layers, differentiable.
    """

    def __init__(self, module: nn.Module) -> None:
        network = network_of(module)
        assert network is not None
        self.network = network
        self.weights = network.pack(dict(module.named_parameters()))

    def __call__(self, x: Tensor, weights: Parameters | None = None) -> Tensor:
        """Outputs ``[T, B, N]`` of images ``[T, B, C, H, W]`` or features ``[T, B, D]``, differentiable once.

        Args:
            x: the images.
            weights: other weights than the module's, shared or one for each task.
        """
        weights = weights or self.weights
        y: Tensor = _Outputs.apply(self.network, tuple(weights), self.network.prepare(x), *weights.values())
        return y

    def support_loss(self, x: Tensor, labels: Tensor, ways: int) -> SupportLoss:
        """The mean cross-entropy of each task's support set, as a function of the weights.

        Args:
            x: support images or features.
            labels: int64 ``[T, B]``.
            ways: N.
        """
        targets = F.one_hot(labels, ways).to(x.dtype)
        return SupportLoss(self.network, self.weights, self.network.prepare(x), targets)


@dataclass(frozen=True)
class SupportLoss:
    """Cross-entropy of the support sets of T tasks.

    Attributes:
        network: the layers.
        weights: all weights, the adapted ones with the values they start from.
        x: prepared support images.
        targets: one-hot ``[T, B, N]``.
    """

    network: Network
    weights: Parameters
    x: Tensor
    targets: Tensor

    def gradient(self, adapted: Parameters, *, first_order: bool) -> Parameters:
        """Gradient of each task's loss by ``adapted``, one for each task; differentiable once unless ``first_order``."""
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
    """Gradient of the support loss by the adapted weights, as a function of all weights and of the input."""

    @staticmethod
    def forward(
        ctx: Any, loss: SupportLoss, adapted: tuple[str, ...], names: tuple[str, ...], x: Tensor, *values: Tensor
    ) -> tuple[Tensor, ...]:
        w = dict(zip(names, values, strict=True))
        logits, saved = loss.network.forward(w, x)
        probabilities = logits.softmax(-1)
        dlogits = (probabilities - loss.targets) / logits.shape[1]
        _, dw = loss.network.backward(w, dlogits, saved, need_dx=False)
        ctx.network, ctx.adapted, ctx.names, ctx.autocast = loss.network, adapted, names, _autocast(x)
        _keep(ctx, values, [*saved, {"probabilities": probabilities}])
        return tuple(dw[name] for name in adapted)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *direction: Tensor) -> tuple[Tensor | None, ...]:
        values, (*saved, of_loss) = _kept(ctx)
        w = dict(zip(ctx.names, values, strict=True))
        tw = dict(zip(ctx.adapted, direction, strict=True))
        probabilities = of_loss["probabilities"]
        with torch.autocast(*ctx.autocast):
            tlogits = ctx.network.forward_tangent(w, tw, saved)
            centred = tlogits - (probabilities * tlogits).sum(-1, keepdim=True)
            tdlogits = probabilities * centred / tlogits.shape[1]
            tdx, tdw = ctx.network.backward_tangent(w, tw, tdlogits, saved, need_dx=ctx.needs_input_grad[3])
        return None, None, None, tdx, *(tdw[name] for name in ctx.names)


def _autocast(x: Tensor) -> tuple[str, torch.dtype, bool]:
    kind = x.device.type
    return kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)


def _keep(ctx: Any, values: Sequence[Tensor], saved: list[Saved]) -> None:
    """Save weights and whatever the layers left; tensors where autograd frees them."""
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
