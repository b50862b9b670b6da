"""Glyphs: enough distinguishable classes, no lookalikes of test classes in other splits, reproducible everywhere."""

from __future__ import annotations

import functools
import hashlib
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from fsl_cli.datasets import glyph_classes, glyphs
from fsl_cli.datasets.glyph_classes import UPRIGHT, Glyph, coverage, distinct, font_path, likeness
from fsl_cli.datasets.glyph_drawing import drawings
from fsl_cli.datasets.glyphs import Glyphs
from fsl_cli.episodes.class_images import ClassImages
from fsl_cli.errors import FslError

SPLITS: tuple[Literal["train", "val", "test"], ...] = ("train", "val", "test")


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ClassImages]:
    """The default data set, in the cache of the tests: its key depends on the code that draws, so it is never stale."""
    cache = Path(os.environ.get("FSL_CACHE_DIR") or tmp_path_factory.mktemp("cache"))
    return {split: Glyphs(cache).split(split) for split in SPLITS}


def code_of(name: str) -> int:
    """``LATIN SMALL LETTER A (U+0061)`` -> 0x61."""
    return int(name[:-1].rpartition("U+")[2], 16)


def codes_of(images: ClassImages) -> list[int]:
    return [code_of(name) for name in images.names]


# The classes.


def test_enough_classes_and_images(packed: dict[str, ClassImages]) -> None:
    # The same on Python 3.10 to 3.13, Pillow 10 to 13, matplotlib 3.8 to 3.11.
    assert {split: len(images) for split, images in packed.items()} == {"train": 1296, "val": 155, "test": 220}
    for images in packed.values():
        assert images.example_shape == (1, 28, 28)
        assert set(images.counts.tolist()) == {20}


def test_names_are_unicode_names(packed: dict[str, ClassImages]) -> None:
    names = [name for images in packed.values() for name in images.names]
    assert len(set(names)) == len(names)
    for name in names:
        assert unicodedata.name(chr(code_of(name))) == name.rpartition(" (")[0]


def test_classes_are_the_same_everywhere(packed: dict[str, ClassImages]) -> None:
    # Python 3.10 to 3.13, Pillow 10 to 13 and matplotlib 3.8 to 3.11 agree; as printed by:
    # python -c "from fsl_cli.datasets.glyph_classes import *; import hashlib
    # print(hashlib.sha256(' '.join(f'{g.split}{g.code}' for g in glyph_classes()).encode()).hexdigest()[:16])"
    listed = " ".join(f"{split}{code}" for split in reversed(SPLITS) for code in codes_of(packed[split]))
    assert hashlib.sha256(listed.encode()).hexdigest()[:16] == "59d24ad9c577bba3"


def test_scripts_are_in_one_split(packed: dict[str, ClassImages]) -> None:
    only_in = {
        "train": ("LATIN", "GREEK", "CYRILLIC", "COPTIC", "CANADIAN SYLLABICS", "LISU", "OLD ITALIC"),
        "val": ("ARMENIAN", "TIFINAGH", "NKO", "LAO", "OGHAM"),
        "test": ("ARABIC", "HEBREW", "GEORGIAN", "EXTENDED ARABIC"),
    }
    for split, images in packed.items():
        for home, scripts in only_in.items():
            found = {script for script in scripts if any(name.startswith(script) for name in images.names)}
            assert found == (set(scripts) if home == split else set())
        if split != "train":  # and nothing but these scripts
            assert all(name.startswith(only_in[split]) for name in images.names)


@pytest.mark.parametrize(
    "twins",
    ["AΑА", "BΒВ", "oοоOΟОՕⵔ○◯", "ΛᐱɅ", "+ᐩⵜ✚", "VvⴸѴᐯ∨", "ΠП∏", "אℵ", "Θϴⴱ⊖", "dԁᑯ", "SЅѕՏ", "■◼█٠"],
)
def test_at_most_one_of_a_family_of_twins_is_a_class(packed: dict[str, ClassImages], twins: str) -> None:
    codes = {code for images in packed.values() for code in codes_of(images)}
    assert len(codes & {ord(character) for character in twins}) <= 1


