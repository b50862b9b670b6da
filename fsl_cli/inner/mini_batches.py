"""Mini-batches of a support set: an endless stream (`mini_batches`), or whole passes over it (`passes`)."""

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


def passes(seeds: Tensor, real: Tensor, size: int, epochs: int) -> tuple[Tensor, Tensor]:
    """Rows of the support set for each step: ``epochs`` random permutations, each cut into batches, the last one smaller.

    Masked rows occur in no batch, and the order of the others does not depend on them. A task with fewer rows than
    another one has fewer batches in a pass; its remaining ones are empty.

    Args:
        seeds: int64 ``[T]``, `Episodes.seeds`.
        real: bool ``[T, R]``, the rows that are examples.
        size: rows per batch, B.
        epochs: >= 1.

    Returns:
        int64 ``[T, S, B]``, rows of the support set, where S is the largest number of steps of a task; and bool
        ``[T, S, B]``, false for the places that are filled up to B.
    """
    counts = real.sum(1)
    longest = int(counts.max())
    drawn = uniform(seeds, (longest, epochs), "passes")  # a row after another: the numbers of a row depend on no other row
    rank = (real.cumsum(1) - 1).clamp(min=0)
    keys = drawn.gather(1, rank.unsqueeze(2).expand(-1, -1, epochs)).masked_fill(~real.unsqueeze(2), 2.0)
    orders = keys.argsort(dim=1, stable=True)[:, :longest].mT
    filled = -longest % size
    places = torch.arange(longest + filled, device=seeds.device) < counts.unsqueeze(1)
    rows = torch.nn.functional.pad(orders, (0, filled))
    return rows.reshape(len(seeds), -1, size), places.unsqueeze(1).expand_as(rows).reshape(len(seeds), -1, size)
