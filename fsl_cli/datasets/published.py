"""Published sets of pictures, each with its published class split, in the layouts in which people have them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from threading import Lock
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge

from fsl_cli.datasets.class_splits import published_split
from fsl_cli.datasets.dataset import SPLITS
from fsl_cli.datasets.image_files import readable
from fsl_cli.datasets.layouts import Finder, Layout, Picture
from fsl_cli.datasets.pack import ProgressFactory, pack_folder, pack_key
from fsl_cli.datasets.pack_reading import pack_counts
from fsl_cli.datasets.pack_source import Packed, PackSource, from_array
from fsl_cli.datasets.packed_images import PackedImages
from fsl_cli.datasets.pictures import Fit, Undecodable, picture, resized
from fsl_cli.datasets.review import Read
from fsl_cli.datasets.status import Status
from fsl_cli.errors import FslError

_NAMED = 5  # at most so many pictures or files are named in one message


class Published(PackedImages):
    """A published set of colour pictures. The first layout that is found is read, resized and packed once.

    Classes are sorted by name, the pictures of a class by the hash of their pixels: layouts with the same class names and the
    same pixels give the same episodes.

    Args:
        data_dir: the folder with the set's own folder, or that folder itself.
        cache_dir: cache folder for the packed pictures, one pack for each size.
        size: height and width in pixels.
        fit: what becomes of pictures that are not square, see `picture`.
        progress: reports packing; None: no progress.
        warn: reports pictures that are in two splits; None: no warnings.

    Attributes:
        folders: names of the set's own folder, in lower case, without ``-``, ``_`` and blanks.
        finders: of the layouts, in the order in which they are tried.
        layouts: the layouts in words, for messages.
        total: number of pictures in the set.
        md5: of the published archive; None: there is none, or it is not read.
    """

    folders: ClassVar[Collection[str]]
    finders: ClassVar[Sequence[Finder]]
    layouts: ClassVar[str]
    total: ClassVar[int]
    md5: ClassVar[str | None] = None

    def __init__(
        self,
        data_dir: Path,
        cache_dir: Path,
        *,
        size: Annotated[int, Ge(8)] = 84,
        fit: Fit = "stretch",
        progress: ProgressFactory | None = None,
        warn: Callable[[str], object] | None = None,
    ) -> None:
        self.data_dir, self.cache_dir = Path(data_dir), Path(cache_dir)
        self.size, self.fit = size, fit
        self.progress, self.warn = progress, warn or (lambda text: None)
        self._lock = Lock()
        self._loaded: tuple[str, Mapping[str, Sequence[Picture]]] = ("", {})  # the split that is being packed

    def status(self) -> Status:
        """The layout that is read. Raises `FslError` if only a part of one is there."""
        found = self._find()
        if found is None:
            return Status(missing=self._how_to_get())
        pack = pack_folder(self.cache_dir, self.name, self._key)
        published = {found.path: self.md5} if self.md5 and found.path.is_file() else {}
        return Status((found.path,), None, pack, pack_counts(pack), published)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of every picture."""
        return 3, self.size, self.size

    @cached_property
    def _key(self) -> str:
        return pack_key(content=self._layout.fingerprint(), size=self.size, fit=self.fit)

    @cached_property
    def _layout(self) -> Layout:
        return self._find() or self._fetch()

    def _find(self) -> Layout | None:
        split = published_split(self.name)
        for place in places(self.data_dir, self.folders):
            with readable(place):
                for finder in self.finders:
                    if found := finder(place, split):
                        return found
        return None

    def _fetch(self) -> Layout:
        """Called where no layout is found; a set that can be downloaded overrides it."""
        raise self._missing(self._how_to_get())

    def _how_to_get(self) -> str:
        return f"not downloaded, since ImageNet's terms must be accepted; put into {self.data_dir / self.name}: {self.layouts}"

    def _missing(self, hint: str) -> FslError:
        where = places(self.data_dir, self.folders)
        there = "; ".join(f"{place}: {_contents(place)}" for place in where) or f"no folder {self.data_dir}"
        return FslError(f"{self.name} not found; {there}", where="data_dir", hint=hint)

    def _source(self) -> PackSource:
        counts: dict[str, dict[str, int]] = {split: dict(sorted(self._layout.counts(split).items())) for split in SPLITS}
        where = str(self._layout.path)
        check_split(counts, published_split(self.name), where)
        if (found := sum(sum(each.values()) for each in counts.values())) != self.total:
            hint = "put the whole set there, or read what you have with dataset=folder"
            raise FslError(f"has {found:,} pictures, not the {self.total:,} of {self.name}", where=where, hint=hint)
        splits = {
            split: {label: from_array(count, partial(self._class, split, label)) for label, count in classes.items()}
            for split, classes in counts.items()
        }
        return PackSource(splits, self.image_shape, report=self._report)

    def _class(self, split: str, label: str) -> np.ndarray:
        """The pictures of a class in the order of their hashes."""
        pictures: list[np.ndarray] = []
        with self._lock:  # threads that pack classes of one split read its files once
            if self._loaded[0] != split:
                self._loaded = (split, self._layout.pictures(split))
            raw = self._loaded[1][label]
        for number, content in enumerate(map(self._decoded, raw), start=1):
            if isinstance(content, str):
                what, hint = f"is not a usable picture: {content}", "put the original there"
                raise FslError(what, where=self._named(raw, label, number), hint=hint)
            pictures.append(content)
        hashes = [hashlib.sha256(each.tobytes()).digest() for each in pictures]
        return np.stack([pictures[i] for i in sorted(range(len(pictures)), key=hashes.__getitem__)])

    def _report(self, packed: Packed) -> None:
        self._loaded = ("", {})
        twice = [f"one of {mine[1]} ({mine[0]}) is in {other[1]} ({other[0]})" for mine, other in packed.twice]
        if twice:
            more = f" and {len(twice) - _NAMED} more" if len(twice) > _NAMED else ""
            what = f"{len(twice)} pictures are in two splits, so a test may have been seen in training"
            self.warn(f"{self._layout.path}: {what}: {'; '.join(twice[:_NAMED])}{more}")

    def examples(self) -> Iterator[Read]:
        """Every picture, resized, or why it cannot be read; classes are sorted by name."""
        with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()) as pool:
            for split in SPLITS:
                for label, pictures in sorted(self._layout.pictures(split).items()):
                    for number, found in enumerate(pool.map(self._decoded, pictures), start=1):
                        yield Read(split, label, self._named(pictures, label, number), found)

    def _named(self, pictures: Sequence[Picture], label: str, number: int) -> str:
        """A file by its path, others by their number in the class."""
        path = pictures[number - 1] if isinstance(pictures, list) else None
        return str(path) if isinstance(path, Path) else f"{self._layout.path}: {label} number {number}"

    def _decoded(self, given: Picture) -> np.ndarray | str:
        """uint8 ``[3, size, size]``, or why there is none."""
        try:
            if isinstance(given, np.ndarray):
                return resized(given, self.size, self.fit)
            return picture(given, self.size, 3, self.fit)
        except Undecodable as problem:
            return str(problem)


