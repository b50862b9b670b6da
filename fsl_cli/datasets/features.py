"""Vectors with labels: embeddings, fingerprints of molecules, rows of sensors, any table of numbers."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from fsl_cli.datasets.feature_files import read_features
from fsl_cli.datasets.feature_table import FeatureTable, rows_with_missing
from fsl_cli.datasets.labelled_rows import Fractions, LabelledRows, SplitBy
from fsl_cli.errors import FslError


class Features(LabelledRows):
    """Examples that are vectors, from one file, which is read into memory.

    Args:
        file: see `read_features`.
        label: name of the array or column of labels; None: see `read_features`.
        labels: the file of the labels of a ``.npy`` file, see `read_labels`.
        split_by: see `LabelledRows`.
        split_file: see `LabelledRows`.
        fractions: of the classes drawn for train, val and test.
        split_seed: of the draw of classes; not of the run.
        standardize: subtract the mean of each feature and divide by its standard deviation, both of the training classes.
        missing: ``refuse`` missing and infinite values, or replace them by the feature's ``mean`` in the training classes.
    """

    name = "features"

    def __init__(
        self,
        file: Path,
        *,
        label: str | None = None,
        labels: Path | None = None,
        split_by: SplitBy | None = None,
        split_file: Path | None = None,
        fractions: Fractions = [0.6, 0.2, 0.2],  # noqa: B006
        split_seed: Annotated[int, Ge(0)] = 0,
        standardize: bool = True,
        missing: Literal["refuse", "mean"] = "refuse",
    ) -> None:
        super().__init__(file, split_by, split_file, fractions, split_seed)
        self.label, self.labels_file = label, Path(labels).expanduser() if labels else None
        self.standardize, self.missing = standardize, missing

    @property
    def example_shape(self) -> tuple[int, ...]:
        """``(D,)``."""
        return (self.table.values.shape[1],)

    def values(self, rows: np.ndarray) -> Tensor:
        """float32 ``[n, D]`` of rows, int64 ``[n]``, filled in and standardised."""
        return torch.from_numpy(self._values[rows].astype(np.float32))

    @cached_property
    def table(self) -> FeatureTable:
        """Vectors and labels."""
        return read_features(self.file, self.label, self.labels_file)

    @cached_property
    def _values(self) -> np.ndarray:
        """float64 ``[n, D]``, filled in and standardised."""
        values, training = self.table.values, self.training_rows
        if self.missing == "refuse" and (rows := rows_with_missing(values)):
            hint = "complete or remove them, or set dataset.missing=mean"
            raise FslError(f"values are missing or infinite in rows {rows}", where=str(self.file), hint=hint)
        seen = np.where(np.isfinite(values), values, np.nan)[training]
        if (empty := np.isnan(seen).all(0)).any():
            what = f"feature {np.flatnonzero(empty)[0] + 1} has no value in the training classes"
            raise FslError(what, where=str(self.file), hint="remove it")
        mean, deviation = np.nanmean(seen, 0), np.nanstd(seen, 0)
        values = np.where(np.isfinite(values), values, mean)
        return (values - mean) / np.where(deviation > 0, deviation, 1) if self.standardize else values
