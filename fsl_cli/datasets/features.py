"""Vectors with labels: embeddings, fingerprints of molecules, rows of sensors, any table of numbers."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Len, Lt

from fsl_cli.datasets.class_splits import SPLITS, check_fractions, split_by_file, split_by_fractions, split_name
from fsl_cli.datasets.dataset import ExampleClasses, SplitName
from fsl_cli.datasets.feature_files import FeatureTable, read_features, rows_with_missing
from fsl_cli.datasets.status import Status
from fsl_cli.episodes.class_images import ClassImages
from fsl_cli.errors import FslError

Rows = dict[str, np.ndarray]  # the rows of each class


class Features(ExampleClasses):
    """Examples that are vectors, from one file, which is read into memory.

    Args:
        file: see `read_features`.
        label: name of the array or column of labels; None: see `read_features`.
        split_file: a CSV file with the columns class and split, or a folder with train.txt, val.txt and test.txt. None: the
            column or array ``split`` of the file where it has one, otherwise classes are drawn.
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
        split_file: Path | None = None,
        fractions: Annotated[list[Annotated[float, Gt(0), Lt(1)]], Len(3, 3)] = [0.6, 0.2, 0.2],  # noqa: B006
        split_seed: Annotated[int, Ge(0)] = 0,
        standardize: bool = True,
        missing: Literal["refuse", "mean"] = "refuse",
    ) -> None:
        self.file, self.label = Path(file).expanduser(), label
        self.split_file = Path(split_file).expanduser() if split_file else None
        self.fractions, self.split_seed = fractions, split_seed
        self.standardize, self.missing = standardize, missing
        check_fractions(fractions)

    def split(self, name: SplitName) -> ClassImages:
        """The classes of one split, sorted by name; their rows in the order of the file.

        Raises:
            FslError: the file cannot be read, a value is missing, or the classes cannot be split.
        """
        rows = self._rows[name]
        values = self._values[np.concatenate(list(rows.values()))] if rows else np.empty((0, *self.example_shape))
        counts = np.array([len(each) for each in rows.values()], dtype=np.int64)
        return ClassImages(torch.from_numpy(values.astype(np.float32)), counts, list(rows))

    def counts(self, name: SplitName) -> np.ndarray:
        """int64 ``[classes]``, examples per class of one split. Raises the same errors as `split`."""
        return np.array([len(each) for each in self._rows[name].values()], dtype=np.int64)

    def status(self) -> Status:
        """Its file, which is read to count the rows of each class. Raises the errors of `split`."""
        counts = {split: np.array([len(rows) for rows in classes.values()]) for split, classes in self._rows.items()}
        return Status((self.file,), counts=counts)

    @property
    def example_shape(self) -> tuple[int, ...]:
        """``(D,)``."""
        return (self._table.values.shape[1],)

    @cached_property
    def _table(self) -> FeatureTable:
        return read_features(self.file, self.label)

    @cached_property
    def _rows(self) -> dict[str, Rows]:
        labels = np.array(self._table.labels)
        classes = {str(name): np.flatnonzero(labels == name) for name in np.unique(labels)}
        if self.split_file:
            return split_by_file(classes, self.split_file)
        if self._table.splits is None:
            return split_by_fractions(classes, self.fractions, self.split_seed)
        splits = np.array([split_name(each, f"{self.file}, row {row}") for row, each in enumerate(self._table.splits, 1)])
        found = {split: {name: rows[splits[rows] == split] for name, rows in classes.items()} for split in SPLITS}
        return {split: {name: rows for name, rows in each.items() if len(rows)} for split, each in found.items()}

    @cached_property
    def _values(self) -> np.ndarray:
        """float64 ``[n, D]``, filled in and standardised."""
        values, training = self._table.values, self._rows["train"]
        if not training:
            raise FslError("has no training classes", where=str(self.file), hint="its split must have train, val and test")
        if self.missing == "refuse" and (rows := rows_with_missing(values)):
            hint = "complete or remove them, or set dataset.missing=mean"
            raise FslError(f"values are missing or infinite in rows {rows}", where=str(self.file), hint=hint)
        seen = np.where(np.isfinite(values), values, np.nan)[np.concatenate(list(training.values()))]
        if (empty := np.isnan(seen).all(0)).any():
            what = f"feature {np.flatnonzero(empty)[0] + 1} has no value in the training classes"
            raise FslError(what, where=str(self.file), hint="remove it")
        mean, deviation = np.nanmean(seen, 0), np.nanstd(seen, 0)
        values = np.where(np.isfinite(values), values, mean)
        return (values - mean) / np.where(deviation > 0, deviation, 1) if self.standardize else values
