"""CSV files with a header, row by row; whatever is in them is either read or an error of one line."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from fsl_cli.datasets.image_files import readable
from fsl_cli.errors import FslError, first_line

Row = tuple[str, dict[str, str]]


def read_csv(path: Path) -> tuple[list[str], Iterator[Row]]:
    """Names of the columns; and each row by these, with the file and line where it stands.

    Raises:
        FslError: it is no regular file, cannot be read, is not UTF-8 or not CSV; or, when its turn comes, a row has fewer
            values than there are columns.
    """
    if path.exists() and not path.is_file():
        raise FslError("is no file", where=str(path), hint="name a CSV file")
    try:
        with readable(path), path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows = [(f"{path}, line {reader.line_num}", row) for row in reader]
            columns = list(reader.fieldnames or ())
    except (csv.Error, UnicodeDecodeError) as error:
        raise FslError(f"is not a CSV file: {first_line(error)}", where=str(path), hint="use UTF-8, with commas") from error
    return columns, _whole(rows, columns)


def _whole(rows: Sequence[Row], columns: Sequence[str]) -> Iterator[Row]:
    for where, row in rows:
        if any(row[column] is None for column in columns):
            raise FslError(f"has fewer values than the {len(columns)} columns", where=where)
        yield where, row