def test_no_test_class_has_a_twin_in_another_split(packed: dict[str, ClassImages]) -> None:
    codes = {split: codes_of(images) for split, images in packed.items()}
    for face in UPRIGHT:
        pictures = {split: outlines(codes[split], face) for split in SPLITS}
        for left, right in (("train", "test"), ("val", "test"), ("train", "val")):
            assert (pictures[left] @ pictures[right].T).max() < 0.91
        assert all(len(pictures[split]) == len(codes[split]) for split in SPLITS)


def test_the_twin_test_detects_twins() -> None:
    latin, twins = outlines([0x41], UPRIGHT[0]), outlines([0x391, 0x410, 0x42], UPRIGHT[0])
    np.testing.assert_array_equal((latin @ twins.T > 0.99)[0], [True, True, False])


def outlines(codes: Sequence[int], face: str) -> np.ndarray:
    """Pictures drawn from the font's outlines, without FreeType's rasteriser and the package's code.

    Returns:
        float64 ``[n, pixels]``, mean 0 and length 1; zero for characters that the face does not have.
    """
    return np.array([outline(code, face) for code in codes])


@functools.cache
def outline(code: int, face: str) -> np.ndarray:
    side, inner = 96, 76
    canvas = Image.new("1", (side, side))
    if code not in coverage(face):
        return np.zeros((side // 3) ** 2)
    path = TextPath((0, 0), chr(code), size=100, prop=FontProperties(fname=str(font_path(face))))
    box = path.get_extents()
    scale = inner / max(box.width, box.height)
    for polygon in path.to_polygons():
        points = (np.asarray(polygon) - (box.p0 + box.p1) / 2) * (scale, -scale) + side / 2
        layer = Image.new("1", (side, side))
        ImageDraw.Draw(layer).polygon([(x, y) for x, y in points.tolist()], fill=1)
        canvas = ImageChops.logical_xor(canvas, layer)
    grey = canvas.convert("L").filter(ImageFilter.GaussianBlur(side / 28)).reduce(3)
    picture = np.asarray(grey, dtype=float).ravel()
    picture -= picture.mean()
    return picture / np.linalg.norm(picture)


def square(left: int, top: int, bits: int = 10) -> np.ndarray:
    """uint8 ``[1, 32, 32]``: a square of noise with its corner at (left, top), blank around it."""
    picture = np.zeros((1, 32, 32), np.uint8)
    noise = np.random.default_rng(bits).integers(0, 256, (8, 8)).astype(np.uint8)
    picture[0, top : top + 16, left : left + 16] = noise.repeat(2, 0).repeat(2, 1)
    return picture


def test_distinct_keeps_the_first_of_those_that_look_alike() -> None:
    one, other, blank = square(8, 8, 0), square(8, 8, 1), np.zeros((1, 32, 32), np.uint8)
    pictures = np.stack([one, blank, one, other, square(9, 7, 0)])  # the last is the first, shifted by a pixel
    assert distinct(pictures, ["test"] * 5) == [0, 3]


def test_likeness_is_the_correlation_where_it_is_highest() -> None:
    pictures = np.stack([square(8, 8, 0), square(8, 8, 1), square(9, 8, 0)])
    halves = pictures.reshape(3, 16, 2, 16, 2).mean((2, 4)).reshape(3, -1)
    unshifted = np.corrcoef(halves)
    found = likeness(pictures)
    np.testing.assert_allclose(np.diag(found), 1, atol=1e-5)
    assert found[0, 2] == pytest.approx(1, abs=1e-5)
    assert unshifted[0, 2] < 0.95
    assert found[0, 1] >= unshifted[0, 1]
    np.testing.assert_array_equal(found, found.T)


def test_pictures_of_different_splits_have_to_differ_more() -> None:
    one = square(8, 8, 0)
    mixtures = [(share * square(8, 8, 1) + (1 - share) * one).astype(np.uint8) for share in np.linspace(0, 1, 100)]
    near = next(mixed for mixed in mixtures if 0.93 < likeness(np.stack([one, mixed]))[0, 1] < 0.95)
    assert distinct(np.stack([one, near]), ["train", "train"]) == [0, 1]
    assert distinct(np.stack([one, near]), ["test", "train"]) == [0]


def test_twins_in_any_face_are_twins() -> None:
    one, two, three = (square(8, 8, bits)[0] for bits in range(3))
    none = np.zeros_like(one)
    pictures = np.array([[one, none], [two, three], [none, three], [one, two]])
    assert distinct(pictures, ["train"] * 4) == [0, 1]


# The drawings.


def test_no_drawing_is_blank_full_or_clipped(packed: dict[str, ClassImages]) -> None:
    for images in packed.values():
        pixels = images.images.numpy()[:, 0]
        assert pixels.max((1, 2)).min() > 128
        assert (pixels > 128).mean((1, 2)).min() > 0.005
        assert (pixels > 128).mean((1, 2)).max() < 0.8
        border = np.concatenate([pixels[:, [0, -1]].reshape(-1), pixels[:, :, [0, -1]].reshape(-1)])
        assert border.max() == 0


def test_no_class_is_the_missing_character_box() -> None:
    missing = {face: glyph_classes.printed(0x10FFFF, face, 96) for face in UPRIGHT}
    for glyph in glyph_classes.candidates():
        for face in set(glyph.faces) & set(UPRIGHT):
            assert glyph_classes.printed(glyph.code, face, 96) != missing[face], glyph.name


def test_drawings_of_a_class_differ_and_resemble(packed: dict[str, ClassImages]) -> None:
    for images in packed.values():
        pixels = images.images.numpy().reshape(len(images), 20, -1)
        assert len(np.unique(pixels.reshape(-1, 28 * 28), axis=0)) == len(images) * 20
        first, second = (pixels[:, drawing].astype(np.float32) / 255 for drawing in (0, 1))
        distance = (first**2).sum(1)[:, None] + (second**2).sum(1) - 2 * first @ second.T
        nearest = distance.argmin(1) == np.arange(len(images))
        assert nearest.mean() > 30 / len(images)  # thirty times as often as by chance, without learning anything


def test_every_face_takes_part() -> None:
    glyph = Glyph(ord("R"), "train", glyph_classes.FACES)
    one_face = [Glyph(ord("R"), "train", (face,)) for face in glyph.faces]
    straight = {drawings(single, 1, 28, 0).tobytes() for single in one_face}
    assert len(straight) == len(glyph.faces)  # the same seed, so only the face can make them differ


def test_drawings_are_a_pure_function() -> None:
    glyph = Glyph(ord("ж"), "train", glyph_classes.FACES)
    again = drawings(glyph, 6, 28, 3)
    np.testing.assert_array_equal(drawings(glyph, 6, 28, 3), again)
    assert (drawings(glyph, 6, 28, 4) != again).any()
    assert drawings(glyph, 6, 40, 3).shape == (6, 1, 40, 40)


def test_drawings_are_the_same_everywhere() -> None:
    # The same for FreeType 2.13.2 to 2.14.3 and Pillow 10 to 13, as computed here.
    pixels = drawings(Glyph(ord("ж"), "train", UPRIGHT), 6, 28, 3)
    assert hashlib.sha256(pixels.tobytes()).hexdigest()[:16] == "bf34be14f5b43b3a"


def test_counts_and_shape_without_reading_images(packed: dict[str, ClassImages], tmp_path: Path) -> None:
    dataset = Glyphs(Path(os.environ.get("FSL_CACHE_DIR") or tmp_path))
    for split in SPLITS:
        np.testing.assert_array_equal(dataset.counts(split), packed[split].counts)
        assert dataset.image_shape == packed[split].example_shape


def test_pack_holds_the_drawings_of_its_classes(packed: dict[str, ClassImages]) -> None:
    for split, images in packed.items():
        for index in range(0, len(images), 40):
            code = code_of(images.names[index])
            faces = tuple(face for face in glyph_classes.FACES if code in coverage(face))
            first = images.offsets[index]
            np.testing.assert_array_equal(images.images[first : first + 20], drawings(Glyph(code, split, faces), 20, 28, 0))


def test_options_make_another_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Path("cache")
    options = [Glyphs(here), Glyphs(here, size=32), Glyphs(here, seed=1), Glyphs(here, drawings=10)]
    keys = [dataset._key for dataset in options]
    monkeypatch.setattr(glyphs, "pillow_version", "0.0")
    assert len({*keys, Glyphs(here)._key}) == 5


def test_missing_font_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glyphs, "font_path", lambda face: tmp_path / face)
    with pytest.raises(FslError, match="matplotlib came without this font") as caught:
        Glyphs(tmp_path).split("train")
    assert str(tmp_path / "DejaVuSans.ttf") in str(caught.value)
