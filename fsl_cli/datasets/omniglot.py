"""Omniglot: 1,623 handwritten characters of 50 alphabets, 20 drawings each (Lake et al., Science 350, 2015)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge
from PIL import Image

from fsl_cli.datasets import omniglot_files
from fsl_cli.datasets.dataset import SplitName
from fsl_cli.datasets.download import fetch
from fsl_cli.datasets.image_files import ImageFiles, ZipImages, read_image
from fsl_cli.datasets.omniglot_splits import OmniglotSplit, alphabets, class_split, vinyals_split
from fsl_cli.datasets.pack import ProgressFactory, pack_folder, pack_key
from fsl_cli.datasets.pack_source import ClassSource, PackSource, from_items
from fsl_cli.datasets.packed_images import PackedImages
from fsl_cli.datasets.review import Read
from fsl_cli.datasets.status import Status
from fsl_cli.episodes import EpisodeSampler, Task
from fsl_cli.episodes.class_images import ClassImages
from fsl_cli.episodes.grouped_sampler import GroupedSampler, grouped_task_problems
from fsl_cli.episodes.rotated_sampler import RotatedSampler
from fsl_cli.episodes.within_group_sampler import WithinGroupSampler, within_group_problems
from fsl_cli.errors import FslError

SOURCE = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"
MD5 = {  # of the official release, as published by torchvision
    "images_background": "68d2efa1b9178cc56df9314c21c6e718",
    "images_evaluation": "6b91aef0f799c5bb55b94e3f2daec811",
}
DRAWINGS = 20
SPLITS = ("train", "val", "test")


class Omniglot(PackedImages):
    """Omniglot in the class split of Vinyals et al. (2016): 1,028 train, 172 val and 423 test classes; or another.

    Reads ``images_background`` and ``images_evaluation``, zipped or extracted, from ``data_dir/omniglot``, ``data_dir``
    or ``data_dir/omniglot-py``, or from ``python/`` in one of them, as in the clone of Omniglot's repository; or a folder or
    zip that has the alphabets of both. An archive found in none of them is downloaded. Images are converted to greyscale with
    ink 255 and resized with a Lanczos filter, which is antialiased.

    Args:
        data_dir: folder of existing and downloaded data.
        cache_dir: cache folder for the packed images, one pack per size.
        rotations: true: four classes from every class, rotated by 0, 90, 180 and 270 degrees, in every split; ``episodes``: no
            new classes, but all images of an episode are rotated by one of these angles; false: none.
        size: height and width in pixels.
        classes: ``characters``, or ``alphabets``: classes of many modes, as in Allen et al. (2019). An alphabet's characters,
            with their rotations, are drawn ``modes`` at a time, and support and queries are images of the same ones. The
            validation split has five alphabets, so its episodes have at most five ways.
        modes: with ``alphabets``: characters of an alphabet in an episode, which share shots and queries evenly.
        within: ``alphabet``: all characters of an episode come from one alphabet, which is harder (Lake et al. 2015). Alphabets
            with fewer characters than ways are left out, with a warning; a rotated alphabet is another one. None: from all.
        split: ``vinyals``, or ``lake``: 20 alphabets for tests; see `class_split`.
        download: download missing archives (14 MiB).
        progress: reports downloading and packing; None: no progress.
        warn: reports alphabets that are left out; None: no warnings.
    """

    name = "omniglot"

    def __init__(
        self,
        data_dir: Path,
        cache_dir: Path,
        *,
        rotations: bool | Literal["episodes"] = True,
        size: Annotated[int, Ge(8)] = 28,
        classes: Literal["characters", "alphabets"] = "characters",
        modes: Annotated[int, Ge(1)] = 10,
        within: Literal["alphabet"] | None = None,
        split: OmniglotSplit = "vinyals",
        download: bool = True,
        progress: ProgressFactory | None = None,
        warn: Callable[[str], object] | None = None,
    ) -> None:
        self.data_dir, self.cache_dir = Path(data_dir), Path(cache_dir)
        self.rotations, self.size, self.download, self.progress = rotations, size, download, progress
        self.alphabets, self.modes, self.within, self.class_split = classes == "alphabets", modes, within, split
        self.warn = warn or (lambda text: None)
        if (self.alphabets or within) and rotations == "episodes":
            raise FslError("alphabets cannot be rotated by the episode", where="dataset.rotations", hint="use true or false")
        if self.alphabets and within:
            what = "is for classes=characters: with classes=alphabets an episode has several alphabets"
            raise FslError(what, where="dataset.within", hint="leave out one of them")

    def split(self, name: SplitName) -> ClassImages:
        """The classes of one split, named ``<Alphabet>/characterNN`` (``@90`` when rotated); see `PackedImages.split`."""
        images = super().split(name)
        return images.with_rotations() if self.rotations is True else images

    def counts(self, name: SplitName) -> np.ndarray:
        """int64 ``[characters]``, images per character of one split. See `PackedImages.counts`."""
        counts = super().counts(name)
        return np.tile(counts, 4) if self.rotations is True else counts

    def classes(self) -> int | None:
        """Number of classes in the training split."""
        return len(np.unique(self.groups("train"))) if self.alphabets else super().classes()

    def groups(self, name: SplitName) -> np.ndarray:
        """int64 ``[characters]``, the alphabet of each character of one split: 0, 1, ... in the order of their names.

        A rotated alphabet is the same one with ``classes=alphabets``, and another one with ``within=alphabet``.
        """
        groups = np.unique(self._alphabets(name), return_inverse=True)[1]
        if self.rotations is not True:
            return groups
        return np.concatenate([groups + (turn * (groups.max() + 1) if self.within else 0) for turn in range(4)])

    def task_problems(self, tasks: Mapping[SplitName, Task]) -> list[FslError]:
        """The reasons why the tasks of the splits cannot be drawn; for each setting, that of the smallest split."""
        if not self.alphabets and not self.within:
            return super().task_problems(tasks)
        found: dict[str | None, FslError] = {}
        for split, task in sorted(tasks.items(), key=lambda each: int(self.groups(each[0]).max())):
            counts, groups = self.counts(split), self.groups(split)
            for problem in (
                within_group_problems(counts, groups, split, task)
                if self.within
                else grouped_task_problems(counts, groups, self.modes, split, self._grouped_task(split, task))
            ):
                found.setdefault(problem.where, problem)
        return list(found.values())

    def _alphabets(self, name: SplitName) -> list[str]:
        """The alphabet of each character of one split, without rotations."""
        split_of = {archive: class_split(self.class_split, archive) for archive in MD5}
        return [c.split("/")[0] for archive in MD5 for c, split in sorted(split_of[archive].items()) if split == name]

    def sampler(self, split: SplitName, task: Task, seed: int, device: torch.device | str = "cpu") -> EpisodeSampler:
        """Episodes of a split, with the images on ``device``."""
        if self.rotations == "episodes":
            return RotatedSampler(self.split(split), split, task, seed, device)
        if self.within:
            self._say_what_is_left_out(split, task)
            return WithinGroupSampler(self.split(split), self.groups(split), split, task, seed, device)
        if not self.alphabets:
            return super().sampler(split, task, seed, device)
        shape = self._grouped_task(split, task)
        return GroupedSampler(self.split(split), self.groups(split), self.modes, split, shape, seed, device)

    def _say_what_is_left_out(self, split: SplitName, task: Task) -> None:
        names, sizes = np.unique(self._alphabets(split), return_counts=True)
        small = [f"{alphabet} ({size})" for alphabet, size in zip(names, sizes, strict=True) if size < task.ways]
        if small and len(small) < len(names):
            left = f"{len(small)} of {len(names)} alphabets of the {split} split are left out"
            self.warn(f"dataset.within=alphabet: {left}, with fewer than {task.ways} characters: {', '.join(small)}")

    def _grouped_task(self, split: SplitName, task: Task) -> Task:
        return task.with_at_most(int(self.groups(split).max()) + 1) if split == "val" else task

    def status(self) -> Status:
        """The two archives; the number of classes is known without them."""
        found = [self._find(archive) for archive in MD5]
        repeats = 4 if self.rotations is True else 1
        counts = {
            name: np.full(repeats * size, DRAWINGS) for name, size in Counter(class_split(self.class_split).values()).items()
        }
        files = tuple(archive.path for archive in found if archive)
        if None in found:
            place = self.data_dir / "omniglot"
            get = "downloaded at first use" if self.download else f"put {' and '.join(f'{each}.zip' for each in MD5)} there"
            return Status(files, f"{get}: {place} (14 MB)", counts=counts)
        published = {path: MD5[path.stem] for path in files if path.name in {f"{archive}.zip" for archive in MD5}}
        return Status(files, None, pack_folder(self.cache_dir, self.name, self._key), counts, published)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of every image."""
        return 1, self.size, self.size

    @cached_property
    def _key(self) -> str:
        content = [archive.fingerprint() for archive in self._archives.values()]
        return pack_key(content=content, size=self.size, filter="lanczos", split=self.class_split)

    @cached_property
    def _archives(self) -> dict[str, ImageFiles]:
        return {name: self._find(name) or self._fetch(name) for name in MD5}

    def _find(self, archive: str) -> ImageFiles | None:
        (other,) = MD5.keys() - {archive}
        return omniglot_files.find(self.data_dir, archive, alphabets(archive), alphabets(other))

    def _fetch(self, archive: str) -> ImageFiles:
        target = self.data_dir / "omniglot" / f"{archive}.zip"
        reason = "dataset.download is off"
        try:
            if self.download:
                fetch(f"{SOURCE}/{archive}.zip", target, md5=MD5[archive], progress=self.progress)
                return ZipImages(target)
        except FslError as problem:
            reason = f"{problem.where}: {problem.what}"
        raise FslError(
            f"neither {archive}.zip nor a folder {archive} nor a folder with its alphabets; "
            f"found: {omniglot_files.contents(self.data_dir)}; {reason}",
            where=", ".join(str(self.data_dir / name) for name in ("omniglot", "", "omniglot-py")),
            hint="set data_dir=... or FSL_DATA_DIR to the folder that contains omniglot/; dataset=glyphs needs no data",
        )

    def examples(self) -> Iterator[Read]:
        """Every drawing, decoded and resized, or why it cannot be; without rotations."""
        split_of = class_split(self.class_split)
        for character, drawings in self._drawings().items():
            for archive, name in drawings:
                content: np.ndarray | str
                try:
                    content = self._drawing((archive, name))
                except FslError as problem:
                    content = problem.what
                yield Read(split_of[character], character, f"{archive.path}: {name}", content)

    def _drawings(self) -> dict[str, list[tuple[ImageFiles, str]]]:
        """For each character, the archive and the file there of each of its drawings."""
        return {
            character: [(archive, name) for name in names]
            for archive_name, archive in self._archives.items()
            for character, names in checked_drawings(archive, archive_name).items()
        }

    def _source(self) -> PackSource:
        drawings = self._drawings()
        split_of = class_split(self.class_split)
        splits: dict[str, dict[str, ClassSource]] = {split: {} for split in SPLITS}
        for character, items in drawings.items():
            splits[split_of[character]][character] = from_items(items, self._drawing, self.image_shape)
        return PackSource(splits, self.image_shape)

    def _drawing(self, drawing: tuple[ImageFiles, str]) -> np.ndarray:
        return _ink(read_image(*drawing), self.size)[None]


