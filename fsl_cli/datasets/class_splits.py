"""Which classes are for training, validation and test: drawn by fractions, or as files say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files as package_files
from pathlib import Path
from typing import TypeVar

import numpy as np

from fsl_cli.datasets.csv_files import read_csv
from fsl_cli.datasets.image_files import readable
from fsl_cli.errors import FslError, close_match, first_line

SPLITS = ("train", "val", "test")
NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
LABEL = ("label", "class", "class_name", "category")

Members = TypeVar("Members")


def published_split(data_set: str) -> dict[str, list[str]]:
    """The sorted class names of train, val and test, from the file ``<data_set>_split.txt`` of this package."""
    text = (package_files("fsl_cli.datasets") / f"{data_set}_split.txt").read_text(encoding="utf-8")
    lines = [line.split() for line in text.splitlines() if not line.startswith("#")]
    return {split: sorted(name for found, *names in lines if found == split for name in names) for split in SPLITS}


def check_fractions(fractions: Sequence[float]) -> None:
    """Raise ValueError unless the fractions add up to 1."""
    if abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"fractions {fractions} add up to {sum(fractions):g}, not to 1")


def split_by_fractions(classes: Mapping[str, Members], fractions: Sequence[float], seed: int) -> dict[str, dict[str, Members]]:
    """Whole classes drawn for each split; every split gets at least one.

    Args:
        classes: at least three, by name.
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


def split_by_file(classes: Mapping[str, Members], path: Path) -> dict[str, dict[str, Members]]:
    """Whole classes as a file says; classes that it does not name are left out.

    Args:
        classes: all of them, by name.
        path: a CSV file with the columns class and split; or a folder with ``train.txt``, ``val.txt`` and ``test.txt``,
            each with a class per line, as CIFAR-FS has them.

    Raises:
        FslError: a file cannot be read, lacks a column, or names a class or a split that is not there.
    """
    splits: dict[str, dict[str, Members]] = {split: {} for split in SPLITS}
    for name, split, where in _splits_of_folder(path) if path.is_dir() else _splits_of_csv(path):
        if name not in classes:
            raise FslError(f"there is no class {name!r}", where=where, hint=close_match(name, list(classes)))
        splits[split][name] = classes[name]
    return splits


def _splits_of_folder(path: Path) -> Iterator[tuple[str, str, str]]:
    """Class, split, and where it stands."""
    for split, names in NAMES.items():
        for file in [path / f"{name}.txt" for name in names if (path / f"{name}.txt").is_file()]:
            try:
                with readable(file):
                    lines = file.read_text(encoding="utf-8-sig").splitlines()
            except UnicodeDecodeError as error:
                raise FslError(f"is not a text file: {first_line(error)}", where=str(file), hint="use UTF-8") from error
            yield from ((line.strip(), split, f"{file}, line {number}") for number, line in enumerate(lines, 1) if line.strip())


def _splits_of_csv(path: Path) -> Iterator[tuple[str, str, str]]:
    columns, rows = read_csv(path)
    label, split = column(columns, LABEL, path), column(columns, ("split",), path)
    for where, row in rows:
        yield row[label], split_name(row[split], where), where


def column(columns: Sequence[str] | None, accepted: Sequence[str], path: Path) -> str:
    """The first accepted name among the columns of a file.

    Raises:
        FslError: there is none.
    """
    for name in accepted:
        if name in (columns or ()):
            return name
    what = f"has no column {accepted[0]}"
    hint = f"its columns are {', '.join(columns or ['none'])}; accepted: {', '.join(accepted)}"
    raise FslError(what, where=str(path), hint=hint)


def split_name(text: str | None, where: str) -> str:
    """Train, val or test, for any usual name of it.

    Raises:
        FslError: it is none.
    """
    for split, names in NAMES.items():
        if (text or "").strip().lower() in names:
            return split
    raise FslError(f"{text!r} is not a split", where=where, hint="use train, val or test")
