"""Pictures of every format and kind of pixels, against arrays that are resized the slow way or not at all."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fsl_cli.datasets.pictures import Undecodable, picture

SIZE = 16
RANDOM = np.random.default_rng(0)
COLOURS = RANDOM.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
GREY = RANDOM.integers(0, 256, (SIZE, SIZE), dtype=np.uint8)


def planes(array: np.ndarray) -> np.ndarray:
    return array.transpose(2, 0, 1)


@pytest.mark.parametrize("extension", ["png", "webp", "tiff", "bmp", "ppm"])
def test_lossless_formats_come_back_exactly(extension: str, tmp_path: Path):
    path = tmp_path / f"Bild äö 图.{extension}"
    Image.fromarray(COLOURS).save(path, **({"lossless": True} if extension == "webp" else {}))
    np.testing.assert_array_equal(picture(path, SIZE, 3), planes(COLOURS))


def test_a_jpeg_is_close_to_its_original(tmp_path: Path):
    smooth = np.fromfunction(lambda y, x, c: 8 * (y + x) // (c + 1), (SIZE, SIZE, 3)).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "x.jpg", quality=95, subsampling=0)
    assert np.abs(picture(tmp_path / "x.jpg", SIZE, 3).astype(int) - planes(smooth)).max() < 12


def test_kinds_of_pixels(tmp_path: Path):
    def read(image: Image.Image, channels: int = 3, name: str = "x.png", **options) -> np.ndarray:
        image.save(tmp_path / name, **options)
        return picture(tmp_path / name, SIZE, channels)  # type: ignore[arg-type]

    grey = np.broadcast_to(GREY, (3, SIZE, SIZE))
    np.testing.assert_array_equal(read(Image.fromarray(GREY)), grey)
    np.testing.assert_array_equal(read(Image.fromarray(GREY), 1), GREY[None])
    np.testing.assert_array_equal(read(Image.fromarray(GREY > 127), 1), np.where(GREY > 127, 255, 0)[None])
    sixteen = Image.fromarray(GREY.astype(np.uint16) << 8 | 77)
    np.testing.assert_array_equal(read(sixteen), grey)
    np.testing.assert_array_equal(read(sixteen, name="x.tiff"), grey)
    paletted = Image.fromarray(GREY).convert("P", palette=Image.Palette.ADAPTIVE, colors=256)
    np.testing.assert_array_equal(read(paletted), np.asarray(paletted.convert("RGB")).transpose(2, 0, 1))
    cmyk = Image.fromarray(COLOURS).convert("CMYK")
    np.testing.assert_array_equal(read(cmyk, name="x.tif"), planes(np.asarray(cmyk.convert("RGB"))))


def test_transparency_is_shown_on_white(tmp_path: Path):
    alpha = RANDOM.integers(0, 256, (SIZE, SIZE, 1), dtype=np.uint8)
    Image.fromarray(np.concatenate([COLOURS, alpha], -1)).save(tmp_path / "x.png")
    blended = (COLOURS * (alpha / 255.0) + 255 * (1 - alpha / 255.0)).transpose(2, 0, 1)
    assert np.abs(picture(tmp_path / "x.png", SIZE, 3) - blended).max() <= 1


def test_the_camera_s_rotation_is_applied(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: rotate by 90 degrees clockwise
    Image.fromarray(COLOURS).save(tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(picture(tmp_path / "x.png", SIZE, 3), planes(np.rot90(COLOURS, -1)))


def test_only_the_first_frame_counts(tmp_path: Path):
    frames = [Image.fromarray(np.full((SIZE, SIZE), value, np.uint8)) for value in (10, 200)]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert (picture(tmp_path / "x.gif", SIZE, 1) == 10).all()


def test_pictures_that_are_not_square(tmp_path: Path):
    wide = np.zeros((SIZE, 3 * SIZE), np.uint8)
    wide[:, SIZE : 2 * SIZE] = GREY
    Image.fromarray(wide).save(tmp_path / "x.png")
    np.testing.assert_array_equal(picture(tmp_path / "x.png", SIZE, 1, "crop")[0], GREY)
    Image.fromarray(np.full((SIZE, 2 * SIZE), 255, np.uint8)).save(tmp_path / "white.png")
    padded = picture(tmp_path / "white.png", SIZE, 1, "pad")[0]
    np.testing.assert_array_equal(padded[:, 0], np.where((np.arange(SIZE) >= 4) & (np.arange(SIZE) < 12), 255, 0))
    assert (picture(tmp_path / "white.png", SIZE, 1, "stretch") == 255).all()


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a picture"),
        (b"hello", "not a picture"),
        (png_that_claims(30_000, 30_000), "too many"),
        (png_that_claims(11_000, 11_000), "too many"),
        (png_that_claims(20, 20), "truncated|corrupt|broken|not enough"),
    ],
)
def test_what_cannot_be_used_is_said(data: bytes, reason: str, tmp_path: Path):
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(Undecodable, match=reason):
        picture(tmp_path / "x.png", SIZE, 3)


def test_unknown_ranges_are_refused(tmp_path: Path):
    Image.fromarray(GREY.astype(np.float32)).save(tmp_path / "x.tiff")
    with pytest.raises(Undecodable, match="floating-point"):
        picture(tmp_path / "x.tiff", SIZE, 3)
