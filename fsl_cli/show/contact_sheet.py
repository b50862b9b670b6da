"""Contact sheets: rows of images with a label each; and a map of vectors in two dimensions."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

import numpy as np

from fsl_cli.errors import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 100
_TILE = 64  # pixels that an image is enlarged to, about
_GAP = 4  # pixels between images
_BETWEEN = 20  # pixels between groups
_LABEL = 40  # characters of a label at most
_HEAD = 30  # pixels of the title, and again of the names of groups
_SMALL, _LARGE = 8, 9  # points of letters


@dataclass(frozen=True)
class Row:
    """One row of a sheet, or the points of one class in a map.

    Attributes:
        label: shown at the left.
        groups: examples ``[n, C, H, W]`` or ``[n, D]``: uint8, or float where images are in 0..1.
    """

    label: str
    groups: Sequence[np.ndarray]


def draw_sheet(rows: Sequence[Row], title: str, file: IO[bytes], groups: Sequence[str] = ("",)) -> None:
    """Draw images as they are, pixel 1 or 255 white, small ones enlarged without smoothing.

    Args:
        rows: with images of one shape.
        title: of the picture.
        file: receives a PNG.
        groups: names of the groups that every row has, for example support and queries.
    """
    height, width = rows[0].groups[0].shape[-2:]
    factor = max(1, round(_TILE / max(height, width)))
    high, wide = factor * height + _GAP, factor * width + _GAP
    columns = [max(len(row.groups[k]) for row in rows) for k in range(len(groups))]
    labels = [_short(row.label) for row in rows]
    left = max(_width(label, _SMALL) for label in labels) + 3 * _GAP
    starts = [left + sum(columns[:k]) * wide + k * _BETWEEN for k in range(len(columns))]
    across = max(starts[-1] + columns[-1] * wide, _width(title, _LARGE) + 2 * _GAP)
    top = 2 * _HEAD if any(groups) else _HEAD
    canvas = np.full((top + len(rows) * high, across, 3), 235, np.uint8)
    for y, row in zip(range(top, len(canvas), high), rows, strict=True):
        for start, group in zip(starts, row.groups, strict=True):
            for x, image in zip(range(start, across, wide), group, strict=False):
                canvas[y : y + high - _GAP, x : x + wide - _GAP] = _enlarged(image, factor)
    figure = _figure(across, len(canvas))
    figure.figimage(canvas, resize=False)

    def write(text: str, x: int, y: float, points: int, side: str = "left") -> None:
        place = x / across, 1 - y / len(canvas)
        figure.text(*place, text, ha=side, va="center", fontsize=points, parse_math=False)

    write(printable(title), _GAP, _HEAD / 2, _LARGE)
    for start, name in zip(starts, groups, strict=True):
        write(name, start, 1.5 * _HEAD, _SMALL)
    for k, label in enumerate(labels):
        write(label, left - 2 * _GAP, top + (k + 0.5) * high - _GAP / 2, _SMALL, "right")
    _save(figure, file)


def draw_map(rows: Sequence[Row], title: str, file: IO[bytes]) -> None:
    """Draw vectors in the plane of their first two principal components, a colour for each row; the second group hollow.

    Args:
        rows: with vectors ``[n, D]``.
        title: of the picture.
        file: receives a PNG.
    """
    figure = _figure(900, 600)
    axes = figure.subplots()
    vectors = np.concatenate([group for row in rows for group in row.groups]).astype(np.float64)
    middle = vectors.mean(0)
    directions = np.linalg.svd(vectors - middle, full_matrices=False)[2][:2]
    for number, row in enumerate(rows):
        for k, group in enumerate(row.groups):
            points = np.zeros((len(group), 2))
            points[:, : len(directions)] = (group - middle) @ directions.T
            colour = f"C{number % 10}"
            inside = "none" if k else colour
            label = "" if k else _short(row.label)
            marker = "o" if number < 10 else "^"
            axes.scatter(points[:, 0], points[:, 1], s=28, marker=marker, facecolors=inside, edgecolors=colour, label=label)
    axes.set_xlabel("first principal component")
    axes.set_ylabel("second principal component")
    axes.set_title(printable(title), fontsize=_LARGE, parse_math=False)
    for text in axes.legend(fontsize=_SMALL, loc="center left", bbox_to_anchor=(1, 0.5)).get_texts():
        text.set_parse_math(False)
    figure.set_layout_engine("constrained")
    _save(figure, file)


def _figure(width: int, height: int) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, file: IO[bytes]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of characters that the font does not have, for which there is a box
        figure.savefig(file, format="png", dpi=_DPI)


def _width(text: str, points: int) -> int:
    """Width in pixels of a text as `_figure` draws it."""
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.font_manager import FontProperties

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        width, _, _ = RendererAgg(1, 1, _DPI).get_text_width_height_descent(text, FontProperties(size=points), ismath=False)
    return int(width) + 1


def _short(label: str) -> str:
    text = printable(label)
    return text if len(text) <= _LABEL else f"{text[: _LABEL - 1]}…"


def _enlarged(image: np.ndarray, factor: int) -> np.ndarray:
    """uint8 ``[H, W, 3]`` of an image ``[1 or 3, h, w]``."""
    pixels = image if image.dtype == np.uint8 else (255 * np.clip(image, 0, 1)).round().astype(np.uint8)
    colours = np.broadcast_to(pixels, (3, *pixels.shape[1:])).transpose(1, 2, 0)
    return colours.repeat(factor, axis=0).repeat(factor, axis=1)
