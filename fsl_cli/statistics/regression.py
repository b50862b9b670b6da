"""Regression scores per episode, as functions of predictions and targets."""

from __future__ import annotations

from torch import Tensor

from fsl_cli.statistics.scores import mean_over_rows


def mean_squared_error(outputs: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error of each episode, over its rows and their outputs.

    Args:
        outputs: ``[..., B, O]``.
        targets: ``[..., B, O]``.
        mask: bool ``[..., B]``, the rows to include; None: all.

    Returns:
        ``[...]``, >= 0.
    """
    return mean_over_rows((outputs - targets).square().mean(-1), mask)
