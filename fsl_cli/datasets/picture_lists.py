"""Which picture belongs to which class and split: from folders, or from CSV files."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path

from fsl_cli.datasets.class_splits import LABEL, NAMES, SPLITS, column, split_name
from fsl_cli.datasets.csv_files import read_csv
from fsl_cli.datasets.file_tree import files_in, visible
from fsl_cli.datasets.image_files import readable
from fsl_cli.datasets.pictures import EXTENSIONS
from fsl_cli.errors import FslError

FILE = ("file", "filename", "file_name", "path", "image", "image_name", "image_path", "img_path")

Classes = dict[str, list[Path]]  # the pictures of each class
Splits = dict[str, Classes]  # the classes of each split; those of the split ``all`` are still to be split


def from_folders(root: Path) -> Splits:
    """A folder per class; or, when ``root`` has a folder ``train`` and a folder ``test``, the folders of classes in each split.

    A picture in a folder inside a class's folder belongs to that class. Hidden files and folders are left out, links are
    followed, and the order is that of the names.

    Raises:
        FslError: there is no such folder, it cannot be read, or it has no folder with pictures.
    """
    _must_be_folder(root)
    with readable(root):
        folders = {entry.name: Path(entry.path) for entry in visible(root) if entry.is_dir()}
        by_split = {split: folders[name] for split, names in NAMES.items() for name in names if name in folders}
        if {"train", "test"} <= set(by_split):
            return {split: classes_in(folder) for split, folder in by_split.items()}
        classes = classes_in(root)
    if not classes:
        what = "has no folder with pictures in it; each class is a folder with its pictures"
        raise FslError(what, where=str(root), hint=f"pictures end in {', '.join(sorted(EXTENSIONS))}")
    return {"all": classes}


def from_csv(path: Path, root: Path) -> Splits:
    """CSV files with a column of files and one of labels, and perhaps a column of splits; the order is that of the rows.

    Args:
        path: the file; or a folder with ``train.csv``, ``val.csv`` and ``test.csv``, as Ravi and Larochelle published theirs.
        root: the folder of the pictures; their paths may also begin in its folder ``images``, where the CSV file is, or in the
            class's folder in one of these.

    Raises:
        FslError: a file cannot be read, lacks a column, or names a picture that is not there.
    """
    if path.is_dir():
        found = {split: path / f"{name}.csv" for split, names in NAMES.items() for name in names}
        found = {split: file for split, file in found.items() if file.is_file()}
        found |= {split: path / f"{split}.csv" for split in SPLITS if (path / f"{split}.csv").is_file()}
        if not {"train", "test"} <= set(found):
            raise FslError("has no train.csv and test.csv", where=str(path), hint="or name one file: dataset.csv=FILE")
        return {split: _grouped(_rows(file, root)) for split, file in found.items()}
    rows = _rows(path, root)
    named = {split for _, _, split in rows}
    return {split: _grouped(row for row in rows if row[2] == split) for split in (*SPLITS, "all") if split in named}


def classes_in(folder: Path, only: Collection[str] | None = None) -> Classes:
    """The pictures in each folder of ``folder``, or in those that are named; as in `from_folders`."""
    chosen = [entry for entry in visible(folder) if entry.is_dir() and (only is None or entry.name in only)]
    found = {_text(entry.name): _pictures_in(Path(entry.path)) for entry in chosen}
    return {name: pictures for name, pictures in sorted(found.items()) if pictures}


def _pictures_in(folder: Path) -> list[Path]:
    return [Path(entry.path) for name, entry in files_in(folder) if Path(name).suffix.lower() in EXTENSIONS]


def _rows(path: Path, root: Path) -> list[tuple[Path, str, str]]:
    """File, label and split of each row."""
    places = (root, root / "images", path.parent, path.parent / "images")
    rows: list[tuple[Path, str, str]] = []
    columns, content = read_csv(path)
    name, label = column(columns, FILE, path), column(columns, LABEL, path)
    split = "split" if "split" in columns else None
    for where, row in content:
        paths = [place / each for place in places for each in (row[name], f"{row[label]}/{row[name]}")]
        picture = next((each for each in paths if _is_file(each)), None)
        if picture is None:
            raise FslError(f"there is no {row[name]!r}", where=where, hint=f"paths begin in {root}: set dataset.root")
        if not any(_leads_into(place, picture) for place in (root, path.parent)):
            hint = "a path may not leave the folder: set dataset.root to one that holds all pictures"
            raise FslError(f"{row[name]!r} is outside of {root}", where=where, hint=hint)
        rows.append((picture, row[label], split_name(row[split], where) if split else "all"))
    return rows


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _leads_into(folder: Path, path: Path) -> bool:
    """Whether a path stays in a folder as it is written; where links in the folder lead is up to its owner."""
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))


def _text(name: str) -> str:
    r"""The name of a class, with bytes that are no UTF-8 as ``\xe9``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _grouped(rows: Iterable[tuple[Path, str, str]]) -> Classes:
    classes: Classes = {}
    for picture, label, _ in rows:
        classes.setdefault(label, []).append(picture)
    return classes


def _must_be_folder(root: Path) -> None:
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "there is no such folder"
        raise FslError(what, where=str(root), hint="dataset.root names the folder with a folder for each class")
