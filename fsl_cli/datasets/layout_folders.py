"""Published sets as picture files: CSV files as of Ravi and Larochelle, or a folder for each class."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from fsl_cli.datasets import picture_lists
from fsl_cli.datasets.class_splits import NAMES, SPLITS
from fsl_cli.datasets.image_files import readable
from fsl_cli.datasets.layouts import fingerprint
from fsl_cli.datasets.picture_lists import Splits
from fsl_cli.errors import FslError

_IMAGES = ("", "images", "train")  # where the folders of classes are; ImageNet has them in train


class PictureFiles:
    """A picture file for each picture; see `fsl_cli.datasets.layouts.Layout`."""

    def __init__(self, path: Path, splits: Splits) -> None:
        self.path, self._splits = path, splits

    def fingerprint(self) -> str:
        """Of the splits and classes too, which CSV files may change."""
        with readable(self.path):
            files = [path for split in SPLITS for name in sorted(self._splits[split]) for path in self._splits[split][name]]
            return f"{fingerprint(files, self.path)} {[[(n, c) for n, c in self.counts(split).items()] for split in SPLITS]}"

    def counts(self, split: str) -> dict[str, int]:
        """See `Layout`."""
        return {name: len(paths) for name, paths in self._splits[split].items()}

    def pictures(self, split: str) -> dict[str, list[Path]]:
        """See `Layout`."""
        return self._splits[split]


def find_csv(place: Path, _split: Mapping[str, Sequence[str]]) -> PictureFiles | None:
    """``train.csv``, ``val.csv`` and ``test.csv`` with the columns filename and label, or class_name and image_name.

    They are in ``place`` or its folder ``csv`` or ``splits``; the pictures are in ``place`` or its folder ``images``, all in
    one folder or in one for each class.
    """
    for folder in (place, place / "csv", place / "splits"):
        if (folder / "train.csv").is_file() and (folder / "test.csv").is_file():
            splits = picture_lists.from_csv(folder, place)
            if "val" not in splits:
                raise FslError("has train.csv and test.csv, but not val.csv", where=str(folder), hint="put it there")
            return PictureFiles(place, splits)
    return None


def find_folders(place: Path, split: Mapping[str, Sequence[str]]) -> PictureFiles | None:
    """Folders named like the classes in ``place``, ``images`` or ``train``; or in ``train``, ``val`` and ``test``.

    Raises:
        FslError: some classes have no folder.
    """
    expected = {name for names in split.values() for name in names}
    for images in (place / name for name in _IMAGES):
        there = expected & _folders(images)
        if there == expected:
            classes = picture_lists.classes_in(images, expected)
            return PictureFiles(images, {each: {name: classes.get(name, []) for name in split[each]} for each in SPLITS})
        if images != place / "train" and len(there) > len(expected) / 2:
            missing = sorted(expected - there)
            what = f"{len(missing)} of {len(expected)} classes have no folder, for example {missing[0]}"
            raise FslError(what, where=str(images), hint="put the whole set there")
    return _find_split_folders(place)


def _find_split_folders(place: Path) -> PictureFiles | None:
    by_split = {each: place / name for each in SPLITS for name in reversed(NAMES[each]) if name in _folders(place)}
    if set(by_split) != set(SPLITS):
        return None
    splits = {each: picture_lists.classes_in(folder) for each, folder in by_split.items()}
    return PictureFiles(place, splits) if all(splits.values()) else None


def _folders(place: Path) -> set[str]:
    if not place.is_dir():
        return set()
    with os.scandir(place) as entries:
        return {entry.name for entry in entries if entry.is_dir()}
