"""Image files in a zip file or a folder, behind one interface."""

from __future__ import annotations

import hashlib
import io
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import IO, Protocol

from PIL import Image

from fsl_cli.datasets.file_tree import files_in
from fsl_cli.errors import FslError

# What zipfile raises for damaged and for made-up files.
BAD_ZIP = (
    *(EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(ValueError, OverflowError),
)
MOST_BYTES = 1 << 26  # of one image in an archive, unpacked; a few kilobytes can unpack to any number of bytes
MOST_SIDE = 4096  # pixels; those of the data sets that are read here have at most 105
UNDECODABLE = (OSError, EOFError, SyntaxError, ValueError, Image.DecompressionBombError)  # SyntaxError: a corrupt PNG


class ImageFiles(Protocol):
    """Files with the extension ``.png``, named by their ``/``-separated path in the zip file or folder."""

    path: Path

    def names(self) -> list[str]:
        """All names, sorted, without files of the operating system (hidden files, ``__MACOSX``)."""

    def read(self, name: str) -> bytes:
        """The bytes of one file."""

    def fingerprint(self) -> str:
        """A hash that changes if a file is added, removed or modified."""


class ZipImages:
    """The images in a zip file. Backslashes in its names, which some programs for Windows write, separate folders too.

    Raises:
        FslError: the file is not a readable zip file, or a path in it leads out of it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with readable(path):
                self._zip = zipfile.ZipFile(path)
        except BAD_ZIP as problem:
            raise FslError(
                f"not a whole zip file ({problem})",
                where=str(path),
                hint="it may have been cut short when it was copied: remove it, or put a whole one there",
            ) from problem
        self._written = {name.replace("\\", "/"): name for name in self._zip.namelist()}
        for name in self._written:
            if name.startswith("/") or name[1:2] == ":" or ".." in name.split("/"):
                raise FslError(f"has a path that leads out of it: {name}", where=str(path), hint="put the original there")

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(name for name in self._written if is_image(name))

    def read(self, name: str) -> bytes:
        """The bytes of one file. Raises ValueError if they are too many."""
        with self._zip.open(self._written[name]) as file:  # its announced size may be a lie
            return _bounded(file)

    def fingerprint(self) -> str:
        """SHA-256 of the zip file."""
        digest = hashlib.sha256()
        with readable(self.path), self.path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        return digest.hexdigest()


class FolderImages:
    """The images in a folder and its subfolders."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        """All names, sorted."""
        with readable(self.path):
            return sorted(name for name, _ in files_in(self.path) if is_image(name))

    def read(self, name: str) -> bytes:
        """The bytes of one file. Raises ValueError if they are too many."""
        with (self.path / name).open("rb") as file:
            return _bounded(file)

    def fingerprint(self) -> str:
        """SHA-256 of every image's name, size and modification time, since reading 32,460 files would take seconds."""
        digest = hashlib.sha256()
        with readable(self.path):
            for name, entry in sorted(files_in(self.path), key=itemgetter(0)):
                if is_image(name):
                    status = entry.stat()
                    digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        return digest.hexdigest()


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Convert an OSError of reading ``path`` to an FslError."""
    try:
        yield
    except OSError as problem:
        raise FslError(
            f"cannot be read: {problem.strerror or problem}",
            where=str(problem.filename or path),
            hint="check its permissions, or set data_dir or FSL_DATA_DIR to another folder",
        ) from problem


def _bounded(file: IO[bytes]) -> bytes:
    data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"more than {MOST_BYTES >> 20} MB")
    return data


def is_image(name: str) -> bool:
    """Whether a ``/``-separated path is that of an image and not of a file of the operating system."""
    parts = name.split("/")
    return name.lower().endswith(".png") and not any(part.startswith(".") or part == "__MACOSX" for part in parts)


def read_image(files: ImageFiles, name: str) -> Image.Image:
    """Decode one image.

    Raises:
        FslError: the image cannot be read or decoded; the message contains its name.
    """
    hint = "replace it, or the whole file or folder"
    try:
        data = files.read(name)
    except (OSError, *BAD_ZIP) as problem:
        raise FslError(f"{name} cannot be read ({problem})", where=str(files.path), hint=hint) from problem
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG",))
        if max(image.size) > MOST_SIDE:
            raise ValueError(f"{image.width} x {image.height} pixels are too many")
        image.load()
        return image
    except UNDECODABLE as problem:
        detail = "not an image" if isinstance(problem, Image.UnidentifiedImageError) else str(problem)
        raise FslError(f"{name} cannot be decoded ({detail})", where=str(files.path), hint=hint) from problem
