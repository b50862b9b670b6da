"""Classification scores per episode, as functions of logits and labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fsl_cli.statistics.scores import mean_over_rows


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """For each row of logits ``[..., B, N]``: 1 if the largest is that of its label, else 0; NaN unless all are finite."""
    right = (logits.argmax(-1) == labels).to(logits.dtype)
    return torch.where(logits.isfinite().all(-1), right, torch.nan)


def accuracy(logits: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """Fraction of correct predictions in each episode.

    Args:
        logits: ``[..., B, N]``.
        labels: int64 ``[..., B]``.
        mask: bool ``[..., B]``, the rows to include; None: all.

    Returns:
        ``[...]`` in 0..1, in the dtype of the logits; NaN if a logit of a row is not finite: that is no prediction.
    """
    return mean_over_rows(correct(logits, labels), mask)


def cross_entropy(logits: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean cross-entropy of each episode, in nats. Arguments as in `accuracy`.

    Returns:
        float ``[...]``.
    """
    losses = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none")
    return mean_over_rows(losses.view(labels.shape), mask)
