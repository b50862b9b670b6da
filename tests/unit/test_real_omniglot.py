"""The real Omniglot: its published split, and its pixels, decoded and resized without a library."""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from fsl_cli.datasets.omniglot import Omniglot, vinyals_split
from fsl_cli.episodes.class_images import ClassImages

ARCHIVES = ("images_background", "images_evaluation")
SPLITS = ("train", "val", "test")


@pytest.mark.data
def test_split_is_that_of_vinyals(omniglot_dir: Path) -> None:
    published = json.loads((omniglot_dir / "omniglot" / "vinyals_split.json").read_text())
    ours = {f"{archive}/{name}": split for archive in ARCHIVES for name, split in vinyals_split(archive).items()}
    assert ours == {name: split for split, names in published.items() for name in names}


@pytest.fixture(scope="module")
def real(omniglot_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ClassImages]:
    dataset = Omniglot(omniglot_dir, tmp_path_factory.mktemp("cache"), size=28, rotations=False, download=False)
    return {split: dataset.split(split) for split in SPLITS}


@pytest.mark.data
def test_real_classes(real: dict[str, ClassImages]) -> None:
    assert [len(real[split]) for split in SPLITS] == [1028, 172, 423]
    for split, images in real.items():
        assert images.example_shape == (1, 28, 28)
        assert set(images.counts.tolist()) == {20}
        assert set(images.names) == {name for name, where in vinyals_split().items() if where == split}
        ink = images.images.float().mean().item() / 255
        assert 0.05 < ink < 0.15  # mostly paper, and paper is 0
        assert images.images.flatten(1).max(1).values.min() > 100  # every drawing has strokes


@pytest.mark.data
@pytest.mark.parametrize(
    ("split", "archive", "character", "drawing"),
    [
        ("train", "images_background", "Greek/character05", 3),
        ("train", "images_evaluation", "Gurmukhi/character41", 20),
        ("val", "images_background", "Hebrew/character22", 11),
        ("test", "images_evaluation", "Tibetan/character42", 20),
        ("test", "images_evaluation", "Gurmukhi/character42", 1),
    ],
)
def test_real_pixels(
    real: dict[str, ClassImages], omniglot_dir: Path, split: str, archive: str, character: str, drawing: int
) -> None:
    with zipfile.ZipFile(omniglot_dir / "omniglot" / f"{archive}.zip") as zipped:
        prefix = f"{archive}/{character}/"
        (name,) = (name for name in zipped.namelist() if name.startswith(prefix) and name.endswith(f"_{drawing:02d}.png"))
        paper = one_bit_png(zipped.read(name))
    weights = lanczos_weights(len(paper), 28)
    rows = np.clip(255 * paper @ weights.T, 0, 255)  # 8 bits between the two directions, as in any image program
    expected = 255 - np.clip(weights @ rows, 0, 255)
    images = real[split]
    ours = images.images[images.offsets[list(images.names).index(character)] + drawing - 1, 0].numpy()
    assert np.abs(ours - expected).max() < 2  # rounded twice


def one_bit_png(data: bytes) -> np.ndarray:
    """Decode a 1-bit grey PNG without a library (PNG specification, sections 5, 7 and 9): float ``[H, W]``, 0 or 1."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    position, compressed = 8, b""
    while position < len(data):
        length, kind = struct.unpack(">I4s", data[position : position + 8])
        body = data[position + 8 : position + 8 + length]
        if kind == b"IHDR":
            width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", body)
            assert (depth, colour, interlace) == (1, 0, 0)
        if kind == b"IDAT":
            compressed += body
        position += 12 + length
    stride = -(-width // 8)
    lines = np.frombuffer(zlib.decompress(compressed), np.uint8).reshape(height, stride + 1)
    rows = np.zeros((height + 1, stride + 1), np.uint8)  # a row above and a byte to the left are 0
    for y, (kind, *line) in enumerate(lines.tolist(), start=1):
        for x, value in enumerate(line, start=1):
            left, up, corner = int(rows[y, x - 1]), int(rows[y - 1, x]), int(rows[y - 1, x - 1])
            paeth = min((left, up, corner), key=lambda near: abs(left + up - corner - near))
            rows[y, x] = (value + (0, left, up, (left + up) // 2, paeth)[kind]) % 256
    return np.unpackbits(rows[1:, 1:], axis=1)[:, :width].astype(float)


def lanczos_weights(source: int, target: int) -> np.ndarray:
    """float64 ``[target, source]``: a Lanczos window of three lobes, as wide as the pixels that fall together."""
    scale = source / target
    centres = (np.arange(target) + 0.5) * scale
    distance = (np.arange(source) + 0.5 - centres[:, None]) / scale
    weights = np.where(np.abs(distance) < 3, np.sinc(distance) * np.sinc(distance / 3), 0)
    return weights / weights.sum(1, keepdims=True)
