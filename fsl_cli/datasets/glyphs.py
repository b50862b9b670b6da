"""Glyphs: characters of many scripts, drawn from the fonts that ship with matplotlib. Needs no download."""

from __future__ import annotations

import hashlib
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated

from annotated_types import Ge
from PIL import __version__ as pillow_version
from PIL import features

from fsl_cli.datasets import glyph_classes, glyph_drawing
from fsl_cli.datasets.glyph_classes import FACES, SPLITS, font_path
from fsl_cli.datasets.glyph_drawing import drawings
from fsl_cli.datasets.pack import ProgressFactory, pack_folder, pack_key
from fsl_cli.datasets.pack_reading import pack_counts
from fsl_cli.datasets.pack_source import ClassSource, PackSource, from_array
from fsl_cli.datasets.packed_images import PackedImages
from fsl_cli.datasets.status import Status
from fsl_cli.errors import FslError


class Glyphs(PackedImages):
    """1,671 characters (1,296 train, 155 val, 220 test), drawn by several faces, slants, proportions and pens.

    Train: Latin, Greek, Cyrillic, Canadian syllabics, arrows, mathematics, signs. Val: Armenian, Tifinagh, N'Ko, Lao,
    Ogham. Test: Arabic, Hebrew, Georgian. Of characters that look alike only one is a class, so a test class has no
    twin in another split. Classes are named like ``ARABIC LETTER BEH (U+0628)``; 255 = ink. Drawing them takes well under a
    minute.

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
        splits: dict[str, dict[str, ClassSource]] = {split: {} for split in SPLITS}
        for glyph in glyph_classes.glyph_classes():
            drawn = partial(drawings, glyph, self.drawings, self.size, self.seed)
            splits[glyph.split][glyph.name] = from_array(self.drawings, drawn)
        return PackSource(splits, self.image_shape)
