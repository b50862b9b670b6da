"""Examples of numbers with a label each, as any file of them is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fsl_cli.errors import FslError

LABELS = ("label", "class", "y", "labels", "target", "category")
FEATURES = ("x", "X", "features", "embeddings", "embedding", "data")
_NAMED = 5


@dataclass(frozen=True)
class FeatureTable:
    """Examples with labels.

    Attributes:
        values: float64 ``[n, D]``; NaN where a value is missing.
        labels: ``n`` class names.
        splits: ``n`` names of splits, or None if the file does not say.
    """

    values: np.ndarray
    labels: list[str]
    splits: list[str] | None


def rows_with_missing(values: np.ndarray) -> str:
    """The first rows, counted from 1, in which a value is missing or infinite; empty if there are none."""
    return first_of(np.flatnonzero(~np.isfinite(values).all(1)) + 1)


def first_of(rows: Sequence[object] | np.ndarray) -> str:
    """The first of these rows, or whatever else, and how many more there are."""
    more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
    return ", ".join(map(str, rows[:_NAMED])) + more


def named(path: Path, names: Sequence[str], accepted: Sequence[str], what: str) -> str:
    """The first accepted name that a file has.

    Raises:
        FslError: it has none.
    """
    found = [name for name in accepted if name in names]
    if not found:
        hint = f"it has {', '.join(names)}; expected one of {', '.join(accepted)}, or set dataset.label"
        raise FslError(f"has no {what}", where=str(path), hint=hint)
    return found[0]
