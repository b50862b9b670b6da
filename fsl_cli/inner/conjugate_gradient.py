"""The conjugate gradient method for one linear system per task, all tasks at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fsl_cli.inner.update_rules import Parameters


def conjugate_gradient(product: Callable[[Parameters], Parameters], b: Parameters, steps: int) -> tuple[Parameters, Tensor]:
    """Solve ``A x = b`` for each task, where A is symmetric (Hestenes & Stiefel 1952; Nocedal & Wright 2006, algorithm 5.2).

    A task stops at negative curvature, when the search direction d has ``d' A d <= 0``, as truncated Newton methods do
    (algorithm 7.1): it keeps its current x, or takes b itself if this happens in the first step.

    Args:
        product: maps x to A x, each task with its own A.
        b: ``[T, ...]`` by name; the vector of a task is the concatenation of its entries over all names.
        steps: maximum number of steps, each with one product; >= 1.

    Returns:
        x, and the norm of ``b - A x`` relative to the norm of b, ``[T]``.
    """
    x = {name: torch.zeros_like(value) for name, value in b.items()}
    residual, direction = b, b
    square = start = inner_product(b, b)
    convex = torch.ones_like(square, dtype=torch.bool)
    for step in range(steps):
        image = product(direction)
        curvature = inner_product(direction, image)
        convex = convex & (curvature > 0)
        alpha = torch.where(convex, square / torch.where(convex, curvature, 1.0), 0.0)
        along = alpha if step else torch.where(convex, alpha, 1.0)
        x = _plus(x, along, direction)
        residual = _plus(residual, -along, image)
        after = inner_product(residual, residual)
        beta = after / torch.where(square > 0, square, 1.0)
        direction, square = _plus(residual, beta, direction), after
    return x, (square / torch.where(start > 0, start, 1.0)).sqrt()


def inner_product(one: Parameters, other: Parameters) -> Tensor:
    """Inner product of each task's vectors, over all names and entries: ``[T]``."""
    return torch.stack([(value * other[name]).flatten(1).sum(1) for name, value in one.items()]).sum(0)


def norm(vector: Parameters) -> Tensor:
    """Euclidean norm of each task's vector, over all names and entries: ``[T]``."""
    return inner_product(vector, vector).sqrt()


def _plus(x: Parameters, factor: Tensor, y: Parameters) -> Parameters:
    """``x + factor * y`` with one factor per task, ``[T]``."""
    return {name: value + factor.view(-1, *[1] * (value.ndim - 1)) * y[name] for name, value in x.items()}
