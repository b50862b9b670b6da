"""Published sets as torchmeta writes them: HDF5 files of pictures, and JSON lists of classes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fsl_cli.datasets.class_splits import SPLITS
from fsl_cli.datasets.image_files import readable
from fsl_cli.datasets.layouts import Picture, as_picture, fingerprint, of_each_split
from fsl_cli.datasets.pictures import MOST_PIXELS
from fsl_cli.errors import FslError, first_line
from fsl_cli.optional import optional


class Hdf5Files:
    """``train_data.hdf5`` with a data set ``datasets/<class>`` for each class, ``train_labels.json``; so for val and test.

    A class is uint8 ``[n, H, W, 3]``, or ``[n]`` of encoded pictures. Links to other files and objects are refused. See
    `fsl_cli.datasets.layouts.Layout`.
    """

    def __init__(self, files: Mapping[str, Path], labels: Mapping[str, Path]) -> None:
        self._files, self._labels = files, labels
        self.path = files["train"].parent

    def fingerprint(self) -> str:
        """See `Layout`."""
        return fingerprint([*self._files.values(), *self._labels.values()], self.path)

    def counts(self, split: str) -> dict[str, int]:
        """See `Layout`."""
        return {name: len(found) for name, found in self.pictures(split).items()}

    def pictures(self, split: str) -> dict[str, Hdf5Rows]:
        """See `Layout`."""
        path = self._files[split]
        with _sound(path):
            root = hdf5().File(path, "r")
            group = member(root, "datasets", path)
            return {name: Hdf5Rows(member(group, name, path), f"{path}, {name}") for name in self._names(split)}

    def _names(self, split: str) -> list[str]:
        path = self._labels[split]
        try:
            with readable(path):
                names = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as problem:
            raise FslError(f"is not JSON: {first_line(problem)}", where=str(path)) from problem
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise FslError("is not a list of the names of classes", where=str(path))
        return names


class Hdf5Rows(Sequence[Picture]):
    """The pictures of one class, each read when it is asked for.

    Args:
        data: the class's data set of h5py.
        where: its name, for messages.

    Raises:
        FslError: it does not hold pictures.
    """

    def __init__(self, data: Any, where: str) -> None:
        self._data, self._where = data, where
        encoded = data.ndim == 1 and hdf5().check_vlen_dtype(data.dtype) == np.uint8
        decoded = data.ndim == 4 and data.dtype == np.uint8 and data.shape[-1] == 3
        if not encoded and not (decoded and data.shape[1] * data.shape[2] <= MOST_PIXELS):
            raise FslError(f"does not hold pictures, but {data.dtype} {list(data.shape)}", where=where)

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self._data)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # slices are not needed
        """uint8 ``[H, W, 3]``, or the bytes of an encoded picture."""
        with _sound(Path(self._where)):
            return as_picture(self._data[index])


def find_hdf5(place: Path, _split: Mapping[str, Sequence[str]]) -> Hdf5Files | None:
    """``train_data.hdf5`` and ``train_labels.json``, and those of val and test."""
    files = of_each_split(place, {split: [f"{split}_data.hdf5"] for split in SPLITS})
    labels = of_each_split(place, {split: [f"{split}_labels.json"] for split in SPLITS}) if files else None
    if files and not labels:
        raise FslError("has train_data.hdf5, but not train_labels.json", where=str(place), hint="put torchmeta's lists there")
    return Hdf5Files(files, labels) if files and labels else None


def hdf5() -> Any:
    """The package h5py. Raises `FslError` if it is missing."""
    return optional("h5py", needed_for="an HDF5 file", package="h5py")


def member(group: Any, name: str, path: Path) -> Any:
    """A group or data set that is stored in the file itself.

    Raises:
        FslError: it is missing, or a link or reference to something else, which may be any file.
    """
    link = group.get(name, getlink=True)
    if link is None:
        raise FslError(f"there is no {name!r} in {group.name!r}", where=str(path), hint="put the original there")
    found = group[name] if isinstance(link, hdf5().HardLink) else None
    if found is None or (isinstance(found, hdf5().Dataset) and (found.is_virtual or found.external)):
        raise FslError(f"{name!r} is a link to another place, which is not followed", where=str(path))
    return found


@contextmanager
def _sound(path: Path) -> Iterator[None]:
    """Convert the errors with which h5py meets a damaged file to an FslError."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as problem:
        what = f"not a whole HDF5 file: {first_line(problem)}"
        raise FslError(what, where=str(path), hint="it may have been cut short when it was copied") from problem
