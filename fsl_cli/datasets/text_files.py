"""Files of texts with a label each: CSV, TSV, JSON, JSON lines, Parquet, and zip files with one of them."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fsl_cli.datasets.class_splits import column
from fsl_cli.datasets.feature_parquet import parquet_table, words
from fsl_cli.datasets.feature_table import first_of
from fsl_cli.datasets.image_files import BAD_ZIP, readable
from fsl_cli.errors import FslError, first_line

TEXT = ("text", "sentence", "utterance", "query", "content")
LABEL = ("label", "class", "intent", "category", "target", "y")
KINDS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson")
OUT_OF_SCOPE = "oos"  # what CLINC150 calls texts without an intent
_LARGEST = 1 << 30  # bytes of a file in a zip file

Row = tuple[Any, Any, Any]  # text, label, split


@dataclass(frozen=True)
class TextTable:
    """Texts with labels.

    Attributes:
        texts: ``n`` of them, none empty.
        labels: ``n`` class names.
        splits: ``n`` names of splits, or None if the file does not say.
    """

    texts: list[str]
    labels: list[str]
    splits: list[str] | None


def read_texts(path: Path, text: str | None = None, label: str | None = None) -> TextTable:
    """Read a file by its extension: ``.csv``, ``.tsv``, ``.json``, ``.jsonl``, ``.parquet``, or ``.zip`` with one of these.

    Tables, and the objects of JSON, have a text, a label and perhaps a split. JSON lines, or a list, may also be pairs
    ``[text, label]``. An object of such lists is read as one list, but for those whose name begins with oos: CLINC150 is
    released so, and its train, val and test are texts of the same classes, which say nothing about held-out classes.

    Args:
        path: the file.
        text: name of the column of texts; None: text, sentence, utterance, query or content.
        label: name of the column of labels; None: label, class, intent, category, target or y.

    Raises:
        FslError: the file cannot be read, its extension is unknown, or a text or label is missing.
    """
    if not path.is_file():
        raise FslError("there is no such file", where=str(path), hint="dataset.file names a file of texts with labels")
    names = ((text,) if text else TEXT, (label,) if label else LABEL)
    if path.suffix.lower() == ".parquet":
        return _from_parquet(path, *names)
    kind, content = _content(path)
    try:
        rows = list(
            _from_csv(path, kind, content, *names) if kind in (".csv", ".tsv") else _from_json(path, kind, content, *names)
        )
    except csv.Error as error:
        raise FslError(f"cannot be read: {first_line(error)}", where=str(path), hint="quote texts with commas") from error
    return _table(path, rows)


def _content(path: Path) -> tuple[str, str]:
    """Extension and text of the file, or of the only file of texts in a zip file."""
    kind = path.suffix.lower()
    if kind not in (*KINDS, ".zip"):
        hint = f"use {', '.join(KINDS)}, .parquet, or a .zip with one of them"
        raise FslError("is no file of texts that can be read", where=str(path), hint=hint)
    try:
        with readable(path):
            if kind != ".zip":
                return kind, path.read_text(encoding="utf-8-sig")
            with zipfile.ZipFile(path) as archive:
                inside = [each for each in archive.infolist() if _is_text(each.filename)]
                if len(inside) != 1 or inside[0].file_size > _LARGEST:
                    what = f"has {len(inside)} files of texts" if len(inside) != 1 else "has a file of more than 1 GiB"
                    raise FslError(what, where=str(path), hint="extract it, and name the file")
                return PurePosixPath(inside[0].filename).suffix.lower(), archive.read(inside[0]).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FslError(f"cannot be read: {first_line(error)}", where=str(path), hint="use UTF-8") from error
    except BAD_ZIP as error:
        raise FslError(f"not a whole zip file ({first_line(error)})", where=str(path), hint="copy it again") from error


def _is_text(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in KINDS and "__MACOSX" not in path.parts and not path.name.startswith(".")


def _from_csv(path: Path, kind: str, content: str, text: Sequence[str], label: Sequence[str]) -> Iterator[Row]:
    separator = "\t" if kind == ".tsv" else max(",;\t", key=content.partition("\n")[0].count)
    reader = csv.DictReader(io.StringIO(content, newline=""), delimiter=separator, strict=True)
    text_name, label_name = (column(reader.fieldnames, names, path) for names in (text, label))
    for row in reader:
        if None in row or None in row.values():
            what = f"has another number of values than the {len(reader.fieldnames or ())} columns"
            raise FslError(what, where=f"{path}, line {reader.line_num}", hint="quote texts with commas")
        yield row[text_name], row[label_name], row.get("split")


def _from_json(path: Path, kind: str, content: str, text: Sequence[str], label: Sequence[str]) -> Iterator[Row]:
    for number, record in enumerate(_records(path, kind, content), start=1):
        if isinstance(record, Mapping):
            yield (
                record[column(list(record), text, path)],
                record[column(list(record), label, path)],
                record.get("split"),
            )
        elif isinstance(record, list) and len(record) == 2:
            yield record[0], record[1], None
        else:
            hint = 'expected {"text": ..., "label": ...} or [text, label]'
            raise FslError(f"item {number} is no text with a label", where=str(path), hint=hint)


def _records(path: Path, kind: str, content: str) -> Iterable[Any]:
    """The items of a list, of lists in an object, or of lines."""
    if kind == ".json":
        try:
            found = json.loads(content)
        except ValueError:
            pass  # lines, perhaps
        else:
            if isinstance(found, list):
                return found
            if isinstance(found, Mapping) and found and all(isinstance(each, list) for each in found.values()):
                return [item for name, items in found.items() if not name.startswith(OUT_OF_SCOPE) for item in items]
            hint = "expected a list of texts with labels, or lists of them by name"
            raise FslError("is no list of texts", where=str(path), hint=hint)
    return _lines(path, content)


def _lines(path: Path, content: str) -> Iterator[Any]:
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                where = f"{path}, line {number}"
                raise FslError(f"is no JSON: {first_line(error)}", where=where, hint="one object per line") from error


def _from_parquet(path: Path, text: Sequence[str], label: Sequence[str]) -> TextTable:
    table = parquet_table(path)
    texts, labels = (words(path, table, column(table.column_names, each, path)) for each in (text, label))
    splits = words(path, table, "split") if "split" in table.column_names else [None] * len(texts)
    return _table(path, list(zip(texts, labels, splits, strict=True)))


def _table(path: Path, rows: Sequence[Row]) -> TextTable:
    for index, what in ((0, "text"), (1, "label")):
        if missing := [number for number, row in enumerate(rows, start=1) if row[index] is None or not str(row[index]).strip()]:
            raise FslError(f"has no {what} in rows {first_of(missing)}", where=str(path), hint="complete or remove them")
    if not rows:
        raise FslError("is empty", where=str(path), hint="expected texts with labels")
    texts, labels = ([str(row[index]) for row in rows] for index in (0, 1))
    without = [number for number, row in enumerate(rows, start=1) if row[2] is None]
    if without and len(without) < len(rows):
        raise FslError(f"has no split in rows {first_of(without)}", where=str(path), hint="complete or remove them")
    return TextTable(texts, labels, None if without else [str(row[2]) for row in rows])
