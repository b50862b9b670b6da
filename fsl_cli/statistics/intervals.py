"""Confidence intervals for a mean over episodes."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit  # the quantile of Student's t; importing scipy.stats takes half a second more


@dataclass(frozen=True)
class MeanInterval:
    """A mean and the half width of its 95% confidence interval.

    Attributes:
        mean: the mean, in the unit of the values; NaN if one of them is not finite.
        ci95: half width of the interval; NaN if the mean is, or if n is 1: the standard deviation is then undefined.
        n: number of values.
        method: ``t`` (Student's t, sample standard deviation with ddof=1).
    """

    mean: float
    ci95: float
    n: int
    method: str

    def as_dict(self) -> dict[str, float | int | str]:
        """The fields by name."""
        return asdict(self)

    def numbers(self) -> dict[str, float | int]:
        """``mean``, ``ci95`` and ``n``."""
        return {"mean": self.mean, "ci95": self.ci95, "n": self.n}


def t_interval(values: ArrayLike, level: float = 0.95) -> MeanInterval:
    """Mean of independent values with Student's t interval, ``t * s / sqrt(n)`` with n-1 degrees of freedom.

    If one of the values is not finite there is no mean: it is NaN, and so is the interval.

    Args:
        values: ``[n]``, n >= 1.
        level: confidence level in (0, 1).

    Raises:
        ValueError: no values.
    """
    array = np.asarray(values, dtype=np.float64)
    n = array.size
    if n == 0:
        raise ValueError("an interval needs at least one value")
    mean = half = float("nan")
    if np.isfinite(array).all():
        mean = float(array.mean())
        if n > 1:
            half = float(stdtrit(n - 1, 0.5 + level / 2) * array.std(ddof=1) / np.sqrt(n))
    return MeanInterval(mean, half, n, "t")
