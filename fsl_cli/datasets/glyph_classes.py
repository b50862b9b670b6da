"""Which characters are classes of the glyphs data set: by script, drawn by several faces, and told apart by eye."""

from __future__ import annotations

import functools
import itertools
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from fontTools.ttLib import TTFont  # type: ignore[import-untyped]
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SPLITS = ("train", "val", "test")

# Unicode blocks of each group of scripts. Scripts that share letters (Greek and Cyrillic with Latin; Lisu is Latin
# turned over, Old Italic its ancestor) are in one split. Left out are blocks whose characters are the same picture
# with other details: box drawing, Braille, hexagrams, dominoes, cards, faces.
SCRIPTS: dict[str, tuple[str, tuple[tuple[int, int], ...]]] = {
    "Latin": ("train", ((0x21, 0x2AF), (0x1E00, 0x1EFF), (0x20A0, 0x218F), (0x2C60, 0x2C7F), (0xA720, 0xA7FF))),
    "Greek and Coptic": ("train", ((0x370, 0x3FF), (0x1F00, 0x1FFF), (0x2C80, 0x2CFF))),
    "Cyrillic": ("train", ((0x400, 0x52F), (0xA640, 0xA69F))),
    "Lisu": ("train", ((0xA4D0, 0xA4FF),)),
    "Old Italic": ("train", ((0x10300, 0x1032F),)),
    "Canadian syllabics": ("train", ((0x1400, 0x167F),)),
    "Arrows": ("train", ((0x2190, 0x21FF), (0x27F0, 0x27FF), (0x2900, 0x297F), (0x2B00, 0x2BFF))),
    "Mathematics": ("train", ((0x2200, 0x22FF), (0x27C0, 0x27EF), (0x2980, 0x2AFF))),
    "Signs": ("train", ((0x2300, 0x23FF), (0x25A0, 0x2767), (0x2794, 0x27BF))),
    "Armenian": ("val", ((0x530, 0x58F),)),
    "Tifinagh": ("val", ((0x2D30, 0x2D7F),)),
    "N'Ko": ("val", ((0x7C0, 0x7FF),)),
    "Lao": ("val", ((0xE80, 0xEFF),)),
    "Ogham": ("val", ((0x1680, 0x169F),)),
    "Arabic": ("test", ((0x620, 0x6FF),)),
    "Hebrew": ("test", ((0x5D0, 0x5F4), (0xFB2A, 0xFB4F))),
    "Georgian": ("test", ((0x10A0, 0x10FF), (0x2D00, 0x2D2F))),
}

# matplotlib's other fonts are left out: LastResort claims every character, Computer Modern and the STIX sizes map
# characters to private places.
FACES = tuple(
    f"DejaVu{family}.ttf"
    for family in (
        *("Sans", "Sans-Bold", "Sans-Oblique", "Sans-BoldOblique"),
        *("Serif", "Serif-Bold", "Serif-Italic", "Serif-BoldItalic"),
        *("SansMono", "SansMono-Bold", "SansMono-Oblique", "SansMono-BoldOblique"),
    )
)
UPRIGHT = ("DejaVuSans.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf")

FEWEST_FACES = 2
LONGEST = 3.0  # longer side : shorter side
THINNEST = 0.4  # share of the ink that is left when every stroke loses a pixel on both sides, at 64 pixels
ALIKE_WITHIN, ALIKE_ACROSS = 0.965, 0.915  # likeness of two canonical pictures, in one split, between two
CANONICAL = 32  # pixels


@dataclass(frozen=True)
class Glyph:
    """A character that can be a class: its code point, its split, and the faces that draw it."""

    code: int
    split: str
    faces: tuple[str, ...]

    @property
    def name(self) -> str:
        """For example ``LATIN SMALL LETTER A (U+0061)``."""
        return f"{unicodedata.name(chr(self.code))} (U+{self.code:04X})"


def glyph_classes() -> list[Glyph]:
    """The classes of all splits, each split in order of code point.

    Of characters that look alike one stays: in the test split before val, in val before train, then by code point.
    So no test class has a twin elsewhere.
    """
    glyphs = sorted(candidates(), key=lambda glyph: (-SPLITS.index(glyph.split), glyph.code))
    pictures = [[canonical(glyph, face) for face in UPRIGHT] for glyph in glyphs]
    return [glyphs[i] for i in distinct(np.array(pictures), [glyph.split for glyph in glyphs])]


def candidates() -> list[Glyph]:
    """Letters, digits and symbols of all scripts that enough faces draw."""
    found = []
    for split, blocks in SCRIPTS.values():
        for code in (code for first, last in blocks for code in range(first, last + 1)):
            faces = tuple(face for face in FACES if code in coverage(face)) if _is_picture(code) else ()
            glyph = Glyph(code, split, faces)
            if len(faces) >= FEWEST_FACES and set(faces) & set(UPRIGHT) and _is_clear(glyph):
                found.append(glyph)
    return found


