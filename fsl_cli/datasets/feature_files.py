"""Files of numbers with a label for each row: CSV, and NumPy's; Parquet is read by `feature_parquet`."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fsl_cli.datasets.feature_parquet import features_from_parquet
from fsl_cli.datasets.feature_table import FEATURES, LABELS, FeatureTable, named
from fsl_cli.datasets.image_files import BAD_ZIP, readable
from fsl_cli.errors import FslError, first_line

_MOST_UNPACKED, _RATIO = 1 << 28, 200  # bytes of an array that may be packed any tighter; then unpacked to packed size
MISSING = ("", "na", "nan", "null", "none", "?")


def read_features(path: Path, label: str | None = None, labels: Path | None = None) -> FeatureTable:
    """Read a file by its extension: ``.npz``, ``.npy``, ``.parquet``, ``.csv``, ``.tsv`` or ``.data``.

    Args:
        path: the file. ``.npz`` has the arrays ``x`` and ``y``, perhaps ``split``; ``.npy`` has ``x`` alone, see ``labels``.
            Tables have a column of labels and perhaps a column ``split``; all others are numbers, or in Parquet one of them
            has vectors. A table without a header has one column that is not numbers.
        label: name of the array or column of labels; None: label, class, y, labels, target or category.
        labels: of a ``.npy`` file: see `read_labels`.

    Raises:
        FslError: the file cannot be read, its extension is unknown, or its labels or numbers are not found.
    """
    if not path.is_file():
        raise FslError("there is no such file", where=str(path), hint="dataset.file names a table of numbers with labels")
    kind = path.suffix.lower()
    if kind == ".npy":
        return _from_npy(path, label, labels)
    if labels is not None:
        raise FslError("only a .npy file has its labels in another file", where="dataset.labels", hint="use dataset.label")
    if kind == ".npz":
        return _from_npz(path, label)
    if kind == ".parquet":
        return features_from_parquet(path, label)
    if kind in (".csv", ".tsv", ".data"):
        return _from_table(path, *_csv_columns(path), label)
    raise FslError("is no table that can be read", where=str(path), hint="use .npz, .npy, .parquet, .csv, .tsv or .data")


def read_labels(path: Path) -> list[str]:
    """Labels in the order of the rows they belong to: a ``.npy`` file ``[n]``, or a text file with a label per line.

    Raises:
        FslError: the file is missing or cannot be read.
    """
    if not path.is_file():
        raise FslError("there is no such file", where=str(path), hint="dataset.labels names the labels of a .npy file")
    if path.suffix.lower() == ".npy":
        found = _array(path)
        if found.ndim != 1:
            raise FslError(f"has the shape {list(found.shape)}", where=str(path), hint="expected one label for each row, [n]")
        return [str(each) for each in found.tolist()]
    try:
        with readable(path):
            return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise FslError(f"cannot be read: {first_line(error)}", where=str(path), hint="use UTF-8, a label per line") from error


def _from_npy(path: Path, label: str | None, labels: Path | None) -> FeatureTable:
    if labels is None or label is not None:
        where, hint = f"dataset.{'labels' if labels is None else 'label'}", "dataset.labels=y.npy, or a text file, has them"
        raise FslError(f"{path.name} has no labels, which are in another file", where=where, hint=hint)
    return _table(path, _array(path), read_labels(labels), None)


def _array(path: Path) -> np.ndarray:
    try:
        with readable(path):
            found = np.load(path, allow_pickle=False)  # a pickle can run code
    except (ValueError, EOFError, MemoryError, OverflowError) as error:
        raise FslError(f"cannot be read: {first_line(error)}", where=str(path), hint="numpy.save(FILE, x)") from error
    if not isinstance(found, np.ndarray):
        raise FslError("is no array: it is a .npz file of another name", where=str(path), hint="call it .npz")
    return found


def _check_unpacked(path: Path) -> None:
    """Raise ValueError for a file that unpacks to far more than arrays do: a megabyte can hold a gigabyte of zeros."""
    with readable(path), zipfile.ZipFile(path) as file:
        for each in file.infolist():
            if each.file_size > max(_MOST_UNPACKED, _RATIO * each.compress_size):
                raise ValueError(f"{each.filename} unpacks to {each.file_size:,} bytes, {_RATIO} times its size and more")


def _from_npz(path: Path, label: str | None) -> FeatureTable:
    try:
        _check_unpacked(path)
        with readable(path), np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
            if other := [name for name, each in arrays.items() if not isinstance(each, np.ndarray)]:
                raise ValueError(f"{other[0]} is no array")
    except (*BAD_ZIP, MemoryError) as error:
        hint = "save numbers and texts: numpy.savez(FILE, x=..., y=...)"
        raise FslError(f"cannot be read: {first_line(error)}", where=str(path), hint=hint) from error
    label = label or named(path, list(arrays), LABELS, "array of labels")
    if label not in arrays:
        raise FslError(f"has no array {label}", where=str(path), hint=f"it has {', '.join(arrays)}")
    labels, splits = arrays[label], arrays.get("split")
    if labels.ndim != 1:
        raise FslError(f"has labels {list(labels.shape)}", where=str(path), hint="expected one label for each row, [n]")
    values = arrays[named(path, list(arrays), FEATURES, "array of features")]
    return _table(path, values, labels.tolist(), None if splits is None else splits.tolist())


def _table(path: Path, values: np.ndarray, labels: Sequence[Any], splits: Sequence[Any] | None) -> FeatureTable:
    if values.dtype.kind not in "fiub" or values.ndim < 2 or len(labels) != len(values):
        what = f"has features {values.dtype} {list(values.shape)} and {len(labels)} labels"
        raise FslError(what, where=str(path), hint="expected numbers [n, D] and n labels")
    names, of_rows = ([str(each) for each in found] for found in (labels, splits or ()))
    return FeatureTable(values.reshape(len(values), -1).astype(np.float64), names, None if splits is None else of_rows)


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
    label = label or named(path, names, LABELS, "column of labels")
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
