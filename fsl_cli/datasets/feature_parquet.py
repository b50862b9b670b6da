"""Parquet files, read by pyarrow, which is an extra: whole columns, and features with labels."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from fsl_cli.datasets.feature_table import FEATURES, LABELS, FeatureTable, first_of, named
from fsl_cli.datasets.image_files import readable
from fsl_cli.errors import FslError, first_line
from fsl_cli.optional import optional

_INDEX = re.compile(r"__index_level_\d+__")  # what pandas adds


def parquet_table(path: Path) -> Any:
    """The file as a ``pyarrow.Table``, without the index of pandas.

    Raises:
        FslError: pyarrow is not installed, or the file cannot be read.
    """
    arrow = optional("pyarrow", needed_for=str(path), package="pyarrow")
    parquet = optional("pyarrow.parquet", needed_for=str(path), package="pyarrow")
    try:
        with readable(path), path.open("rb") as file:
            table = parquet.read_table(file)
    except arrow.ArrowException as error:
        raise FslError(f"cannot be read: {first_line(error)}", where=str(path), hint="it is damaged, or no Parquet") from error
    return table.select([name for name in table.column_names if not _INDEX.fullmatch(name)])


def features_from_parquet(path: Path, label: str | None) -> FeatureTable:
    """A column of labels, perhaps a column split, and a column of vectors; or columns of numbers where there is none.

    Raises:
        FslError: the file cannot be read, or its labels or features are not found.
    """
    table = parquet_table(path)
    names = table.column_names
    label = label or named(path, names, LABELS, "column of labels")
    if label not in names:
        raise FslError(f"has no column {label}", where=str(path), hint=f"it has {', '.join(names)}")
    splits = words(path, table, "split") if "split" in names and label != "split" else None
    others = table.select([name for name in names if name not in (label, "split")])
    return FeatureTable(_values(path, others), words(path, table, label), splits)


def words(path: Path, table: Any, name: str) -> list[str]:
    """A column as texts.

    Raises:
        FslError: a value is missing.
    """
    values = table.column(name).to_pylist()
    if rows := [row for row, value in enumerate(values, start=1) if value is None]:
        raise FslError(f"has no {name} in rows {first_of(rows)}", where=str(path), hint="complete or remove them")
    return [str(value) for value in values]


def _values(path: Path, table: Any) -> np.ndarray:
    """float64 ``[n, D]``."""
    types = optional("pyarrow.types", needed_for=str(path), package="pyarrow")
    is_vector = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    vectors = [field.name for field in table.schema if any(test(field.type) for test in is_vector)]
    if vectors:
        return _vectors(path, table, vectors[0] if len(vectors) == 1 else named(path, vectors, FEATURES, "column of features"))
    is_number = (types.is_integer, types.is_floating, types.is_decimal, types.is_boolean)
    for field in table.schema:
        if not any(test(field.type) for test in is_number):
            what, hint = f"column {field.name} has {field.type}, not numbers", "only the labels and split may be words"
            raise FslError(what, where=str(path), hint=hint)
    if not table.num_columns:
        raise FslError("has no columns of numbers, nor one of vectors", where=str(path))
    return np.column_stack([_numbers(column) for column in table.columns])


def _vectors(path: Path, table: Any, name: str) -> np.ndarray:
    """A column of lists of numbers, all of one length."""
    compute = optional("pyarrow.compute", needed_for=str(path), package="pyarrow")
    column = table.column(name)
    sizes = _numbers(compute.list_value_length(column))
    if rows := list(np.flatnonzero(sizes != sizes[:1]) + 1):
        what = f"column {name} has vectors of another length than the first in rows {first_of(rows)}"
        raise FslError(what, where=str(path), hint="all vectors have one length, and none is missing")
    try:
        values = _numbers(compute.list_flatten(column))
    except (ValueError, TypeError) as error:
        raise FslError(f"column {name} has {column.type}, not vectors of numbers", where=str(path)) from error
    return values.reshape(len(sizes), -1)


def _numbers(column: Any) -> np.ndarray:
    """A column of numbers, NaN where one is missing."""
    return np.asarray(column.to_numpy(), dtype=np.float64)
