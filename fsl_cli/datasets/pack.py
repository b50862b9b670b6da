"""Packs: the images of a data set as one memory-mapped uint8 array in the cache folder.

A pack is a folder ``<cache_dir>/packs/<dataset>-<key>/``, written once and never changed:

- ``images.npy``: uint8 ``[M, C, H, W]``, sorted by split and class;
- ``hashes.npy``: uint64 ``[M]``, a hash of each image;
- ``index.json``: for each split, its class names, images per class, and index of its first image.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
from filelock import FileLock

from fsl_cli.datasets.pack_reading import open_split, read_counts
from fsl_cli.datasets.pack_source import PackSource
from fsl_cli.datasets.pack_writing import write_pack
from fsl_cli.episodes.class_images import ClassImages
from fsl_cli.errors import FslError

FORMAT = 2  # part of every key: increasing it invalidates all existing packs

# Reports the progress of long operations: ``with progress("packing omniglot", total) as advance: advance(n)``.
ProgressFactory = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]

Read = TypeVar("Read")


def pack_key(**content_and_settings: object) -> str:
    """A hash of the content, the settings and the pack format: 16 hex digits."""
    text = json.dumps({"format": FORMAT, **content_and_settings}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def pack_folder(cache_dir: Path, dataset: str, key: str) -> Path:
    """The folder of a pack, which may not exist yet."""
    return cache_dir / "packs" / f"{dataset}-{key}"


def packed_split(
    cache_dir: Path,
    dataset: str,
    key: str,
    split: str,
    source: Callable[[], PackSource],
    progress: ProgressFactory | None = None,
) -> ClassImages:
    """The images of ``split``, memory-mapped; packs the data set first if there is no complete pack of it.

    One process packs, others that start at the same time wait for it. A packing that was killed is continued. A pack whose
    files are missing, truncated or, as far as `open_split` looks at them, modified is created again.

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
    return _read_or_pack(folder, lambda: open_split(folder, split), source, progress or silent)


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
    return _read_or_pack(folder, lambda: read_counts(folder, split), source, progress or silent)


def _read_or_pack(
    folder: Path, read: Callable[[], Read | None], source: Callable[[], PackSource], progress: ProgressFactory
) -> Read:
    found = read()
    if found is not None:
        return found
    with _locked(folder):
        found = read()  # another process may have packed it while this one waited
        if found is None:
            write_pack(folder, source(), lambda total: progress(f"packing {folder.name.rpartition('-')[0]}", total))
            found = read()
    if found is None:
        raise FslError("was packed, but cannot be read back", where=str(folder))
    return found


@contextmanager
def silent(_what: str, _total: int) -> Iterator[Callable[[int], object]]:
    """A :data:`ProgressFactory` without output."""
    yield lambda _count: None


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
