"""CIFAR-FS and FC100: the 60,000 pictures of CIFAR-100 (Krizhevsky 2009), whose 100 classes are split for few-shot learning."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from importlib.resources import files as package_files
from pathlib import Path
from typing import Literal

import numpy as np

from fsl_cli.datasets.cifar100_files import Found, find
from fsl_cli.datasets.download import fetch
from fsl_cli.datasets.pack import ProgressFactory, pack_folder, pack_key
from fsl_cli.datasets.pack_source import PackSource, from_array
from fsl_cli.datasets.packed_images import PackedImages
from fsl_cli.datasets.review import Read
from fsl_cli.datasets.status import Status
from fsl_cli.errors import FslError

SOURCE = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
MD5 = "eb9058c3a382ffc7106e4002c42a8d85"  # as published by torchvision
PICTURES = 600


class Cifar100(PackedImages):
    """CIFAR-FS (Bertinetto et al. 2019) or FC100 (Oreshkin et al. 2018).

    Reads CIFAR-100 in any layout that `find` knows, from ``data_dir/cifar_fs``, ``cifar100``, ``fc100`` in it or ``data_dir``
    itself, and downloads it if it is in none of them. In every layout the classes and pictures have the same order, so
    that the episodes are the same.

    Args:
        data_dir: folder of existing and downloaded data.
        cache_dir: cache folder for the packed pictures, one pack for each class split.
        split: ``cifar_fs``: 64, 16 and 20 classes; ``fc100``: 60, 20 and 20, whole superclasses, which is harder.
        download: download CIFAR-100 (161 MiB) if it is missing.
        progress: reports downloading and packing; None: no progress.
    """

    def __init__(
        self,
        data_dir: Path,
        cache_dir: Path,
        *,
        split: Literal["cifar_fs", "fc100"] = "cifar_fs",
        download: bool = True,
        progress: ProgressFactory | None = None,
    ) -> None:
        self.data_dir, self.cache_dir = Path(data_dir), Path(cache_dir)
        self.name, self.download, self.progress = split, download, progress

    def status(self) -> Status:
        """CIFAR-100 in whatever layout; the number of classes is known without it."""
        counts = {split: np.full(len(names), PICTURES) for split, names in class_split(self.name).items()}
        found = find(self._places)
        if found is None:
            get = (
                f"downloaded at first use: {self._archive}"
                if self.download
                else f"put {self._archive.name} into {self.data_dir}"
            )
            return Status(missing=f"{get} (169 MB)", counts=counts)
        published = {found.path: MD5} if found.path.name == self._archive.name else {}
        return Status((found.path,), None, pack_folder(self.cache_dir, self.name, self._key), counts, published)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of every picture."""
        return 3, 32, 32

    @cached_property
    def _key(self) -> str:
        return pack_key(content=self._files.fingerprint(), split=class_split(self.name))

    @property
    def _places(self) -> list[Path]:
        return [*(self.data_dir / name for name in ("cifar_fs", "cifar100", "fc100")), self.data_dir]

    @property
    def _archive(self) -> Path:
        """The file that a download makes."""
        return self._places[0] / SOURCE.rpartition("/")[2]

    @cached_property
    def _files(self) -> Found:
        return find(self._places) or self._fetch()

    def _fetch(self) -> Found:
        reason = "dataset.download is off"
        try:
            if self.download:
                fetch(SOURCE, self._archive, md5=MD5, progress=self.progress)
                found = find(self._places)
                assert found is not None
                return found
        except FslError as problem:
            reason = f"{problem.where}: {problem.what}"
        raise FslError(
            f"neither cifar100.zip, cifar100/data nor cifar-100-python found; {reason}",
            where=", ".join(str(place) for place in self._places),
            hint="set data_dir=... or FSL_DATA_DIR to the folder that contains one of them; dataset=glyphs needs no data",
        )

    def examples(self) -> Iterator[Read]:
        """Every picture as the files have it. Raises `FslError` at the first that cannot be decoded."""
        read = self._files.reader()
        for split, names in class_split(self.name).items():
            for label in names:
                for number, content in enumerate(read(label), start=1):
                    yield Read(split, label, f"{self._files.path}: {label} number {number}", content)

    def _source(self) -> PackSource:
        read = self._files.reader()
        splits = {
            split: {name: from_array(PICTURES, partial(self._sorted, read, name)) for name in names}
            for split, names in class_split(self.name).items()
        }
        return PackSource(splits, self.image_shape)

    def _sorted(self, read: Callable[[str], np.ndarray], name: str) -> np.ndarray:
        """The pictures of a class in the order of their hashes, which is the same in every layout."""
        pictures = read(name)
        if pictures.shape != (PICTURES, *self.image_shape):
            what = f"class {name} has {len(pictures)} pictures, not {PICTURES}"
            raise FslError(what, where=str(self._files.path), hint="put the whole of CIFAR-100 there")
        return pictures[sorted(range(PICTURES), key=lambda i: hashlib.sha256(pictures[i].tobytes()).digest())]


def class_split(name: str) -> dict[str, list[str]]:
    """The sorted class names of train, val and test: ``cifar_fs`` or ``fc100``."""
    text = (package_files("fsl_cli.datasets") / "cifar100_splits.txt").read_text(encoding="utf-8")
    lines = [line.split() for line in text.splitlines() if not line.startswith("#")]
    return {split: classes for data_set, split, *classes in lines if data_set == name}
