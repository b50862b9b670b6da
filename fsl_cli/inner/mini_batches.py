"""Mini-batches of a support set."""

from __future__ import annotations

import torch
from torch import Tensor

from fsl_cli.episodes.randomness import uniform


def mini_batches(seeds: Tensor, rows: int, size: int, steps: int) -> Tensor:
    """Rows of the support set for each step: one random order after the other, cut into batches.

    Every row is seen once before any is seen again; a batch may reach from the end of one order into the next, and does
    so when it is larger than the support set.

    Args:
        seeds: int64 ``[T]``, `Episodes.seeds`.
        rows: how many images the support set has.
        size: rows of a batch, B.
        steps: S >= 1.

    Returns:
        int64 ``[T, S, B]``. The first steps are the same however many follow.
    """
    epochs = -(-size * steps // rows)
    orders = uniform(seeds, (epochs, rows), "mini-batches").argsort(dim=2, stable=True)
    stream: Tensor = orders.flatten(1)[:, : size * steps]
    return torch.unflatten(stream, 1, (steps, size))
