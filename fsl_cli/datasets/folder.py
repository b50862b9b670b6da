"""Your own pictures: a folder for each class, or a CSV file that names the class of each picture."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Gt, Len, Lt

from fsl_cli.datasets import picture_lists
from fsl_cli.datasets.class_splits import SPLITS, check_fractions, split_by_file, split_by_fractions
from fsl_cli.datasets.dataset import ImageClasses, SplitName
from fsl_cli.datasets.image_files import readable
from fsl_cli.datasets.pack import PackSource, ProgressFactory, pack_counts, pack_folder, pack_key, packed_counts, packed_split
from fsl_cli.datasets.picture_lists import Splits
from fsl_cli.datasets.pictures import Fit, Undecodable, picture
from fsl_cli.datasets.review import Read, Review
from fsl_cli.datasets.status import Status
from fsl_cli.episodes.class_images import ClassImages
from fsl_cli.errors import FslError

_NAMED = 5  # at most so many pictures or classes are named in one message


class Folder(ImageClasses):
    """Pictures of any size and format, decoded, resized and packed once.

    ``root`` has a folder for each class; or folders ``train``, ``val`` and ``test`` with a folder for each class. With ``csv``
    the classes are those of its column of labels.

    Args:
        root: the folder of the pictures.
        cache_dir: cache folder for the packed pictures, one pack for each combination of options.
        csv: a file with the columns file and label, perhaps split; or a folder with train.csv, val.csv and test.csv.
        split_by: ``folders``: train, val and test are folders, or the CSV has splits; ``fractions``: classes are drawn;
            ``file``: see ``split_file``. None: folders where there are any, otherwise fractions.
        split_file: a CSV file with the columns class and split, or a folder with train.txt, val.txt and test.txt.
        fractions: of the classes, for train, val and test.
        split_seed: of the draw of classes; not of the run.
        size: height and width in pixels.
        channels: 3: red, green, blue; 1: greyscale.
        fit: what becomes of pictures that are not square, see `picture`.
        invert: black becomes white, for dark strokes on white paper.
        min_images: classes with fewer usable pictures are left out, with a warning.
        max_unreadable: the fraction of pictures that may be unreadable; they are left out, with a warning.
        progress: reports packing; None: no progress.
        warn: reports what is left out, and pictures that are in two splits; None: no warnings.
    """

    name = "folder"

    def __init__(
        self,
        root: Path,
        cache_dir: Path,
        *,
        csv: Path | None = None,
        split_by: Literal["folders", "fractions", "file"] | None = None,
        split_file: Path | None = None,
        fractions: Annotated[list[Annotated[float, Gt(0), Lt(1)]], Len(3, 3)] = [0.6, 0.2, 0.2],  # noqa: B006
        split_seed: Annotated[int, Ge(0)] = 0,
        size: Annotated[int, Ge(8)] = 84,
        channels: Literal[1, 3] = 3,
        fit: Fit = "crop",
        invert: bool = False,
        min_images: Annotated[int, Ge(1)] = 1,
        max_unreadable: Annotated[float, Ge(0), Lt(1)] = 0.01,
        progress: ProgressFactory | None = None,
        warn: Callable[[str], object] | None = None,
    ) -> None:
        self.root, self.cache_dir = Path(root).expanduser(), Path(cache_dir)
        self.csv, self.split_file = (Path(path).expanduser() if path else None for path in (csv, split_file))
        self.split_by, self.fractions, self.split_seed = split_by, fractions, split_seed
        self.size, self.channels, self.fit, self.invert = size, channels, fit, invert
        self.min_images, self.max_unreadable = min_images, max_unreadable
        self.progress, self.warn = progress, warn or (lambda text: None)
        check_fractions(fractions)

    def split(self, name: SplitName) -> ClassImages:
        """The classes of one split, memory-mapped; the first call decodes and packs the pictures.

        Raises:
            FslError: the folder or a file is missing or unreadable, too many pictures are, or there are no classes.
        """
        return packed_split(self.cache_dir, self.name, self._key, name, self._source, self.progress)

    def counts(self, name: SplitName) -> np.ndarray:
        """int64 ``[classes]``, pictures per class of one split. Raises the same errors as `split`."""
        return packed_counts(self.cache_dir, self.name, self._key, name, self._source, self.progress)

    def status(self) -> Status:
        """Its folder. Before packing, unreadable pictures count too. Raises the errors of `split`."""
        counts = {
            split: np.array([len(pictures) for pictures in classes.values()], dtype=np.int64)
            for split, classes in self._found.items()
        }
        pack = pack_folder(self.cache_dir, self.name, self._key)
        return Status((self.root,), None, pack, pack_counts(pack) or counts)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of every picture."""
        return self.channels, self.size, self.size

    @cached_property
    def _found(self) -> Splits:
        found = picture_lists.from_csv(self.csv, self.root) if self.csv else picture_lists.from_folders(self.root)
        where = str(self.csv or self.root)
        split_by = self.split_by or ("file" if self.split_file else "fractions" if "all" in found else "folders")
        if split_by == "folders":
            if "all" in found:
                raise FslError("has no splits train and test", where=where, hint="use dataset.split_by=fractions or file")
            return {split: found.get(split, {}) for split in SPLITS}
        if "all" not in found:
            raise FslError("is split already", where=where, hint=f"leave out dataset.split_by={split_by}")
        if split_by == "fractions":
            return split_by_fractions(found["all"], self.fractions, self.split_seed)
        if self.split_file is None:
            raise FslError("is missing", where="dataset.split_file", hint="name a CSV file with the columns class and split")
        return split_by_file(found["all"], self.split_file)

    @cached_property
    def _key(self) -> str:
        """Of the splits, the options, and every picture's path, size and modification time."""
        digest = hashlib.sha256()
        with readable(self.root):
            for split, classes in self._found.items():
                for label, pictures in classes.items():
                    for path in pictures:
                        status = path.stat()
                        digest.update(
                            f"{split}\0{label}\0{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="replace")
                        )
        options = {"size": self.size, "channels": self.channels, "fit": self.fit, "invert": self.invert}
        limits = {"min_images": self.min_images, "max_unreadable": self.max_unreadable}
        return pack_key(content=digest.hexdigest(), **options, **limits)

    def _source(self) -> PackSource:
        splits = {split: {name: len(pictures) for name, pictures in classes.items()} for split, classes in self._found.items()}
        return PackSource(splits, self.image_shape, self._blocks(), incomplete=True)

    def _blocks(self) -> Iterator[np.ndarray]:
        """The pictures of each class; warns at the end of what was left out and what is there twice."""
        review, small = Review(), []
        total = sum(len(pictures) for classes in self._found.values() for pictures in classes.values())
        for (_, label), reads in groupby(self.examples(), key=lambda read: (read.split, read.label)):
            usable = []
            for read in reads:
                review.add(read)
                usable += [read.content] if not isinstance(read.content, str) else []
            if len(review.unreadable) > self.max_unreadable * total:
                raise self._too_many(review.unreadable, total)
            if len(usable) < self.min_images:
                small.append(f"{label} ({len(usable)})")
                usable = []
            yield np.stack(usable) if usable else np.empty((0, *self.image_shape), np.uint8)
        self._report("unreadable pictures left out", review.unreadable)
        self._report(f"classes with fewer than {self.min_images} pictures left out", small)
        self._report("pictures are in two splits, so a test may have been seen in training", review.twice["in two splits"])

    def examples(self) -> Iterator[Read]:
        """Every picture of the folder, decoded and resized, or why it cannot be."""
        with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()) as pool:
            for split, classes in self._found.items():
                for label, paths in classes.items():
                    for path, found in zip(paths, pool.map(self._decoded, paths), strict=True):
                        yield Read(split, label, str(path), found)

    def _decoded(self, path: Path) -> np.ndarray | str:
        try:
            pixels = picture(path, self.size, self.channels, self.fit)
        except Undecodable as problem:
            return str(problem)
        return 255 - pixels if self.invert else pixels

    def _too_many(self, unreadable: list[str], total: int) -> FslError:
        what = f"more than {self.max_unreadable:.0%} of {total} pictures cannot be read, for example {unreadable[0]}"
        return FslError(what, where=str(self.root), hint="remove or replace them, or set dataset.max_unreadable")

    def _report(self, what: str, items: list[str]) -> None:
        if items:
            more = f" and {len(items) - _NAMED} more" if len(items) > _NAMED else ""
            self.warn(f"{self.root}: {len(items)} {what}: {'; '.join(items[:_NAMED])}{more}")
