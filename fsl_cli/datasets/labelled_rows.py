"""Data sets whose examples are the rows of a file, with a label in each, and how their classes are split."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Protocol

import numpy as np
from annotated_types import Gt, Len, Lt
from torch import Tensor

from fsl_cli.datasets.class_splits import check_fractions, split_by_file, split_by_fractions, split_name
from fsl_cli.datasets.dataset import SPLITS, ExampleClasses, SplitName
from fsl_cli.datasets.feature_table import first_of
from fsl_cli.datasets.status import Status
from fsl_cli.episodes.class_images import ClassImages
from fsl_cli.errors import FslError

Rows = dict[str, np.ndarray]  # the rows of each class
Fractions = Annotated[list[Annotated[float, Gt(0), Lt(1)]], Len(3, 3)]
SplitBy = Literal["column", "file", "fractions"]


class LabelledTable(Protocol):
    """What a file says of its rows.

    Attributes:
        labels: the class of each row.
        splits: the split of each row; None if the file does not say.
    """

    @property
    def labels(self) -> Sequence[str]: ...  # noqa: D102

    @property
    def splits(self) -> Sequence[str] | None: ...  # noqa: D102


class LabelledRows(ExampleClasses):
    """Rows with labels, of which whole classes belong to a split.

    Args:
        file: of the rows; None: the subclass finds it.
        split_by: ``column``: the file says the split of each row; ``file``: see ``split_file``; ``fractions``: classes drawn.
            None: file if there is one, otherwise column if there is one, otherwise fractions.
        split_file: a CSV file with the columns class and split, or a folder with train.txt, val.txt and test.txt.
        fractions: of the classes drawn for train, val and test.
        split_seed: of the draw of classes; not of the run.
    """

    def __init__(
        self, file: Path | None, split_by: SplitBy | None, split_file: Path | None, fractions: Sequence[float], split_seed: int
    ) -> None:
        self.given_file = Path(file).expanduser() if file else None
        self.split_by = split_by
        self.split_file = Path(split_file).expanduser() if split_file else None
        self.fractions, self.split_seed = fractions, split_seed
        check_fractions(fractions)

    @property
    def file(self) -> Path:
        """The file of the rows.

        Raises:
            FslError: none is given.
        """
        if self.given_file is None:
            raise FslError("is missing", where="dataset.file", hint="name the file")
        return self.given_file

    @property
    @abstractmethod
    def table(self) -> LabelledTable:
        """The content of the file."""

    @abstractmethod
    def values(self, rows: np.ndarray) -> Tensor:
        """Examples ``[n, ...]`` of rows, int64 ``[n]``."""

    def split(self, name: SplitName) -> ClassImages:
        """The classes of one split, sorted by name; their rows in the order of the file.

        Raises:
            FslError: the file cannot be read, a value is missing, or the classes cannot be split.
        """
        rows = self.rows[name]
        everything = np.concatenate([np.empty(0, np.int64), *rows.values()])
        return ClassImages(self.values(everything), self.counts(name), list(rows))

    def counts(self, name: SplitName) -> np.ndarray:
        """int64 ``[classes]``, examples per class of one split. Raises the same errors as `split`."""
        return np.array([len(each) for each in self.rows[name].values()], dtype=np.int64)

    def status(self) -> Status:
        """Its file, which is read to count the rows of each class. Raises the errors of `split`."""
        return Status((self.file,), counts={split: self.counts(split) for split in SPLITS})

    @cached_property
    def rows(self) -> Mapping[str, Rows]:
        """The rows of each class of each split."""
        labels = np.array(self.table.labels)
        classes = {str(name): np.flatnonzero(labels == name) for name in np.unique(labels)}
        by = self.split_by or ("file" if self.split_file else "fractions" if self.table.splits is None else "column")
        if by == "fractions":
            return self.drawn(classes)
        if by == "file":
            if self.split_file is None:
                raise FslError(
                    "is missing", where="dataset.split_file", hint="name a CSV file with the columns class and split"
                )
            return split_by_file(classes, self.split_file)
        if self.table.splits is None:
            raise FslError("has no column split", where=str(self.file), hint="use dataset.split_by=file or fractions")
        return self._by_column(classes, self.table.splits)

    @property
    def training_rows(self) -> np.ndarray:
        """int64 ``[n]``, the rows of the training classes.

        Raises:
            FslError: there are none.
        """
        if not self.rows["train"]:
            raise FslError("has no training classes", where=str(self.file), hint="its split must have train, val and test")
        return np.concatenate(list(self.rows["train"].values()))

    def drawn(self, classes: Rows) -> Mapping[str, Rows]:
        """Classes drawn for each split by ``fractions`` and ``split_seed``."""
        return split_by_fractions(classes, self.fractions, self.split_seed)

    def _by_column(self, classes: Rows, splits_of_rows: Sequence[str]) -> Mapping[str, Rows]:
        splits = np.array([split_name(each, f"{self.file}, row {row}") for row, each in enumerate(splits_of_rows, 1)])
        if several := [name for name, rows in classes.items() if len(set(splits[rows])) > 1]:
            what = f"has classes in more than one split: {first_of(several)}"
            hint = "a test needs classes that training does not have: dataset.split_by=fractions draws them"
            raise FslError(what, where=str(self.file), hint=hint)
        return {split: {name: rows for name, rows in classes.items() if splits[rows[0]] == split} for split in SPLITS}
