"""Your own pictures: a folder for each class, or a CSV file that names the class of each picture."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Gt, Len, Lt

from fsl_cli.datasets import picture_lists
from fsl_cli.datasets.class_splits import SPLITS, check_fractions, split_by_file, split_by_fractions
from fsl_cli.datasets.image_files import readable
from fsl_cli.datasets.pack import ProgressFactory, pack_folder, pack_key
from fsl_cli.datasets.pack_reading import pack_counts
from fsl_cli.datasets.pack_source import Packed, PackSource, from_items
from fsl_cli.datasets.packed_images import PackedImages
from fsl_cli.datasets.parallel import in_order
from fsl_cli.datasets.picture_lists import Splits
from fsl_cli.datasets.pictures import Fit, Undecodable, picture
from fsl_cli.datasets.review import Read
from fsl_cli.datasets.status import Status
from fsl_cli.errors import FslError

_NAMED = 5  # at most so many pictures or classes are named in one message


class Folder(PackedImages):
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

    def examples(self) -> Iterator[Read]:
        """Every picture of the folder, decoded and resized, or why it cannot be."""
        named = [(split, name, path) for split, each in self._found.items() for name, paths in each.items() for path in paths]
        for (split, name, path), found in zip(named, in_order(partial(self._decoded, each[2]) for each in named), strict=True):
            yield Read(split, name, str(path), found)

    def _source(self) -> PackSource:
        splits = {
            split: {name: from_items(paths, self._named, self.image_shape) for name, paths in classes.items()}
            for split, classes in self._found.items()
        }
        return PackSource(splits, self.image_shape, self._check_unreadable, self.min_images, self._report)

    def _decoded(self, path: Path) -> np.ndarray | str:
        try:
            pixels = picture(path, self.size, self.channels, self.fit)
        except Undecodable as problem:
            return str(problem)
        return 255 - pixels if self.invert else pixels

    def _named(self, path: Path) -> np.ndarray | str:
        found = self._decoded(path)
        return f"{path}: {found}" if isinstance(found, str) else found

    def _check_unreadable(self, found: list[str]) -> None:
        total = sum(len(paths) for classes in self._found.values() for paths in classes.values())
        if len(found) > self.max_unreadable * total:
            what = f"more than {self.max_unreadable:.0%} of {total} pictures cannot be read, for example {found[0]}"
            raise FslError(what, where=str(self.root), hint="remove or replace them, or set dataset.max_unreadable")

    def _report(self, packed: Packed) -> None:
        """Warn of what was left out and of what is there twice."""
        paths = self._found
        small = [f"{name} ({usable})" for name, usable in packed.small]
        twice = [
            f"{paths[split][name][position]} ({split}) is {paths[other][label][first]} ({other})"
            for (split, name, position), (other, label, first) in packed.twice
        ]
        self._warn_of("unreadable pictures left out", packed.unusable)
        self._warn_of(f"classes with fewer than {self.min_images} pictures left out", small)
        self._warn_of("pictures are in two splits, so a test may have been seen in training", twice)

    def _warn_of(self, what: str, items: Sequence[str]) -> None:
        if items:
            more = f" and {len(items) - _NAMED} more" if len(items) > _NAMED else ""
            self.warn(f"{self.root}: {len(items)} {what}: {'; '.join(items[:_NAMED])}{more}")