def distinct(pictures: np.ndarray, splits: Sequence[str]) -> list[int]:
    """Indices of the pictures to keep, so that no two of them look alike; earlier ones win.

    Args:
        pictures: uint8 ``[n, faces, side, side]``, 0 everywhere where a face has none; ``side`` is even.
        splits: n names; pictures of different splits have to differ more.

    Returns:
        Indices in ascending order. A picture that is blank in all faces is not kept.
    """
    names = np.array(splits)
    limit = np.where(names[:, None] == names[None, :], ALIKE_WITHIN, ALIKE_ACROSS)
    clash = likeness(pictures) > limit
    kept: list[int] = []
    for i in np.flatnonzero(pictures.any(axis=(1, 2, 3))):
        if not clash[i, kept].any():
            kept.append(int(i))
    return kept


def likeness(pictures: np.ndarray) -> np.ndarray:
    """float32 ``[n, n]``: correlation of the pictures in the face, and at the shift by a pixel, where it is highest."""
    still = _standardised(pictures)
    alike = np.full((len(pictures), len(pictures)), -1, dtype=np.float32)
    for shift in itertools.product((-1, 0, 1), repeat=2):
        moved = _standardised(np.roll(pictures, shift, axis=(2, 3)))
        for face in range(pictures.shape[1]):
            np.maximum(alike, moved[:, face] @ still[:, face].T, out=alike)
    return np.maximum(alike, alike.T)


def _standardised(pictures: np.ndarray) -> np.ndarray:
    """float32 ``[n, faces, pixels]``, halved in size (they are blurred), mean 0 and length 1; blank ones stay 0."""
    n, faces, side, _ = pictures.shape
    halved = pictures.reshape(n, faces, side // 2, 2, side // 2, 2).mean((3, 5), dtype=np.float32).reshape(n, faces, -1)
    halved -= halved.mean(-1, keepdims=True)
    return halved / np.maximum(np.linalg.norm(halved, axis=-1, keepdims=True), 1e-9)


def canonical(glyph: Glyph, face: str) -> np.ndarray:
    """uint8 ``[32, 32]``: the glyph upright, centred, its longer side 22 pixels, blurred; 0 if the face has none.

    The blur makes two pictures alike whose strokes differ in weight or lie next to each other.
    """
    canvas = Image.new("L", (CANONICAL, CANONICAL))
    if face in glyph.faces:
        picture = _fitted(printed(glyph.code, face, 96), CANONICAL - 10)
        canvas.paste(picture, ((CANONICAL - picture.width) // 2, (CANONICAL - picture.height) // 2))
    return np.asarray(canvas.filter(ImageFilter.GaussianBlur(1.5)))


def _fitted(picture: Image.Image, longer: int) -> Image.Image:
    scale = longer / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BOX)


def printed(code: int, face: str, points: int) -> Image.Image:
    """Grey image, ink 255, cropped to the ink, of a character printed at ``points`` pixels per em; 1x1 when blank."""
    font = _font(face, points)
    left, top, right, bottom = (int(edge) for edge in font.getbbox(chr(code)))
    image = Image.new("L", (max(1, right - left), max(1, bottom - top)))
    ImageDraw.Draw(image).text((-left, -top), chr(code), fill=255, font=font)
    return image.crop(image.getbbox() or (0, 0, 1, 1))


@functools.cache
def coverage(face: str) -> frozenset[int]:
    """The code points for which the face has a glyph of its own."""
    with TTFont(font_path(face), lazy=True) as font:
        return frozenset(code for code, glyph in font.getBestCmap().items() if glyph != ".notdef")


def font_path(face: str) -> Path:
    """Where matplotlib keeps the font file."""
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / face


@functools.cache
def _font(face: str, points: int) -> ImageFont.FreeTypeFont:
    # The basic layout draws a character as it is; the other one, where installed, would join Arabic letters.
    return ImageFont.truetype(str(font_path(face)), points, layout_engine=ImageFont.Layout.BASIC)


def _is_picture(code: int) -> bool:
    """Whether it is a letter, digit or symbol in its own right, or a letter with one mark.

    Not one: a ligature, a fraction, a letter under two marks, another script's letter as a symbol (``ALEF SYMBOL``).
    """
    character = chr(code)
    category = unicodedata.category(character)
    parts = unicodedata.normalize("NFKD", character)
    whole = parts == character or (len(parts) == 2 and unicodedata.combining(parts[1]) > 0)
    return whole and category[0] in "LNS" and category not in ("Lm", "Sk", "Nl", "No")


def _is_clear(glyph: Glyph) -> bool:
    """Whether it can be read at 28 pixels: no bar, no row of small letters, not drawn in hairlines."""
    face = next(face for face in UPRIGHT if face in glyph.faces)
    picture = _fitted(printed(glyph.code, face, 96), 64)
    if max(picture.size) > LONGEST * min(picture.size):
        return False
    core = np.asarray(picture.filter(ImageFilter.MinFilter(3)))
    return int(core.sum(dtype=np.int64)) > THINNEST * int(np.asarray(picture).sum(dtype=np.int64))
