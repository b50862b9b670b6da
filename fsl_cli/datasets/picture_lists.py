"""Which picture belongs to which class and split: from folders, or from CSV files."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from fsl_cli.datasets.image_files import readable
from fsl_cli.datasets.pictures import EXTENSIONS
from fsl_cli.errors import FslError, close_match

SPLITS = ("train", "val", "test")
NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
FILE = ("file", "filename", "file_name", "path", "image", "image_path", "img_path")
LABEL = ("label", "class", "class_name", "category")

Classes = dict[str, list[Path]]  # the pictures of each class
Splits = dict[str, Classes]  # the classes of each split; those of the split ``all`` are still to be split
SplitBy = Literal["folders", "fractions", "file"]


def from_folders(root: Path) -> Splits:
    """A folder per class; or, when ``root`` has a folder ``train`` and a folder ``test``, the folders of classes in each split.

    A picture in a folder inside a class's folder belongs to that class. Hidden files and folders are left out, links are
    followed, and the order is that of the names.

    Raises:
        FslError: there is no such folder, it cannot be read, or it has no folder with pictures.
    """
    _must_be_folder(root)
    with readable(root):
        folders = {entry.name: Path(entry.path) for entry in _visible(root) if entry.is_dir()}
        by_split = {split: folders[name] for split, names in NAMES.items() for name in names if name in folders}
        if {"train", "test"} <= set(by_split):
            return {split: _classes_in(folder) for split, folder in by_split.items()}
        classes = _classes_in(root)
    if not classes:
        what = "has no folder with pictures in it; each class is a folder with its pictures"
        raise FslError(what, where=str(root), hint=f"pictures end in {', '.join(sorted(EXTENSIONS))}")
    return {"all": classes}


def from_csv(path: Path, root: Path) -> Splits:
    """CSV files with a column of files and one of labels, and perhaps a column of splits; the order is that of the rows.

    Args:
        path: the file; or a folder with ``train.csv``, ``val.csv`` and ``test.csv``, as Ravi and Larochelle published theirs.
        root: the folder of the pictures; their paths may also begin in its folder ``images``, or where the CSV file is.

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


def split_by_fractions(classes: Classes, fractions: Sequence[float], seed: int) -> Splits:
    """Whole classes drawn for each split; every split gets at least one.

    Args:
        classes: at least three.
        fractions: of train, val and test; their sum is 1.
        seed: of the draw, which depends on nothing else but the sorted names.

    Raises:
        FslError: fewer than three classes.
    """
    names = sorted(classes)
    if len(names) < 3:
        raise FslError(
            f"{len(names)} classes cannot be split into train, val and test", where="dataset.root", hint="at least 3"
        )
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(names))
    val, test = (max(1, round(fraction * len(names))) for fraction in fractions[1:])
    parts = {"val": order[:val], "test": order[val : val + test], "train": order[val + test :]}
    if len(parts["train"]) == 0:
        what = f"leave none of the {len(names)} classes for training"
        raise FslError(what, where="dataset.fractions", hint="for example [0.6, 0.2, 0.2]")
    return {split: {names[i]: classes[names[i]] for i in sorted(parts[split])} for split in SPLITS}


def split_by_file(classes: Classes, path: Path) -> Splits:
    """Whole classes as a file says; classes that it does not name are left out.

    Args:
        classes: all of them.
        path: a CSV file with the columns class and split; or a folder with ``train.txt``, ``val.txt`` and ``test.txt``,
            each with a class per line, as CIFAR-FS has them.

    Raises:
        FslError: a file cannot be read, lacks a column, or names a class or a split that is not there.
    """
    splits: Splits = {split: {} for split in SPLITS}
    for name, split, where in _splits_of_folder(path) if path.is_dir() else _splits_of_csv(path):
        if name not in classes:
            raise FslError(f"there is no class {name!r}", where=where, hint=close_match(name, list(classes)))
        splits[split][name] = classes[name]
    return splits


def _splits_of_folder(path: Path) -> Iterator[tuple[str, str, str]]:
    """Class, split, and where it stands."""
    for split, names in NAMES.items():
        for file in [path / f"{name}.txt" for name in names if (path / f"{name}.txt").is_file()]:
            with readable(file):
                lines = file.read_text(encoding="utf-8-sig").splitlines()
            yield from ((line.strip(), split, f"{file}, line {number}") for number, line in enumerate(lines, 1) if line.strip())


def _splits_of_csv(path: Path) -> Iterator[tuple[str, str, str]]:
    with readable(path), path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        label, split = _column(reader.fieldnames, LABEL, path), _column(reader.fieldnames, ("split",), path)
        for number, row in enumerate(reader, start=2):
            where = f"{path}, line {number}"
            yield row[label], _split_name(row[split], where), where


def _classes_in(folder: Path) -> Classes:
    found = {entry.name: _pictures_in(Path(entry.path)) for entry in _visible(folder) if entry.is_dir()}
    return {name: pictures for name, pictures in sorted(found.items()) if pictures}


def _pictures_in(folder: Path, above: frozenset[str] = frozenset()) -> list[Path]:
    real = os.path.realpath(folder)
    if real in above:  # a link to a folder that contains it
        return []
    found: list[Path] = []
    for entry in sorted(_visible(folder), key=lambda entry: entry.name):
        if entry.is_dir():
            found += _pictures_in(Path(entry.path), above | {real})
        elif Path(entry.name).suffix.lower() in EXTENSIONS and entry.is_file():
            found.append(Path(entry.path))
    return found


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".") and entry.name != "__MACOSX"]


def _rows(path: Path, root: Path) -> list[tuple[Path, str, str]]:
    """File, label and split of each row."""
    places = (root, root / "images", path.parent, path.parent / "images")
    rows: list[tuple[Path, str, str]] = []
    with readable(path), path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        name, label = _column(reader.fieldnames, FILE, path), _column(reader.fieldnames, LABEL, path)
        split = "split" if "split" in (reader.fieldnames or ()) else None
        for number, row in enumerate(reader, start=2):
            where = f"{path}, line {number}"
            picture = next((place / row[name] for place in places if (place / row[name]).is_file()), None)
            if picture is None:
                raise FslError(f"there is no {row[name]!r}", where=where, hint=f"paths begin in {root}: set dataset.root")
            rows.append((picture, row[label], _split_name(row[split], where) if split else "all"))
    return rows


def _grouped(rows: Iterable[tuple[Path, str, str]]) -> Classes:
    classes: Classes = {}
    for picture, label, _ in rows:
        classes.setdefault(label, []).append(picture)
    return classes


def _column(columns: Sequence[str] | None, accepted: Sequence[str], path: Path) -> str:
    for name in accepted:
        if name in (columns or ()):
            return name
    what = f"has no column {accepted[0]}"
    hint = f"its columns are {', '.join(columns or ['none'])}; accepted: {', '.join(accepted)}"
    raise FslError(what, where=str(path), hint=hint)


def _split_name(text: str | None, where: str) -> str:
    for split, names in NAMES.items():
        if (text or "").strip().lower() in names:
            return split
    raise FslError(f"{text!r} is not a split", where=where, hint="use train, val or test")


def _must_be_folder(root: Path) -> None:
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "there is no such folder"
        raise FslError(what, where=str(root), hint="dataset.root names the folder with a folder for each class")
