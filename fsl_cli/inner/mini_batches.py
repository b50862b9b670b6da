"""Mini-batches of a support set."""

from __future__ import annotations

import torch
from torch import Tensor

from fsl_cli.episodes.randomness import uniform


def mini_batches(seeds: Tensor, rows: int, size: int, steps: int) -> Tensor:
    """Rows of the support set for each step: consecutive random permutations, cut into batches.

    Every row is used once before any row is used again. A batch may span the end of one permutation and the start of the
    next; a batch larger than the support set always does.

    Args:
        seeds: int64 ``[T]``, `Episodes.seeds`.
        rows: number of images in the support set.
        size: rows per batch, B.
        steps: S >= 1.

    Returns:
        int64 ``[T, S, B]``. The batches of the first steps do not depend on ``steps``.
    """
    epochs = -(-size * steps // rows)
    orders = uniform(seeds, (epochs, rows), "mini-batches").argsort(dim=2, stable=True)
    stream: Tensor = orders.flatten(1)[:, : size * steps]
    return torch.unflatten(stream, 1, (steps, size))
