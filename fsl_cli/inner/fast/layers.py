"""Layers for many tasks at once, with hand-written first and second derivatives.

A layer processes T tasks together, as ``[T, B, H, W, C]`` or ``[T, B, D]``; a weight is either shared by the tasks,
``[...]``, or task-specific, ``[T, ...]``. Besides the forward and backward passes, a layer implements their tangents: the
directional derivatives of both passes. Together they compute a Hessian-vector product in forward-over-reverse mode
(Pearlmutter 1994, "Fast exact multiplication by the Hessian") at twice the cost of a gradient, without an autograd graph.

Notation: ``x`` input, ``y`` output, ``w`` weights by name; ``dy`` the derivative of the loss w.r.t. y; ``tx`` the tangent
(directional derivative) of x, None if it is zero.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fsl_cli.inner.fast.products import multiply, outer, rows, to_shape_of

Weights = Mapping[str, Tensor]
Saved = dict[str, Any]


class Layer(ABC):
    """One layer of a network."""

    @abstractmethod
    def forward(self, w: Weights, x: Tensor, saved: Saved) -> Tensor:
        """Output; stores in ``saved`` what the other methods need."""

    @abstractmethod
    def backward(self, w: Weights, dy: Tensor, saved: Saved, dw: Saved, *, need_dx: bool) -> Tensor | None:
        """Derivative w.r.t. x if ``need_dx``; stores the derivatives w.r.t. the weights, one per task, in ``dw``."""

    @abstractmethod
    def forward_tangent(self, w: Weights, tw: Weights, tx: Tensor | None, saved: Saved) -> Tensor | None:
        """Tangent of `forward`; a weight without an entry in ``tw`` has tangent zero."""

    @abstractmethod
    def backward_tangent(
        self, w: Weights, tw: Weights, tdy: Tensor, saved: Saved, tdw: Saved, *, need_dx: bool
    ) -> Tensor | None:
        """Tangent of `backward`; stores the tangents of the weights' derivatives, in the shapes of ``w``, in ``tdw``."""


class Product(Layer):
    """Matrix product of the last axis with a weight ``[K, F]``, plus a bias ``[1, F]``.

    Args:
        weight: name of the weight.
        bias: name of the bias; None: no bias.
    """

    def __init__(self, weight: str, bias: str | None) -> None:
        self.weight, self.bias = weight, bias

    def forward(self, w: Weights, x: Tensor, saved: Saved) -> Tensor:
        """``y = x W + b``."""
        saved["x"] = x
        y = multiply(rows(x), w[self.weight])
        if self.bias is not None:
            y += w[self.bias]
        return y.view(*x.shape[:-1], -1)

    def backward(self, w: Weights, dy: Tensor, saved: Saved, dw: Saved, *, need_dx: bool) -> Tensor | None:
        """``dW = x' dy``, ``db = sum dy``, ``dx = dy W'``."""
        x = saved["x"]
        dy = saved["dy"] = rows(dy)
        dw[self.weight] = multiply(rows(x).mT, dy)
        if self.bias is not None:
            dw[self.bias] = dy.sum(1, keepdim=True)
        return multiply(dy, w[self.weight].mT).view(x.shape) if need_dx else None

    def forward_tangent(self, w: Weights, tw: Weights, tx: Tensor | None, saved: Saved) -> Tensor | None:
        """``ty = tx W + x tW + tb``."""
        x, ty = saved["x"], None
        if tx is not None:
            saved["tx"] = tx
            ty = multiply(rows(tx), w[self.weight])
        if self.weight in tw:
            ty = multiply(rows(x), tw[self.weight], plus=ty)
        if self.bias is not None and self.bias in tw:
            ty = tw[self.bias].expand(-1, rows(x).shape[1], -1) if ty is None else ty.add_(tw[self.bias])
        return None if ty is None else ty.view(*x.shape[:-1], -1)

    def backward_tangent(
        self, w: Weights, tw: Weights, tdy: Tensor, saved: Saved, tdw: Saved, *, need_dx: bool
    ) -> Tensor | None:
        """``tdW = x' tdy + tx' dy``, ``tdb = sum tdy``, ``tdx = tdy W' + dy tW'``."""
        x, dy, weight = saved["x"], saved["dy"], w[self.weight]
        tdy = rows(tdy)
        found = outer(rows(x), tdy, weight)
        tdw[self.weight] = outer(rows(saved["tx"]), dy, weight, plus=found) if "tx" in saved else found
        if self.bias is not None:
            tdw[self.bias] = to_shape_of(w[self.bias], tdy.sum(1, keepdim=True))
        if not need_dx:
            return None
        tdx = multiply(tdy, weight.mT)
        return (multiply(dy, tw[self.weight].mT, plus=tdx) if self.weight in tw else tdx).view(x.shape)


class PiecewiseLinear(Layer):
    """A piecewise linear layer without weights: wherever it is differentiable, its tangent is the same linear map."""

    @abstractmethod
    def linear(self, x: Tensor, saved: Saved) -> Tensor:
        """The linear map that applies at the input of the last `forward`."""

    @abstractmethod
    def adjoint(self, dy: Tensor, saved: Saved) -> Tensor:
        """The transpose of `linear`."""

    def backward(self, w: Weights, dy: Tensor, saved: Saved, dw: Saved, *, need_dx: bool) -> Tensor | None:
        """The transposed map."""
        return self.adjoint(dy, saved) if need_dx else None

    def forward_tangent(self, w: Weights, tw: Weights, tx: Tensor | None, saved: Saved) -> Tensor | None:
        """The map itself."""
        return None if tx is None else self.linear(tx, saved)

    def backward_tangent(
        self, w: Weights, tw: Weights, tdy: Tensor, saved: Saved, tdw: Saved, *, need_dx: bool
    ) -> Tensor | None:
        """The transposed map."""
        return self.adjoint(tdy, saved) if need_dx else None
