"""Classification scores per episode, as functions of logits and labels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fsl_cli.statistics.scores import mean_over_rows


def accuracy(logits: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """Fraction of correct predictions in each episode.

    Args:
        logits: ``[..., B, N]``.
        labels: int64 ``[..., B]``.
        mask: bool ``[..., B]``, the rows to include; None: all.

    Returns:
        ``[...]`` in 0..1, in the dtype of the logits.
    """
    return mean_over_rows((logits.argmax(-1) == labels).to(logits.dtype), mask)


def cross_entropy(logits: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean cross-entropy of each episode, in nats. Arguments as in `accuracy`.

    Returns:
        float ``[...]``.
    """
    losses = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none")
    return mean_over_rows(losses.view(labels.shape), mask)
