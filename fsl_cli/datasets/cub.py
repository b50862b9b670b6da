"""CUB: Caltech-UCSD Birds-200-2011 (Wah et al. 2011), split for few-shot learning by Chen et al. (2019)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from annotated_types import Ge

from fsl_cli.datasets.download import fetch
from fsl_cli.datasets.layout_archive import ARCHIVE, find_archive
from fsl_cli.datasets.layout_folders import find_folders
from fsl_cli.datasets.layout_hdf5 import find_hdf5
from fsl_cli.datasets.layouts import Layout
from fsl_cli.datasets.pack import ProgressFactory
from fsl_cli.datasets.pictures import Fit
from fsl_cli.datasets.published import Published
from fsl_cli.errors import FslError

SOURCE = f"https://data.caltech.edu/records/65de6-vp158/files/{ARCHIVE}"
MD5 = "97eceeb196236b17998738112f37df78"  # as torchmeta has it


class CUB(Published):
    """100, 50 and 50 species, 11,788 pictures of birds.

    Args:
        data_dir: see `Published`.
        cache_dir: see `Published`.
        size: height and width in pixels.
        fit: what becomes of pictures that are not square, see `picture`.
        download: download ``CUB_200_2011.tgz`` (1.1 GB) if nothing is there.
        progress: reports downloading and packing; None: no progress.
        warn: reports pictures that are in two splits; None: no warnings.
    """

    name = "cub"
    folders = ("cub", "cub2002011", "cubirds200")
    finders = (find_hdf5, find_folders, find_archive)
    layouts = (
        "CUB_200_2011/ as released, or CUB_200_2011.tgz; {train,val,test}_data.hdf5 with _labels.json (torchmeta); "
        "or a folder for each class, perhaps in train, val and test"
    )
    total = 11_788
    md5 = MD5

    def __init__(
        self,
        data_dir: Path,
        cache_dir: Path,
        *,
        size: Annotated[int, Ge(8)] = 84,
        fit: Fit = "crop",
        download: bool = True,
        progress: ProgressFactory | None = None,
        warn: Callable[[str], object] | None = None,
    ) -> None:
        super().__init__(data_dir, cache_dir, size=size, fit=fit, progress=progress, warn=warn)
        self.download = download

    def _fetch(self) -> Layout:
        if not self.download:
            raise self._missing(f"dataset.download is off; {self._how_to_get()}")
        try:
            fetch(SOURCE, self._archive, md5=MD5, progress=self.progress)
        except FslError as problem:
            raise self._missing(
                f"{problem.where}: {problem.what}; put into {self._archive.parent}: {self.layouts}"
            ) from problem
        found = self._find()
        assert found is not None
        return found

    def _how_to_get(self) -> str:
        if self.download:
            return f"downloaded at first use: {self._archive} (1.1 GB)"
        return f"put into {self._archive.parent}: {self.layouts}"

    @property
    def _archive(self) -> Path:
        """The file that a download makes."""
        return self.data_dir / self.name / ARCHIVE
