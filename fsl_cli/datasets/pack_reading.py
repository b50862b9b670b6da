"""Packs as they are read: memory-mapped, checked at every start as far as that is cheap, and completely on request."""

from __future__ import annotations

import hashlib
import json
import mmap
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fsl_cli.episodes.class_images import ClassImages

IMAGES, HASHES, INDEX = "images.npy", "hashes.npy", "index.json"

_CHECKED_BYTES = 1 << 25  # a split up to this size is checked completely when it is opened
_CHECKED_IMAGES = 256  # of a larger one, so many images
_RELEASED = 1 << 26  # bytes read from a memory map between two releases of its pages
_AT_ONCE = 1024  # images hashed between two reports of progress
_NORESERVE = 0x4000 if sys.platform == "linux" else 0  # MAP_NORESERVE, for which Python has no name before 3.13
_UNREADABLE = (OSError, ValueError, EOFError, KeyError, TypeError)


@dataclass(frozen=True)
class Pack:
    """An open pack.

    Attributes:
        images: uint8 ``[M, C, H, W]``, memory-mapped.
        hashes: uint64 ``[M]``.
        index: for each split, ``classes``, ``counts`` and ``first``.
        on_read: see `ClassImages`.
    """

    images: np.ndarray
    hashes: np.ndarray
    index: dict[str, Any]
    on_read: Callable[[int], object]

    def rows(self, split: str) -> slice:
        """The images of a split."""
        first = self.index[split]["first"]
        return slice(first, first + sum(self.index[split]["counts"]))


class _PageRelease:
    """Releases the pages of a memory map, which stay in the system's cache, whenever enough bytes have been read from it.

    Without it, the pages of a file count as memory of the process until the system needs them for something else.
    """

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory, self._read = memory, 0

    def __call__(self, read: int) -> None:
        self._read += read
        if self._read >= _RELEASED and hasattr(mmap, "MADV_DONTNEED"):
            self._memory.madvise(mmap.MADV_DONTNEED)
            self._read = 0


def open_split(folder: Path, split: str) -> ClassImages | None:
    """The images of a split, or None if the pack is missing or damaged.

    The sizes of the files are always checked; the images of a split of up to 32 MiB all, of a larger one 256, evenly spaced.
    """
    try:
        pack = open_pack(folder)
        entry, rows = pack.index[split], pack.rows(split)
        images, hashes = pack.images[rows], pack.hashes[rows]
        positions = np.arange(len(images))
        if images.nbytes > _CHECKED_BYTES:
            positions = np.linspace(0, len(images) - 1, _CHECKED_IMAGES).astype(np.int64)
        if len(images) != rows.stop - rows.start or any(image_hash(images[i]) != hashes[i] for i in positions):
            return None
        return ClassImages(
            torch.from_numpy(images), np.asarray(entry["counts"], dtype=np.int64), entry["classes"], on_read=pack.on_read
        )
    except _UNREADABLE:
        return None


def read_counts(folder: Path, split: str) -> np.ndarray | None:
    """int64 ``[classes]``, images per class of a split; None if the pack is missing or its index damaged."""
    try:
        return np.asarray(_index(folder)[split]["counts"], dtype=np.int64)
    except _UNREADABLE:
        return None


def pack_counts(folder: Path) -> dict[str, np.ndarray]:
    """`read_counts` of every split; empty if there is no pack in this folder."""
    try:
        return {split: np.asarray(entry["counts"], dtype=np.int64) for split, entry in _index(folder).items()}
    except (*_UNREADABLE, AttributeError):
        return {}


def open_pack(folder: Path) -> Pack:
    """All splits of a pack. Raises one of several exceptions if a file is missing, damaged or of the wrong size."""
    index = _index(folder)
    images, memory = _mapped(folder / IMAGES)
    hashes = np.load(folder / HASHES, mmap_mode="r")
    if hashes.shape != (len(images),) or hashes.dtype != np.uint64:
        raise ValueError("images and hashes do not belong together")
    return Pack(images, hashes, index, _PageRelease(memory))


def damaged_images(pack: Pack, advance: Callable[[int], object] = lambda count: None) -> Iterator[tuple[str, str, int]]:
    """Compare every image with its hash: split, class and position in the class of those that have changed.

    Args:
        pack: an open pack.
        advance: called with increments that add up to the number of images.
    """
    for split, entry in pack.index.items():
        row = entry["first"]
        for name, count in zip(entry["classes"], entry["counts"], strict=True):
            for first in range(0, count, _AT_ONCE):
                positions = range(first, min(first + _AT_ONCE, count))
                for position in positions:
                    if image_hash(pack.images[row + position]) != pack.hashes[row + position]:
                        yield split, name, position
                pack.on_read(len(positions) * pack.images[0].nbytes)
                advance(len(positions))
            row += count


def damaged_splits(folder: Path) -> list[str]:
    """The splits of a pack with images that have changed; all if it cannot be opened. Reads every image."""
    try:
        return sorted({split for split, _, _ in damaged_images(open_pack(folder))})
    except _UNREADABLE:
        return list(pack_counts(folder)) or ["every"]


def duplicate_rows(hashes: np.ndarray) -> np.ndarray:
    """int64 ``[D, 2]``: the rows of images that equal an earlier one, in order, and the first row of each such image."""
    _, first, which = np.unique(hashes, return_index=True, return_inverse=True)
    earlier = first[which.reshape(-1)]
    rows = np.flatnonzero(earlier < np.arange(len(hashes)))
    return np.stack([rows, earlier[rows]], axis=1)


def image_hash(image: np.ndarray) -> int:
    """64 bits of BLAKE2b of the pixels of one image."""
    return int.from_bytes(hashlib.blake2b(image.data, digest_size=8).digest(), "little")


def image_hashes(images: np.ndarray) -> np.ndarray:
    """uint64 ``[n]``, the `image_hash` of each of some images ``[n, C, H, W]``."""
    return np.array([image_hash(image) for image in images], dtype=np.uint64)


def _index(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    return found


def _mapped(path: Path) -> tuple[np.ndarray, mmap.mmap]:
    """The array in an ``.npy`` file, memory-mapped.

    The map is private, because torch warns about read-only arrays: nothing is written, so nothing is copied. No swap space is
    reserved for it, because a system refuses to reserve more than it has memory.
    """
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        start, size = file.tell(), path.stat().st_size
        if dtype != np.uint8 or size != start + int(np.prod(shape)):
            raise ValueError(f"{size} bytes are not {shape} images")
        if sys.platform == "win32":
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        else:
            flags = mmap.MAP_PRIVATE | _NORESERVE
            memory = mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    return np.frombuffer(memory, np.uint8)[start:].reshape(shape), memory
