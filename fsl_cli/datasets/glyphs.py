"""Glyphs: characters of many scripts, drawn from the fonts that ship with matplotlib. Needs no download."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Ge
from PIL import __version__ as pillow_version
from PIL import features

from fsl_cli.datasets import glyph_classes, glyph_drawing
from fsl_cli.datasets.dataset import ImageClasses, SplitName
from fsl_cli.datasets.glyph_classes import FACES, SPLITS, Glyph, font_path
from fsl_cli.datasets.glyph_drawing import drawings
from fsl_cli.datasets.pack import PackSource, ProgressFactory, pack_counts, pack_folder, pack_key, packed_counts, packed_split
from fsl_cli.datasets.status import Status
from fsl_cli.episodes.class_images import ClassImages
from fsl_cli.errors import FslError


class Glyphs(ImageClasses):
    """1,671 characters (1,296 train, 155 val, 220 test), drawn by several faces, slants, proportions and pens.

    Train: Latin, Greek, Cyrillic, Canadian syllabics, arrows, mathematics, signs. Val: Armenian, Tifinagh, N'Ko, Lao,
    Ogham. Test: Arabic, Hebrew, Georgian. Of characters that look alike only one is a class, so a test class has no
    twin in another split.

    Args:
        cache_dir: where the drawings are packed, once per combination of options.
        size: height and width in pixels.
        seed: of the drawings; the classes do not depend on it.
        drawings: images per class.
        progress: told about the packing; None is silent.
    """

    name = "glyphs"

    def __init__(
        self,
        cache_dir: Path,
        *,
        size: Annotated[int, Ge(16)] = 28,
        seed: Annotated[int, Ge(0)] = 0,
        drawings: Annotated[int, Ge(2)] = 20,
        progress: ProgressFactory | None = None,
    ) -> None:
        self.cache_dir = Path(cache_dir)
        self.size, self.seed, self.drawings, self.progress = size, seed, drawings, progress

    def split(self, name: SplitName) -> ClassImages:
        """The classes of one split, named like ``ARABIC LETTER BEH (U+0628)``; memory-mapped, 255 = ink.

        The first call draws and packs all splits, which takes well under a minute.

        Raises:
            FslError: matplotlib came without its fonts, or the cache folder cannot be written.
        """
        return packed_split(self.cache_dir, self.name, self._key, name, self._source, self.progress)

    def counts(self, name: SplitName) -> np.ndarray:
        """int64 ``[classes]``, images per class of one split, without reading its images. Raises what `split` raises."""
        return packed_counts(self.cache_dir, self.name, self._key, name, self._source, self.progress)

    def status(self) -> Status:
        """It needs no files but matplotlib's fonts."""
        pack = pack_folder(self.cache_dir, self.name, self._key)
        return Status(pack=pack, counts=pack_counts(pack))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of every image."""
        return 1, self.size, self.size

    @cached_property
    def _key(self) -> str:
        """Of everything that decides a pixel: the fonts, what rasters them, how they are drawn, and the options."""
        digest = hashlib.sha256()
        for path in [font_path(face) for face in FACES]:
            if not path.is_file():
                raise FslError(
                    "matplotlib came without this font", where=str(path), hint="install matplotlib with pip, or use uv"
                )
            digest.update(path.read_bytes())
        for code in (glyph_classes.__file__, glyph_drawing.__file__, __file__):
            digest.update(Path(code).read_bytes())
        rasteriser = f"Pillow {pillow_version}, FreeType {features.version('freetype2')}"
        options = {"size": self.size, "seed": self.seed, "drawings": self.drawings}
        return pack_key(content=digest.hexdigest(), rasteriser=rasteriser, **options)

    def _source(self) -> PackSource:
        classes = sorted(glyph_classes.glyph_classes(), key=lambda glyph: SPLITS.index(glyph.split))
        return PackSource(
            splits={split: {glyph.name: self.drawings for glyph in classes if glyph.split == split} for split in SPLITS},
            image_shape=self.image_shape,
            images=self._drawn(classes),
        )

    def _drawn(self, classes: list[Glyph]) -> Iterator[np.ndarray]:
        for glyph in classes:
            yield drawings(glyph, self.drawings, self.size, self.seed)
