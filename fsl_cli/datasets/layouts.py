"""The interface of a layout: the files of a published set of pictures as some program or author wrote them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeAlias, Union

import numpy as np

from fsl_cli.datasets.class_splits import SPLITS
from fsl_cli.errors import FslError

# A picture as it is stored: uint8 [H, W, 3]; an encoded file (PNG, JPEG); the path of one.
Picture: TypeAlias = Union[np.ndarray, bytes, Path]  # noqa: UP007 (evaluated by Python 3.10's TypeAlias)


class Layout(Protocol):
    """A set of pictures in one layout.

    Attributes:
        path: its file or folder, for messages.
    """

    path: Path

    def fingerprint(self) -> str:
        """A hash that changes if a file is added, removed or modified."""

    def counts(self, split: str) -> Mapping[str, int]:
        """The number of pictures of each class of a split. Raises `FslError` if a file is damaged."""

    def pictures(self, split: str) -> Mapping[str, Sequence[Picture]]:
        """The pictures of each class of a split, in any order. Raises `FslError` if a file is damaged."""


# The layout in a folder, or None; called with the classes of each published split. Raises FslError if only a part is there.
Finder = Callable[[Path, Mapping[str, Sequence[str]]], "Layout | None"]


class Rows(Sequence[Picture]):
    """Some rows of a larger array or list of pictures, without copying them."""

    def __init__(self, pictures: Sequence[np.ndarray] | np.ndarray, rows: Sequence[int] | np.ndarray) -> None:
        self._pictures, self._rows = pictures, rows

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._rows)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # slices are not needed
        """One picture: uint8 ``[H, W, 3]``, or the bytes of an encoded one."""
        return as_picture(self._pictures[int(self._rows[index])])


def as_picture(array: np.ndarray) -> Picture:
    """An array of pixels as it is; an array with one axis longer than 1 holds the bytes of an encoded picture."""
    return array if array.ndim == 3 else np.asarray(array, dtype=np.uint8).tobytes()


def fingerprint(files: Iterable[Path], root: Path) -> str:
    """SHA-256 of every file's path below ``root``, size and modification time; reading gigabytes would take minutes."""
    digest = hashlib.sha256()
    for path in files:
        status = path.stat()
        name = path.relative_to(root).as_posix()
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def of_each_split(place: Path, names: Mapping[str, Sequence[str]]) -> dict[str, Path] | None:
    """The file of each split; None if there is none.

    Args:
        place: their folder.
        names: for each split, the accepted names of its file.

    Raises:
        FslError: some are there, and others are not.
    """
    found = {split: place / name for split in SPLITS for name in reversed(names[split]) if (place / name).is_file()}
    missing = [names[split][0] for split in SPLITS if split not in found]
    if found and missing:
        what = f"has {', '.join(path.name for path in found.values())}, but not {', '.join(missing)}"
        raise FslError(what, where=str(place), hint="put the files of all three splits there")
    return found or None
