"""Published sets as pickles: those of learn2learn and torchmeta's source, of MetaOptNet, and of tiered-ImageNet's authors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fsl_cli.datasets.array_pickle import load_arrays
from fsl_cli.datasets.class_splits import SPLITS
from fsl_cli.datasets.image_files import readable
from fsl_cli.datasets.layouts import Rows, fingerprint, of_each_split
from fsl_cli.errors import FslError

_MALFORMED = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError)


class ClassDicts:
    """For each split a dictionary: ``image_data`` uint8 ``[N, H, W, 3]``, ``class_dict`` the rows of each class.

    Read without running code; one split at a time is in memory. See `fsl_cli.datasets.layouts.Layout`.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files
        self.path = files["train"].parent

    def fingerprint(self) -> str:
        """See `Layout`."""
        return fingerprint(self._files.values(), self.path)

    def counts(self, split: str) -> dict[str, int]:
        """See `Layout`."""
        return {name: len(rows) for name, rows in self.pictures(split).items()}

    def pictures(self, split: str) -> dict[str, Rows]:
        """See `Layout`."""
        path = self._files[split]
        try:
            return self._classes(_load(path))
        except _MALFORMED as problem:
            raise _not_the_set(path, problem) from problem

    def _classes(self, content: Any) -> dict[str, Rows]:
        images = pixels(content["image_data"])
        classes = {str(name): np.asarray(rows).astype(np.int64, casting="safe") for name, rows in content["class_dict"].items()}
        for rows in classes.values():
            if len(rows) and not 0 <= rows.min() <= rows.max() < len(images):
                raise IndexError(f"class_dict names a row that is not among the {len(images)}")
        return {name: Rows(images, rows) for name, rows in classes.items()}


class Labelled(ClassDicts):
    """For each split a dictionary: ``data`` uint8 ``[N, H, W, 3]``, ``labels`` a number for each picture.

    Classes are named by ``catname2label``, where there is one, otherwise ``class 012`` by their label.
    """

    def _classes(self, content: Any) -> dict[str, Rows]:
        names = {int(label): str(name) for name, label in content.get("catname2label", {}).items()}
        return by_label(pixels(content["data"]), content["labels"], names)


class EncodedPictures(ClassDicts):
    """For each split a list of PNG files as arrays of bytes, and a dictionary of labels; tiered-ImageNet's authors wrote these.

    A split's list is in memory while it is packed: about 7 GB for tiered-ImageNet's training split.
    """

    def __init__(self, files: Mapping[str, Path], labels: Mapping[str, Path]) -> None:
        super().__init__(files)
        self._labels = labels

    def fingerprint(self) -> str:
        """See `Layout`."""
        return fingerprint([*self._files.values(), *self._labels.values()], self.path)

    def counts(self, split: str) -> dict[str, int]:
        """See `Layout`; from the labels alone."""
        return {name: len(rows) for name, rows in self._rows(split).items()}

    def pictures(self, split: str) -> dict[str, Rows]:
        """See `Layout`."""
        path, rows = self._files[split], self._rows(split)
        images = _load(path)
        if not isinstance(images, list) or len(images) != (expected := sum(map(len, rows.values()))):
            found = f"{len(images)} pictures" if isinstance(images, list) else type(images).__name__
            raise FslError(
                f"is not a list of a picture for each label: {found}", where=str(path), hint="put the original there"
            )
        if not all(isinstance(each, np.ndarray) and each.dtype == np.uint8 and each.size == max(each.shape) for each in images):
            raise FslError(f"not all of its {expected} entries are encoded pictures", where=str(path))
        return {name: Rows(images, each) for name, each in rows.items()}

    def _rows(self, split: str) -> dict[str, np.ndarray]:
        path = self._labels[split]
        try:
            content = _load(path)
            labels = content["label_specific"] if "label_specific" in content else content["labels"]
            return rows_by_label(labels, dict(enumerate(map(str, content.get("label_specific_str", ())))))
        except _MALFORMED as problem:
            raise _not_the_set(path, problem) from problem


def find_class_dicts(place: Path, _split: Mapping[str, Sequence[str]]) -> ClassDicts | None:
    """``mini-imagenet-cache-train.pkl``, ``-validation.pkl`` (or ``-val.pkl``) and ``-test.pkl``."""
    names = {"train": ["train"], "val": ["validation", "val"], "test": ["test"]}
    files = of_each_split(place, {split: [f"mini-imagenet-cache-{each}.pkl" for each in names[split]] for split in SPLITS})
    return ClassDicts(files) if files else None


def find_labelled(place: Path, _split: Mapping[str, Sequence[str]]) -> Labelled | None:
    """``miniImageNet_category_split_train_phase_train.pickle``, ``..._split_val.pickle`` and ``..._split_test.pickle``."""
    names = {"train": "train_phase_train", "val": "val", "test": "test"}
    files = of_each_split(place, {split: [f"miniImageNet_category_split_{names[split]}.pickle"] for split in SPLITS})
    return Labelled(files) if files else None


def find_encoded(place: Path, _split: Mapping[str, Sequence[str]]) -> EncodedPictures | None:
    """``train_images_png.pkl`` and ``train_labels.pkl``, and those of val and test."""
    images = of_each_split(place, {split: [f"{split}_images_png.pkl"] for split in SPLITS})
    labels = of_each_split(place, {split: [f"{split}_labels.pkl"] for split in SPLITS}) if images else None
    if images and not labels:
        raise FslError("has train_images_png.pkl, but not train_labels.pkl", where=str(place), hint="put the labels there")
    return EncodedPictures(images, labels) if images and labels else None


def pixels(array: Any) -> np.ndarray:
    """The array, checked. Raises ValueError unless it is uint8 ``[N, H, W, 3]``."""
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3:
        found = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"pictures are uint8 [N, H, W, 3], not {found}")
    return array


def by_label(images: np.ndarray, labels: Any, names: Mapping[int, str]) -> dict[str, Rows]:
    """The pictures of each class. Raises ValueError unless there is one label for each picture."""
    if len(labels) != len(images):
        raise ValueError(f"{len(images)} pictures and {len(labels)} labels")
    return {name: Rows(images, rows) for name, rows in rows_by_label(labels, names).items()}


def rows_by_label(labels: Any, names: Mapping[int, str]) -> dict[str, np.ndarray]:
    """The rows of each label, by its name, or as ``class 012`` where it has none or two labels have the same name."""
    numbers = np.asarray(labels).astype(np.int64, casting="safe")
    unique = len(set(names.values())) == len(names)
    return {
        (names.get(int(label)) if unique else None) or f"class {label:03d}": np.flatnonzero(numbers == label)
        for label in np.unique(numbers)
    }


def _load(path: Path) -> Any:
    with readable(path), path.open("rb") as file:
        return load_arrays(file, path)


def _not_the_set(path: Path, problem: Exception) -> FslError:
    detail = f"there is no {problem}" if isinstance(problem, KeyError) else str(problem) or type(problem).__name__
    return FslError(f"does not hold pictures with classes: {detail}", where=str(path), hint="put the original there")
