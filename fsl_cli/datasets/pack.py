"""Packs: the images of a data set as one memory-mapped uint8 array in the cache folder.

A pack is a folder ``<cache_dir>/packs/<dataset>-<key>/``, written once and never changed:

- ``images.npy``: uint8 ``[M, C, H, W]``, sorted by split and class;
- ``index.json``: for each split, its class names, images per class, index of its first image, and CRC-32.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from filelock import FileLock

from fsl_cli.episodes.class_images import ClassImages
from fsl_cli.errors import FslError

FORMAT = 1  # part of every key: increasing it invalidates all existing packs

# Reports the progress of long operations: ``with progress("packing omniglot", total) as advance: advance(n)``.
ProgressFactory = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]

Read = TypeVar("Read")


@dataclass(frozen=True)
class PackSource:
    """The content of a pack.

    Attributes:
        splits: for each split, its class names in order and the number of images of each.
        image_shape: ``(C, H, W)``.
        images: uint8 blocks ``[n, C, H, W]`` whose concatenation is the images of all splits, in the order of ``splits``;
            every block belongs to one split.
        incomplete: there is one block for each class, which may have fewer images than announced in ``splits``, because some
            turned out to be unusable. Classes without images are left out.
    """

    splits: Mapping[str, Mapping[str, int]]
    image_shape: tuple[int, int, int]
    images: Iterable[np.ndarray]
    incomplete: bool = False


def pack_key(**content_and_settings: object) -> str:
    """A hash of the content, the settings and the pack format: 16 hex digits."""
    text = json.dumps({"format": FORMAT, **content_and_settings}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def pack_folder(cache_dir: Path, dataset: str, key: str) -> Path:
    """The folder of a pack, whether it is there or not; arguments as in :func:`packed_split`."""
    return cache_dir / "packs" / f"{dataset}-{key}"


def pack_counts(folder: Path) -> dict[str, np.ndarray]:
    """For each split of a pack, int64 ``[classes]``, images per class; empty if there is no pack in this folder."""
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        return {split: np.asarray(entry["counts"], dtype=np.int64) for split, entry in index.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def damaged_splits(folder: Path) -> list[str]:
    """The splits of a pack that are damaged; reads all of it."""
    return [split for split in pack_counts(folder) or ["every"] if _open_split(folder, split) is None]


def packed_split(
    cache_dir: Path,
    dataset: str,
    key: str,
    split: str,
    source: Callable[[], PackSource],
    progress: ProgressFactory | None = None,
) -> ClassImages:
    """The images of ``split``, memory-mapped; packs the data set first if there is no complete pack of it.

    One process packs, others that start at the same time wait for it. A pack whose files are missing, truncated or
    modified is created again.

    Args:
        cache_dir: the cache folder; created if missing.
        dataset: name of the data set.
        key: the data set's :func:`pack_key`.
        split: name of a split in ``source().splits``.
        source: returns the content; called only if the data set must be packed.
        progress: reports the number of packed images; None: no progress.

    Raises:
        FslError: the cache folder is not writable, or an error of ``source``.
    """
    folder = pack_folder(cache_dir, dataset, key)
    return _read_or_pack(folder, lambda: _open_split(folder, split), source, progress or silent)


def packed_counts(
    cache_dir: Path,
    dataset: str,
    key: str,
    split: str,
    source: Callable[[], PackSource],
    progress: ProgressFactory | None = None,
) -> np.ndarray:
    """int64 ``[classes]``, images per class of ``split``; does not read images. Arguments as in :func:`packed_split`."""
    folder = pack_folder(cache_dir, dataset, key)
    return _read_or_pack(folder, lambda: _read_counts(folder, split), source, progress or silent)


def _read_or_pack(
    folder: Path, read: Callable[[], Read | None], source: Callable[[], PackSource], progress: ProgressFactory
) -> Read:
    found = read()
    if found is not None:
        return found
    with _locked(folder):
        found = read()  # another process may have packed it while this one waited
        if found is None:
            _write(folder, source(), progress, f"packing {folder.name.rpartition('-')[0]}")
            found = read()
    if found is None:
        raise FslError("was packed, but cannot be read back", where=str(folder))
    return found


@contextmanager
def silent(_what: str, _total: int) -> Iterator[Callable[[int], object]]:
    """A :data:`ProgressFactory` without output."""
    yield lambda _count: None


def _open_split(folder: Path, split: str) -> ClassImages | None:
    """The images of a split, or None if the pack is missing or damaged."""
    try:
        entry = json.loads((folder / "index.json").read_text(encoding="utf-8"))[split]
        counts = np.asarray(entry["counts"], dtype=np.int64)
        # Copy-on-write, because torch warns about read-only arrays; nothing is written, so nothing is copied.
        everything = np.load(folder / "images.npy", mmap_mode="c")
        images = everything[entry["first"] : entry["first"] + int(counts.sum())]
        if zlib.crc32(images.data) != entry["crc32"]:
            return None
        return ClassImages(torch.from_numpy(images), counts, entry["classes"])
    except (OSError, ValueError, EOFError, KeyError, TypeError):
        return None


def _read_counts(folder: Path, split: str) -> np.ndarray | None:
    try:
        return np.asarray(json.loads((folder / "index.json").read_text(encoding="utf-8"))[split]["counts"], dtype=np.int64)
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the pack's lock; convert an OSError of the cache folder to an FslError."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            yield
    except OSError as problem:
        raise FslError(
            f"cannot write the image cache: {problem.strerror or problem}",
            where=str(problem.filename or folder.parent),
            hint="set FSL_CACHE_DIR to a folder you may write to, with room for the images",
        ) from problem


def _write(folder: Path, source: PackSource, progress: ProgressFactory, label: str) -> None:
    """Write the pack to a temporary folder, then rename it to ``folder``, which is therefore always complete."""
    beside = f".{folder.name}."
    for leftover in folder.parent.glob(f"{beside}*.tmp"):  # left by killed processes, since this one holds the lock
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=beside, suffix=".tmp", dir=folder.parent))
    try:
        temporary.chmod(0o755)  # mkdtemp creates private folders, but a cache may be shared
        with _flushed(temporary / "images.npy") as file:
            index = _write_images(file, source, progress, label)
        with _flushed(temporary / "index.json") as file:
            file.write(json.dumps(index, ensure_ascii=False).encode())
        if folder.exists():
            os.rename(folder, temporary / "damaged")  # processes that have its files open can still read them
        os.rename(temporary, folder)
        shutil.rmtree(folder / "damaged", ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _flushed(path: Path) -> Iterator[BinaryIO]:
    """Open a new file and flush it to disk at the end of the block: only then is it safe to rename its folder."""
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _write_images(file: BinaryIO, source: PackSource, progress: ProgressFactory, label: str) -> dict[str, Any]:
    """Write ``images.npy`` block by block, without holding all images in memory, and return the index.

    Uses plain writes, because a full disk kills a process that writes through a memory map.
    """
    announced = sum(sum(classes.values()) for classes in source.splits.values())
    np.lib.format.write_array_header_1_0(file, _header(announced, source))
    blocks = iter(source.images)
    index, first = {}, 0
    with progress(label, announced) as advance:
        for split, classes in source.splits.items():
            crc, counts = 0, dict.fromkeys(classes, 0)
            for name, count in _parts(split, classes, source):
                written = 0
                while written < count:
                    block = np.ascontiguousarray(next(blocks))
                    crc, written = zlib.crc32(block.data, crc), written + len(block)
                    if block.dtype != np.uint8 or block.shape[1:] != source.image_shape or written > count:
                        raise ValueError(f"not a block of the {split} split: {block.dtype} {block.shape}")
                    file.write(block.data)
                    advance(len(block))
                    if source.incomplete:
                        advance(count - len(block))
                        break
                counts |= {name: written} if source.incomplete else classes
            present = {name: count for name, count in counts.items() if count}
            index[split] = {"classes": list(present), "counts": list(present.values()), "first": first, "crc32": crc}
            first += sum(present.values())
        if next(blocks, None) is not None:  # also lets the source finish
            raise ValueError("more images than announced")
    if first < announced:
        end = file.tell()
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, _header(first, source))
        file.seek(end)
    return index


def _parts(split: str, classes: Mapping[str, int], source: PackSource) -> Iterable[tuple[str, int]]:
    """What blocks are counted against: each class, or the whole split."""
    return classes.items() if source.incomplete else [(split, sum(classes.values()))]


def _header(total: int, source: PackSource) -> dict[str, Any]:
    return {"descr": "|u1", "fortran_order": False, "shape": (total, *source.image_shape)}
