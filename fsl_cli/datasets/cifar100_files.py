"""CIFAR-100 as it lies on disk: the zip file of CIFAR-FS, its folders, or the authors' pickles, packed or unpacked."""

from __future__ import annotations

import hashlib
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fsl_cli.datasets.array_pickle import load_arrays
from fsl_cli.datasets.image_files import FolderImages, ImageFiles, ZipImages, read_image, readable
from fsl_cli.errors import FslError

PYTHON = "cifar-100-python"
MEMBERS = ("train", "test", "meta")
MOST_BYTES = 1 << 28  # of a file in the archive; the largest has 155 MB
ZIPS = ("cifar100.zip", "cifar-fs.zip", "cifar_fs.zip", "CIFAR-FS.zip")
FOLDERS = ("cifar100/data", "cifar_fs/data", "data")


class Found(Protocol):
    """CIFAR-100 in one of its layouts."""

    path: Path

    def fingerprint(self) -> str:
        """A hash that changes if a file is added, removed or modified."""

    def reader(self) -> Callable[[str], np.ndarray]:
        """A function that reads the pictures of a class: uint8 ``[n, 3, 32, 32]``, in any order. Threads may call it."""


def find(places: Sequence[Path]) -> Found | None:
    """The first copy in ``places``: ``cifar100.zip``, ``cifar100/data/<class>/*.png`` or ``cifar-100-python`` (``.tar.gz``).

    Raises:
        FslError: a folder or file cannot be read.
    """
    for place in places:
        with readable(place):
            for name in ZIPS:
                if (place / name).is_file():
                    return Pictures(ZipImages(place / name))
            for name in FOLDERS:
                if (place / name / "apple").is_dir():
                    return Pictures(FolderImages(place / name))
            if all((place / PYTHON / member).is_file() for member in MEMBERS):
                return Pickles(place / PYTHON)
            if (place / f"{PYTHON}.tar.gz").is_file():
                return Pickles(place / f"{PYTHON}.tar.gz")
    return None


class Pictures:
    """A PNG file for each picture, in a folder for each class."""

    def __init__(self, files: ImageFiles) -> None:
        self.path, self._files = files.path, files

    def fingerprint(self) -> str:
        """See `Found`."""
        return self._files.fingerprint()

    def reader(self) -> Callable[[str], np.ndarray]:
        """See `Found`. The function raises `FslError` if a file cannot be decoded or the class is missing."""
        found: dict[str, list[str]] = {}
        for name in self._files.names():
            found.setdefault(name.split("/")[-2] if "/" in name else "", []).append(name)

        def read(name: str) -> np.ndarray:
            if name not in found:
                raise FslError(f"there is no class {name}", where=str(self.path), hint="put the whole of CIFAR-100 there")
            pictures = [np.asarray(read_image(self._files, each).convert("RGB")) for each in found[name]]
            if other := next((each.shape for each in pictures if each.shape != (32, 32, 3)), None):
                raise FslError(
                    f"a picture of class {name} has {other[1]} x {other[0]} pixels, not 32 x 32", where=str(self.path)
                )
            return np.stack(pictures).transpose(0, 3, 1, 2)

        return read


class Pickles:
    """The files ``train``, ``test`` and ``meta`` of the authors' Python version, in a folder or a ``.tar.gz`` file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fingerprint(self) -> str:
        """SHA-256 of the file or files."""
        digest = hashlib.sha256()
        paths = [self.path / member for member in MEMBERS] if self.path.is_dir() else [self.path]
        with readable(self.path):
            for path in paths:
                with path.open("rb") as file:
                    while chunk := file.read(1 << 20):
                        digest.update(chunk)
        return digest.hexdigest()

    def reader(self) -> Callable[[str], np.ndarray]:
        """See `Found`. Raises `FslError` if a file is damaged or runs code; the function, if the class is missing."""
        content = {member: self._load(member) for member in MEMBERS}
        try:
            numbers = {name: number for number, name in enumerate(content["meta"]["fine_label_names"])}
            labels = np.concatenate([np.asarray(content[part]["fine_labels"]) for part in ("train", "test")])
            pixels = np.concatenate([content[part]["data"] for part in ("train", "test")]).reshape(-1, 3, 32, 32)
            pixels = pixels.astype(np.uint8, casting="no")
        except (KeyError, TypeError, ValueError, IndexError) as problem:
            raise self._not_cifar100(problem) from problem

        def read(name: str) -> np.ndarray:
            try:
                return pixels[labels == numbers[name]]
            except (KeyError, IndexError) as problem:
                raise self._not_cifar100(problem) from problem

        return read

    def _not_cifar100(self, problem: Exception) -> FslError:
        return FslError(f"not CIFAR-100: {problem!r}", where=str(self.path), hint="put the original cifar-100-python there")

    def _load(self, member: str) -> Any:
        if self.path.is_dir():
            with readable(self.path), (self.path / member).open("rb") as file:
                return load_arrays(file, self.path / member)
        try:
            with readable(self.path), tarfile.open(self.path) as archive:
                data = _member(archive, f"{PYTHON}/{member}")
        except (KeyError, ValueError, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as problem:
            hint = "remove it to have it downloaded, or put the original there"
            raise FslError(f"not a whole {PYTHON}.tar.gz: {problem}", where=str(self.path), hint=hint) from problem
        return load_arrays(io.BytesIO(data), self.path / member)


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    """The bytes of a file in an archive, of which nothing is unpacked to disk.

    Raises:
        ValueError: it is a link or the like, or something in the archive is larger than CIFAR-100.
        KeyError: there is no such file.
    """
    for each in archive:
        if each.size > MOST_BYTES:
            raise ValueError(f"{each.name} has more than {MOST_BYTES >> 20} MB")
        if each.name == name:
            packed = archive.extractfile(each) if each.isreg() else None
            if packed is None:
                raise ValueError(f"{name} is no file")
            return packed.read()
    raise KeyError(f"there is no {name}")
