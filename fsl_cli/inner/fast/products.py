"""Matrix products over a task axis, with weights that are shared or task-specific."""

from __future__ import annotations

import torch
from torch import Tensor


def rows(x: Tensor) -> Tensor:
    """``[T, ..., K]`` as ``[T, R, K]``."""
    return x.flatten(1, -2)


def multiply(a: Tensor, b: Tensor, plus: Tensor | None = None) -> Tensor:
    """``a @ b + plus``; ``plus`` may be overwritten.

    Under `torch.autocast` the factors are rounded to its precision; the result and ``plus`` keep the dtype of ``a``.

    Args:
        a: ``[T, M, K]``.
        b: ``[T, K, N]``, or ``[K, N]`` shared by all tasks.
        plus: ``[T, M, N]``.
    """
    if plus is None or b.ndim == 2 or torch.is_autocast_enabled(a.device.type):
        product = torch.matmul(a, b).to(a.dtype)
        return product if plus is None else plus.add_(product)
    return plus.baddbmm_(a, b)


def outer(x: Tensor, dy: Tensor, weight: Tensor, plus: Tensor | None = None) -> Tensor:
    """``x' dy + plus`` in the shape of ``weight``: per task, or summed over the tasks if they share the weight.

    Args:
        x: ``[T, R, K]``.
        dy: ``[T, R, F]``.
        weight: ``[T, K, F]`` or ``[K, F]``.
        plus: in the shape of ``weight``; may be overwritten.
    """
    if weight.ndim == 3:
        return multiply(x.mT, dy, plus)
    product = torch.matmul(x.flatten(0, 1).mT, dy.flatten(0, 1)).to(x.dtype)
    return product if plus is None else plus.add_(product)


def to_shape_of(weight: Tensor, per_task: Tensor) -> Tensor:
    """``per_task`` ``[T, ...]``, summed over the tasks if ``weight`` has no task axis."""
    return per_task if weight.ndim == per_task.ndim else per_task.sum(0)
