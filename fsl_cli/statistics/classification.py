"""Per-episode measures: plain functions of logits and labels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Fraction of correct queries in each episode.

    Args:
        logits: ``[T, N*Q, N]``.
        labels: int64 ``[T, N*Q]``.

    Returns:
        ``[T]`` in 0..1, of the type of the logits.
    """
    return (logits.argmax(-1) == labels).to(logits.dtype).mean(-1)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the queries of each episode, in nats.

    Args:
        logits: ``[T, N*Q, N]``.
        labels: int64 ``[T, N*Q]``.

    Returns:
        float ``[T]``.
    """
    return F.cross_entropy(logits.transpose(1, 2), labels, reduction="none").mean(-1)
