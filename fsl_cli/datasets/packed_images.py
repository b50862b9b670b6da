"""The base class of data sets whose images are decoded once and packed in the cache folder."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path

import numpy as np

from fsl_cli.datasets.dataset import ImageClasses, SplitName
from fsl_cli.datasets.pack import ProgressFactory, packed_counts, packed_split
from fsl_cli.datasets.pack_source import PackSource
from fsl_cli.episodes.class_images import ClassImages


class PackedImages(ImageClasses):
    """A data set of images that are packed once.

    Attributes:
        cache_dir: the cache folder.
        progress: reports packing; None: no progress.
    """

    cache_dir: Path
    progress: ProgressFactory | None

    def split(self, name: SplitName) -> ClassImages:
        """The classes of one split, memory-mapped; the first call finds, checks and packs the images.

        Raises:
            FslError: images are missing, incomplete or unreadable, or a folder is not writable.
        """
        return packed_split(self.cache_dir, self.name, self._key, name, self._source, self.progress)

    def counts(self, name: SplitName) -> np.ndarray:
        """int64 ``[classes]``, images per class of one split; does not read images. Raises the errors of `split`."""
        return packed_counts(self.cache_dir, self.name, self._key, name, self._source, self.progress)

    @property
    @abstractmethod
    def _key(self) -> str:
        """See `pack_key`."""

    @abstractmethod
    def _source(self) -> PackSource:
        """The images; called only if they are not packed yet."""
