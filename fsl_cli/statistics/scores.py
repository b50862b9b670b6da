"""Scores: their names, directions and formatting."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

NONE = "none"  # stands for a score where a prediction is not finite


@dataclass(frozen=True)
class Score:
    """A metric of the quality of predictions.

    Attributes:
        name: its key in ``results.json`` and in the logs.
        higher_is_better: whether a higher value is better.
        unit: ``%`` for a fraction in 0..1 that is shown as a percentage; empty for values shown unchanged.
    """

    name: str
    higher_is_better: bool
    unit: str = ""

    def scaled(self, value: float) -> float:
        """The value in the unit of the score: a fraction is multiplied by 100 for ``%``."""
        return 100 * value if self.unit == "%" else value

    def number(self, value: float, digits: int | None = None) -> str:
        """The value as text, without the unit; ``none`` if it is not finite.

        Args:
            value: the value.
            digits: decimal places; None: two for a percentage, four significant digits for other scores.
        """
        if not math.isfinite(value):
            return NONE
        if digits is None and self.unit != "%":
            return f"{value:#.4g}"
        return f"{self.scaled(value):.{2 if digits is None else digits}f}"

    def half_width(self, mean: float, ci95: float) -> str:
        """The half width of an interval as text, with as many decimal places as its mean, without the unit."""
        text = self.number(mean)
        return self.number(ci95, None if "e" in text else len(text.partition(".")[2]))

    def interval(self, mean: float, ci95: float) -> str:
        """A mean with its interval as text, without the unit, such as ``93.67 ± 0.36``; ``none`` if there is no mean."""
        return f"{self.number(mean)} ± {self.half_width(mean, ci95)}" if math.isfinite(mean) else NONE

    def text(self, mean: float, ci95: float | None = None, digits: int | None = None) -> str:
        """The value, its interval if given, and the unit, such as ``93.67 ± 0.36 %``; ``none`` if it is not finite."""
        number = self.number(mean, digits) if ci95 is None else self.interval(mean, ci95)
        return f"{number} {self.unit}" if self.unit and math.isfinite(mean) else number

    @property
    def label(self) -> str:
        """Name and unit for a column header, such as ``accuracy %``."""
        return f"{self.name} {self.unit}".strip()

    def better(self, one: float, other: float) -> bool:
        """Whether ``one`` is better than ``other``; any number is better than NaN."""
        if math.isnan(one) or math.isnan(other):
            return math.isnan(other) and not math.isnan(one)
        return one > other if self.higher_is_better else one < other


ACCURACY = Score("accuracy", higher_is_better=True, unit="%")
LOSS = Score("loss", higher_is_better=False)
MSE = Score("mse", higher_is_better=False)


def mean_over_rows(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the last axis, ``[..., B]`` to ``[...]``, of the entries where ``mask``, bool ``[..., B]``, is true.

    The mask must be true for at least one entry along the axis; None: all entries.
    """
    if mask is None:
        return values.mean(-1)
    return torch.where(mask, values, 0).sum(-1) / mask.sum(-1)