def checked_drawings(files: ImageFiles, archive: str) -> dict[str, list[str]]:
    """The image files of each character, checked to be complete as in the original release of the archive.

    A character is named by the last two folders of its images' paths; folders above them are ignored.

    Raises:
        FslError: characters or drawings are missing or unknown; the message says how many and names one.
    """
    found: dict[str, list[str]] = {}
    for name in files.names():
        found.setdefault("/".join(name.split("/")[-3:-1]), []).append(name)
    expected = sorted(vinyals_split(archive))
    for problem in _differences(found, expected):
        raise FslError(
            f"not the {len(expected)} characters x {DRAWINGS} drawings of {archive}: {problem}",
            where=str(files.path),
            hint="remove it to have it downloaded, or put the original there",
        )
    return {character: found[character] for character in expected}


def _differences(found: Mapping[str, list[str]], expected: list[str]) -> Iterator[str]:
    if missing := [character for character in expected if character not in found]:
        yield f"characters missing: {len(missing)}, for example {missing[0]}"
    if unknown := sorted(set(found) - set(expected)):
        yield f"folders unknown: {len(unknown)}, for example {unknown[0] or '(no folder)'}"
    if uneven := [character for character in expected if len(found[character]) != DRAWINGS]:
        first = uneven[0]
        yield f"characters with more or fewer drawings: {len(uneven)}, for example {first} with {len(found[first])}"


def _ink(image: Image.Image, size: int) -> np.ndarray:
    """uint8 ``[size, size]``, ink is 255; converted to greyscale first, since Pillow does not filter 1-bit images."""
    return 255 - np.asarray(image.convert("L").resize((size, size), Image.Resampling.LANCZOS))
