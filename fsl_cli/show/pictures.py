"""Plots of a model's predictions and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from torch import Tensor

Labelled = tuple[Tensor, Tensor]

_MOST_WAYS, _MOST_QUERIES = 20, 10


def draw_episode(support: Labelled, query: Labelled, predicted: Tensor, ways: int, path: Path) -> None:
    """Draw an episode: one row per class with its support images and its queries, framed green if correct, else red.

    Args:
        support: images ``[S, C, H, W]`` and their labels, int64 ``[S]``.
        query: query images ``[B, C, H, W]`` and their labels, int64 ``[B]``.
        predicted: int64 ``[B]``, the predicted labels of the queries.
        ways: number of classes.
        path: PNG file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    (support_x, support_y), (query_x, labels) = support, query
    predicted, labels = predicted.cpu(), labels.cpu()
    shots, most = (int(each.bincount(minlength=ways).max()) for each in (support_y, labels))
    queries = min(most, _MOST_QUERIES)
    rows = min(ways, _MOST_WAYS)
    figure = Figure(figsize=(0.7 * (shots + queries + 1), 0.8 * rows + 0.6))
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, shots + queries, squeeze=False)
    for axis in axes[:, 1:].flat:
        axis.axis("off")  # until it is drawn on: a class may have fewer images
    for way in range(rows):
        for column, image in enumerate(support_x[support_y == way]):
            _draw(axes[way][column], image, "support" if way == 0 else "", "black")
        for column, number in enumerate((labels == way).nonzero().flatten()[:queries].tolist()):
            right = bool(predicted[number] == way)
            title = "" if right else f"as {int(predicted[number])}"
            _draw(axes[way][shots + column], query_x[number], title, "green" if right else "red")
        axes[way][0].set_ylabel(str(way), rotation=0, ha="right", va="center")
    share = float((predicted == labels).float().mean())
    figure.suptitle(f"one episode: {100 * share:.0f} % of {len(labels)} queries correct (green)", fontsize=9)
    figure.savefig(path, dpi=100)


def draw_fit(support: Labelled, curve: Labelled, predicted: Mapping[str, Tensor], path: Path) -> None:
    """Draw a regression episode: the true curve, the support points and the predictions.

    Args:
        support: x and y of the support points, ``[S]`` each.
        curve: x and y of points on the curve, ``[B]`` each, in any order.
        predicted: predictions of y at the points of the curve, ``[B]`` each, by legend label.
        path: PNG file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    x, y = (each.float().cpu() for each in curve)
    order = x.argsort()
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(x[order].numpy(), y[order].numpy(), color="black", linewidth=1.5, label="true curve")
    for number, (name, values) in enumerate(predicted.items()):
        last = number == len(predicted) - 1
        style, colour = ("-", "green") if last else (":", "grey")
        axes.plot(x[order].numpy(), values.float().cpu()[order].numpy(), style, color=colour, label=name)
    axes.plot(*(each.float().cpu().numpy() for each in support), "^", color="purple", label=f"{len(support[0])} support points")
    axes.set_xlabel("x")
    axes.set_ylabel("y")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=100)


def draw_points(support: Labelled, query: Labelled, title: str, file: IO[bytes]) -> None:
    """Draw a regression episode: its support points, and its query points joined in the order of x.

    Args:
        support: x and y of the support points, ``[S]`` each.
        query: x and y of the query points, ``[B]`` each.
        title: of the picture.
        file: receives a PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    order = query[0].argsort()
    axes.plot(*(each[order].numpy() for each in query), ".-", color="grey", linewidth=0.8, markersize=3, label="queries")
    axes.plot(*(each.numpy() for each in support), "^", color="purple", label=f"{len(support[0])} support points")
    axes.set_xlabel("x")
    axes.set_ylabel("y")
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(file, format="png", dpi=100)


def draw_curves(curves: Mapping[str, Sequence[tuple[int, float, float]]], label: str, episodes: int, file: IO[bytes]) -> None:
    """Draw a score along curves with its 95% confidence intervals, one panel per curve.

    Args:
        curves: points by curve name: position on the curve, mean, half width of the interval.
        label: name and unit of the score.
        episodes: number of episodes over which the means were taken.
        file: receives a PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(curves), 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, curve) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        at, means, halves = zip(*curve, strict=True)
        axes.errorbar(at, means, yerr=halves, marker="o", markersize=4, capsize=3, linewidth=1.2)
        axes.set_xlabel(name.replace("_", " "))
        axes.set_ylabel(label)
        axes.set_title(f"mean and 95% CI over {episodes} episodes", fontsize=9)
        axes.grid(alpha=0.3)
    figure.savefig(file, format="png", dpi=120)


def _draw(axis: object, image: Tensor, title: str, colour: str) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axis, Axes)
    pixels = image.float().cpu().numpy()
    axis.axis("on")
    axis.imshow(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0), cmap="gray_r", vmin=0, vmax=1)
    axis.set_title(title, fontsize=6, color=colour, pad=2)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_color(colour)
        spine.set_linewidth(1.5)
