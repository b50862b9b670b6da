"""Drawings of a printed character: another face, slant, proportion, place and pen each time."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from fsl_cli.datasets.glyph_classes import Glyph, printed

FINE = 3  # drawn this many times larger, then averaged down
ROTATION = 10.0  # degrees, either way
SHEAR = 0.12  # horizontal shift per unit of height, either way
STRETCH = 1.12  # width : height changes by up to this factor, either way
EXTENT = (0.66, 0.84)  # longer side of the ink : side of the image
SHIFT = 0.08  # of the side of the image, either way
PEN = (40, 120)  # grey level at which a blurred stroke ends: 128 keeps its width, less makes it bolder


def drawings(glyph: Glyph, count: int, size: int, seed: int) -> np.ndarray:
    """``count`` drawings of a glyph, a pure function of (seed, glyph, count, size).

    Returns:
        uint8 ``[count, 1, size, size]``, 255 = ink; the outermost pixels are free of it.
    """
    random = np.random.default_rng([seed, glyph.code])
    faces = random.permutation(len(glyph.faces))[np.arange(count) % len(glyph.faces)].tolist()
    prints = {face: printed(glyph.code, glyph.faces[face], FINE * size) for face in set(faces)}
    placed = [_placed(prints[face], FINE * size, random) for face in faces]
    blurred = np.stack([np.asarray(image.filter(ImageFilter.BoxBlur(FINE / 2)), np.int16) for image in placed])
    levels = random.integers(*PEN, size=(count, 1, 1), dtype=np.int16)
    penned = np.clip(4 * (blurred - levels) + 128, 0, 255)  # the edge of a stroke is a ramp of 64 grey levels
    averaged = penned.reshape(count, 1, size, FINE, size, FINE).mean((3, 5), dtype=np.float32)
    return averaged.round().astype(np.uint8)


def _placed(print_: Image.Image, side: int, random: np.random.Generator) -> Image.Image:
    """The print rotated, sheared, stretched, scaled and shifted, wholly inside a square of ``side`` pixels."""
    shape = _shape(random)
    extent = np.abs(shape) @ print_.size  # of the ink after rotation and shear, before it is scaled
    scale = random.uniform(*EXTENT) * side / extent.max()
    margin = np.maximum((side - scale * extent) / 2 - 2 * FINE, 0)  # two pixels, so that the blur is not cut off
    shift = random.uniform(-1, 1, 2) * np.minimum(margin, SHIFT * side)

    back = np.linalg.inv(scale * shape)  # Pillow asks where in the print a pixel of the drawing comes from
    offset = np.array(print_.size) / 2 - back @ (side / 2 + shift)
    coefficients = [*back[0].tolist(), offset[0].item(), *back[1].tolist(), offset[1].item()]
    return print_.transform((side, side), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)


def _shape(random: np.random.Generator) -> np.ndarray:
    """float64 ``[2, 2]``: rotation @ shear @ stretch, keeping the area."""
    angle = np.deg2rad(random.uniform(-ROTATION, ROTATION))
    root = STRETCH ** (random.uniform(-1, 1) / 2)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return rotation @ np.array([[root, random.uniform(-SHEAR, SHEAR) / root], [0, 1 / root]])
