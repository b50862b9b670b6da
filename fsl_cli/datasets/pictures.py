"""Picture files of any common format to uint8 arrays of one size."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from fsl_cli.datasets.image_files import UNDECODABLE

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM")  # decoders of rarer formats are rarely tested
EXTENSIONS = frozenset(
    (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm")
)
MOST_PIXELS = 100_000_000  # a file of a few kilobytes can claim to have billions

Fit = Literal["crop", "pad", "stretch"]


class Undecodable(Exception):
    """A file is not a picture that can be used; the message says why."""


def picture(file: Path | bytes, size: int, channels: Literal[1, 3], fit: Fit = "crop") -> np.ndarray:
    """Decode one file: uint8 ``[C, size, size]``.

    The rotation of a camera's EXIF entry is applied, transparency is shown on white, the upper 8 of 16 bits are taken, and
    of an animation or a file with several pages the first. Resizing is antialiased (Lanczos).

    Args:
        file: its path, or its bytes.
        size: height and width in pixels.
        channels: 1: greyscale; 3: red, green, blue.
        fit: for pictures that are not square: ``crop`` keeps the centre square, ``pad`` adds black margins, ``stretch``
            changes the proportions.

    Raises:
        Undecodable: it cannot be read, is damaged, has more than 100 million pixels, or none of the supported formats.
    """
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise Undecodable(f"{image.width} x {image.height} pixels are too many")
            image.draft("RGB" if channels == 3 else "L", (2 * size, 2 * size))  # JPEG: decodes fewer pixels
            upright = ImageOps.exif_transpose(_eight_bits(image))
            assert upright is not None
        return _array(_fitted(_on_white(upright, channels), size, fit))
    except Image.DecompressionBombError as problem:
        raise Undecodable("too many pixels") from problem
    except Image.UnidentifiedImageError as problem:
        raise Undecodable(f"not a picture ({', '.join(FORMATS)})") from problem
    except UNDECODABLE as problem:
        raise Undecodable(getattr(problem, "strerror", None) or str(problem) or type(problem).__name__) from problem


def resized(pixels: np.ndarray, size: int, fit: Fit = "crop") -> np.ndarray:
    """uint8 ``[3, size, size]`` from uint8 ``[H, W, 3]``, as `picture` resizes; pixels of that size are not changed."""
    return _array(_fitted(Image.fromarray(np.ascontiguousarray(pixels)), size, fit))


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image with 8 bits per channel; of 16 bits the upper 8, which Pillow's own conversion would cut off at 255."""
    if not image.mode.startswith("I"):
        if image.mode == "F":
            raise Undecodable("floating-point pixels, whose range is unknown")
        image.load()
        return image
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise Undecodable("32-bit pixels, whose range is unknown")
    converted = Image.fromarray((values >> 8).astype(np.uint8))
    converted.info = image.info  # EXIF
    return converted


def _on_white(image: Image.Image, channels: Literal[1, 3]) -> Image.Image:
    """The image without transparency, with the channels asked for."""
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("RGB" if channels == 3 else "L")


def _fitted(image: Image.Image, size: int, fit: Fit) -> Image.Image:
    resample = Image.Resampling.LANCZOS
    if fit == "crop":
        return ImageOps.fit(image, (size, size), resample)
    if fit == "pad":
        return ImageOps.pad(image, (size, size), resample)
    return image.resize((size, size), resample)


def _array(image: Image.Image) -> np.ndarray:
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))
