"""Tables of numbers with a label in each row: CSV, and NumPy's files."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fsl_cli.datasets.image_files import readable
from fsl_cli.errors import FslError, first_line

LABELS = ("label", "class", "y", "labels", "target", "category")
FEATURES = ("x", "X", "features", "embeddings", "data")
MISSING = ("", "na", "nan", "null", "none", "?")
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


def read_features(path: Path, label: str | None = None) -> FeatureTable:
    """Read a file by its extension: ``.npz``, ``.csv``, ``.tsv`` or ``.data``.

    Args:
        path: the file. ``.npz`` has the arrays ``x`` and ``y``, and perhaps ``split``. Tables have a column of labels and
            perhaps a column ``split``; all others are numbers. A table without a header has one column that is not numbers.
        label: name of the array or column of labels; None: label, class, y, labels, target or category.

    Raises:
        FslError: the file cannot be read, its extension is unknown, or its labels or numbers are not found.
    """
    if not path.is_file():
        raise FslError("there is no such file", where=str(path), hint="dataset.file names a table of numbers with labels")
    if path.suffix == ".npz":
        return _from_npz(path, label)
    if path.suffix in (".csv", ".tsv", ".data"):
        return _from_table(path, *_csv_columns(path), label)
    raise FslError("is no table that can be read", where=str(path), hint="use .npz, .csv, .tsv or .data")


def _from_npz(path: Path, label: str | None) -> FeatureTable:
    try:
        with readable(path), np.load(path, allow_pickle=False) as file:  # a pickle can run code
            arrays = {name: file[name] for name in file.files}
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        hint = "save numbers and texts: numpy.savez(FILE, x=..., y=...)"
        raise FslError(f"cannot be read: {first_line(error)}", where=str(path), hint=hint) from error
    values = arrays[_named(path, list(arrays), FEATURES, "array of features")]
    labels = arrays[label or _named(path, list(arrays), LABELS, "array of labels")] if label in (None, *arrays) else None
    if labels is None:
        raise FslError(f"has no array {label}", where=str(path), hint=f"it has {', '.join(arrays)}")
    if values.dtype.kind not in "fiub" or values.ndim < 2 or labels.shape != values.shape[:1]:
        what = f"has features {values.dtype} {list(values.shape)} and labels {list(labels.shape)}"
        raise FslError(what, where=str(path), hint="expected numbers [n, D] and n labels")
    splits = arrays.get("split")
    names = [str(each) for each in labels.tolist()]
    return FeatureTable(
        values.reshape(len(values), -1).astype(np.float64),
        names,
        None if splits is None else [str(each) for each in splits.tolist()],
    )


def _csv_columns(path: Path) -> tuple[list[str], list[Sequence[Any]]]:
    """Names and columns; a first row of which more than one value is a number is no header."""
    try:
        with readable(path), path.open(encoding="utf-8-sig", newline="") as file:
            text = file.read()
        separator = max(",;\t", key=text.partition("\n")[0].count)
        rows = [row for row in csv.reader(text.splitlines(), delimiter=separator) if row]
    except (csv.Error, UnicodeDecodeError) as error:
        raise FslError(f"cannot be read: {first_line(error)}", where=str(path), hint="use UTF-8, with commas") from error
    if not rows:
        raise FslError("is empty", where=str(path), hint="expected a row for each example")
    for number, row in enumerate(rows, start=1):
        if len(row) != len(rows[0]):
            what = f"has {len(row)} values, and the first row has {len(rows[0])}"
            raise FslError(what, where=f"{path}, row {number}", hint="each row has all columns")
    header = sum(_is_number(each) for each in rows[0]) <= 1
    names = rows[0] if header else [f"column {number}" for number in range(1, len(rows[0]) + 1)]
    return names, list(zip(*rows[header:], strict=True))


def _from_table(path: Path, names: list[str], columns: list[Sequence[Any]], label: str | None) -> FeatureTable:
    by_name = dict(zip(names, columns, strict=True))
    if label is None and not set(LABELS) & set(names):
        words = [name for name, column in by_name.items() if name != "split" and not all(map(_is_number_or_missing, column))]
        label = words[0] if len(words) == 1 else None
    label = label or _named(path, names, LABELS, "column of labels")
    if label not in by_name:
        raise FslError(f"has no column {label}", where=str(path), hint=f"it has {', '.join(names)}")
    numbers = {name: column for name, column in by_name.items() if name not in (label, "split")}
    for name, column in numbers.items():
        for row, each in enumerate(column, start=1):
            if not _is_number_or_missing(each):
                what, hint = f"{each!r} in column {name} is not a number", "only the labels and split may be words"
                raise FslError(what, where=f"{path}, row {row} of the data", hint=hint)
    if not numbers:
        raise FslError("has no columns of numbers", where=str(path), hint=f"it has {', '.join(names)}")
    values = np.array([[_number(each) for each in column] for column in numbers.values()], dtype=np.float64).T
    splits = by_name.get("split")
    return FeatureTable(
        values, [str(each) for each in by_name[label]], None if splits is None else [str(each) for each in splits]
    )


def rows_with_missing(values: np.ndarray) -> str:
    """The first rows, counted from 1, in which a value is missing or infinite; empty if there are none."""
    rows = np.flatnonzero(~np.isfinite(values).all(1)) + 1
    more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
    return ", ".join(map(str, rows[:_NAMED])) + more


def _named(path: Path, names: Sequence[str], accepted: Sequence[str], what: str) -> str:
    found = [name for name in accepted if name in names]
    if not found:
        hint = f"it has {', '.join(names)}; expected one of {', '.join(accepted)}, or set dataset.label"
        raise FslError(f"has no {what}", where=str(path), hint=hint)
    return found[0]


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _is_number_or_missing(value: Any) -> bool:
    return value is None or str(value).strip().lower() in MISSING or _is_number(value)


def _number(value: Any) -> float:
    return float(value) if _is_number(value) else float("nan")
