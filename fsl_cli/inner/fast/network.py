"""A network as a list of layers with hand-written first and second derivatives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from fsl_cli.inner.fast.layers import Layer, PiecewiseLinear, Saved, Weights

Packing = Callable[[Tensor], Tensor]


class Network:
    """Layers in sequence, for many tasks at once.

    Attributes:
        start: layers before the first weight; their output does not change while weights adapt.
        layers: the remaining layers.
        packing: for each used weight, the function that converts PyTorch's layout to that of the layers; values are kept.
    """

    def __init__(self, layers: list[Layer], packing: Mapping[str, Packing]) -> None:
        first = next((i for i, layer in enumerate(layers) if not isinstance(layer, PiecewiseLinear)), len(layers))
        self.start, self.layers, self.packing = layers[:first], layers[first:], dict(packing)

    def pack(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Convert weights, or tensors of their shapes, to the layout of the layers; scalars are unchanged.

        Values that no layer uses are dropped.
        """
        single = {name: not isinstance(value, Tensor) or not value.ndim for name, value in values.items()}
        used = [name for name in values if name in self.packing]
        return {name: values[name] if single[name] else self.packing[name](values[name]) for name in used}

    def prepare(self, x: Tensor) -> Tensor:
        """Convert images ``[T, B, C, H, W]`` or features ``[T, B, D]`` to the input of `forward`."""
        x = x.movedim(2, -1) if x.ndim == 5 else x
        for layer in self.start:
            x = layer.forward({}, x, {})
        return x

    def forward(self, w: Weights, x: Tensor) -> tuple[Tensor, list[Saved]]:
        """Output ``[T, B, N]``, and what the other methods need."""
        saved: list[Saved] = [{} for _ in self.layers]
        for layer, each in zip(self.layers, saved, strict=True):
            x = layer.forward(w, x, each)
        return x, saved

    def backward(self, w: Weights, dy: Tensor, saved: list[Saved], *, need_dx: bool) -> tuple[Tensor | None, Saved]:
        """Derivatives w.r.t. the input, if ``need_dx``, and w.r.t. the weights, one per task."""
        dw: Saved = {}
        dx: Tensor | None = dy
        for index in reversed(range(len(self.layers))):
            assert dx is not None
            dx = self.layers[index].backward(w, dx, saved[index], dw, need_dx=need_dx or index > 0)
        return dx, dw

    def forward_tangent(self, w: Weights, tw: Weights, saved: list[Saved]) -> Tensor:
        """Tangent of the output for the tangents ``tw`` of the weights; at least one weight must have one."""
        tx: Tensor | None = None
        for layer, each in zip(self.layers, saved, strict=True):
            tx = layer.forward_tangent(w, tw, tx, each)
        assert tx is not None
        return tx

    def backward_tangent(
        self, w: Weights, tw: Weights, tdy: Tensor, saved: list[Saved], *, need_dx: bool
    ) -> tuple[Tensor | None, Saved]:
        """Tangents of the results of `backward`; those w.r.t. the weights have the shapes of ``w``."""
        tdw: Saved = {}
        tdx: Tensor | None = tdy
        for index in reversed(range(len(self.layers))):
            assert tdx is not None
            tdx = self.layers[index].backward_tangent(w, tw, tdx, saved[index], tdw, need_dx=need_dx or index > 0)
        return tdx, tdw