def places(data_dir: Path, folders: Collection[str]) -> list[Path]:
    """The folders that may hold a set: those with its name, and the same inside each; then ``data_dir`` itself."""

    def named(folder: Path) -> list[Path]:
        return [path for path in sorted(folder.iterdir()) if plain(path.name) in folders and path.is_dir()]

    if not data_dir.is_dir():
        return []
    with readable(data_dir):
        own = named(data_dir)
        return [*(each for path in own for each in (path, *named(path))), data_dir]


def plain(name: str) -> str:
    """A name in lower case, without ``-``, ``_`` and blanks: ``mini-ImageNet`` is ``miniimagenet``."""
    return re.sub(r"[-_ ]", "", name.lower())


def check_split(found: Mapping[str, Collection[str]], published: Mapping[str, Collection[str]], where: str) -> None:
    """Check the classes of each split by their number and, where they have the published names, by these.

    Raises:
        FslError: they differ from those of the published split; the message says how.
    """
    sizes, expected = ([len(each[split]) for split in SPLITS] for each in (found, published))
    if sizes != expected:
        what = f"has {_listed(sizes)} classes for train, val and test, not {_listed(expected)}"
        raise FslError(what, where=where, hint="another split can be read with dataset=folder")
    split_of = {name: split for split, names in published.items() for name in names}
    if split_of.keys() == {name for names in found.values() for name in names}:
        for split, names in found.items():
            for name in names:
                if split_of[name] != split:
                    what = f"class {name} is in {split}, but in {split_of[name]} of the published split"
                    raise FslError(what, where=where, hint="another split can be read with dataset=folder")


def _listed(numbers: Sequence[int]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"


def _contents(place: Path) -> str:
    names = sorted(path.name for path in place.iterdir() if not path.name.startswith("."))
    more = [f"and {len(names) - _NAMED} more"] if len(names) > _NAMED else []
    return ", ".join(names[:_NAMED] + more) or "nothing"
