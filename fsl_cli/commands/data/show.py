"""`fsl data show`: a picture of some classes, of one class or of an episode, and a table of classes with their counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from fsl_cli.commands.data.options import split_options
from fsl_cli.datasets.dataset import SPLITS, ExampleClasses, SplitName
from fsl_cli.episodes import Episodes
from fsl_cli.episodes.class_images import ClassImages
from fsl_cli.errors import FslError, close_match
from fsl_cli.results.files import check_writable, write_atomically
from fsl_cli.run.data import Data, data_of
from fsl_cli.run.parts import sampler_of
from fsl_cli.show import console
from fsl_cli.show.contact_sheet import Row, draw_map, draw_sheet
from fsl_cli.show.pictures import draw_points

COMMAND = "fsl data show"
_CLASSES, _COLUMNS, _MOST = 20, 10, 200  # classes of a sheet and images of each; images of a class
_POINTS = 100  # query points of a curve


@dataclass(frozen=True)
class Wanted:
    """What to show: one class, an episode by its number, or some classes of a split.

    Attributes:
        label: name of the class.
        episode: number of the episode.
        split: the split; None: train, and the class in any.
        file: the PNG file to write.
    """

    label: str | None
    episode: int | None
    split: SplitName | None
    file: Path | None


def main(words: Sequence[str]) -> int:
    """Run the command. Returns the exit code."""
    options, words = split_options(words, ("class", "episode", "split", "to"), COMMAND)
    wanted = _wanted(options)
    data = data_of(words, COMMAND)
    name = str(data.settings.dataset["name"])
    file = wanted.file or Path(f"{name}_{_what(wanted)}.png")
    check_writable(file.absolute().parent)
    if wanted.episode is not None:
        _show_episode(data, wanted.split or "train", wanted.episode, name, file)
    elif isinstance(data.dataset, ExampleClasses):
        _show_classes(data.dataset, wanted, name, file)
    else:
        raise FslError("has no classes that could be listed", where=f"dataset={name}", hint="episode=0 shows an episode")
    console.say(f"written: {file}")
    return 0


def _wanted(options: dict[str, str]) -> Wanted:
    split, number, file = options.get("split"), options.get("episode"), options.get("to")
    if split is not None and split not in SPLITS:
        raise FslError("is no split", where=f"split={split}", hint=close_match(split, SPLITS))
    if number is not None and not (number.isascii() and number.isdigit()):
        raise FslError("is no number of an episode", where=f"episode={number}", hint="0, 1, 2, ...")
    if number is not None and "class" in options:
        raise FslError("an episode has its own classes", where=f"class={options['class']}", hint="leave out class or episode")
    if file is not None and Path(file).suffix.lower() != ".png":
        raise FslError("is no PNG file", where=f"to={file}", hint=f"to={file}.png")
    return Wanted(
        options.get("class"),
        None if number is None else int(number),
        split,
        None if file is None else Path(file).expanduser(),
    )


def _what(wanted: Wanted) -> str:
    if wanted.episode is not None:
        return f"{wanted.split or 'train'}_episode_{wanted.episode}"
    return "class" if wanted.label else wanted.split or "train"


# --- classes


def _show_classes(dataset: ExampleClasses, wanted: Wanted, name: str, file: Path) -> None:
    splits = {split: dataset.split(split) for split in SPLITS if wanted.split in (None, split)}
    if wanted.label is not None:
        label, found = wanted.label, {split: images for split, images in splits.items() if wanted.label in images.names}
        if not found:
            every = [each for images in splits.values() for each in images.names]
            raise FslError("there is no such class", where=f"class={label}", hint=close_match(label, every))
        rows = [(label, split, f"{images.counts[list(images.names).index(label)]:,}") for split, images in found.items()]
        drawn = [row for images in found.values() for row in _rows_of_one(_of_class(images, label, _MOST), label)]
    else:
        rows = [
            (each, s, f"{n:,}") for s, images in splits.items() for each, n in zip(images.names, images.counts, strict=True)
        ]
        images = splits[wanted.split or "train"]
        chosen = np.unique(np.linspace(0, len(images) - 1, min(_CLASSES, len(images))).round().astype(int))
        drawn = [Row(images.names[i], [_of_class(images, images.names[i], _COLUMNS)]) for i in chosen]
    console.table(name, ("class", "split", "examples"), rows)
    if not drawn:
        raise FslError("has no classes", where=f"split={wanted.split or 'train'}")
    _draw(drawn, f"{name}: {wanted.label or f'{len(drawn)} classes of the {wanted.split or SPLITS[0]} split'}", file)


def _of_class(images: ClassImages, label: str, most: int) -> np.ndarray:
    """The first examples of a class."""
    number = list(images.names).index(label)
    first, count = int(images.offsets[number]), min(most, int(images.counts[number]))
    return images.gather(torch.arange(first, first + count)).numpy()


def _rows_of_one(examples: np.ndarray, label: str) -> list[Row]:
    """The examples of one class: images on several lines, vectors together."""
    if examples.ndim == 2:
        return [Row(label, [examples])]
    parts = [examples[first : first + _COLUMNS] for first in range(0, len(examples), _COLUMNS)]
    return [Row("" if k else label, [part]) for k, part in enumerate(parts)]


# --- an episode


def _show_episode(data: Data, split: SplitName, number: int, name: str, file: Path) -> None:
    problem, task = data.dataset.problem(data.task), data.task
    if not problem.has_ways:
        task = replace(task.smallest, queries=max(task.queries, _POINTS))
    seed = data.settings.seed if split == "train" else data.settings.eval.seed
    sampler = sampler_of(data.dataset, split, task, seed)
    episodes = sampler.batch(number, 1)
    title = f"{name}: {split} episode {number}, {task}, seed {seed}"
    if not problem.has_ways:
        _draw_points(episodes, title, name, file)
        return
    names = getattr(sampler, "class_names", lambda classes: [str(each) for each in classes])(episodes.classes[0].tolist())
    rows = [Row(label, [_of_label(episodes, way, part) for part in ("support", "query")]) for way, label in enumerate(names)]
    counts = [(str(way), row.label, *(f"{len(group):,}" for group in row.groups)) for way, row in enumerate(rows)]
    console.table(title, ("label", "class", "support", "queries"), counts)
    _draw([Row(f"{way} {row.label}", row.groups) for way, row in enumerate(rows)], title, file, ("support", "queries"))


def _of_label(episodes: Episodes, way: int, part: str) -> np.ndarray:
    examples = getattr(episodes, part)
    return examples.x[0][(examples.y[0] == way) & examples.real[0]].numpy()


def _draw_points(episodes: Episodes, title: str, name: str, file: Path) -> None:
    support, query = ((each.x[0].flatten(1), each.y[0].flatten(1)) for each in (episodes.support, episodes.query))
    if support[0].shape[1] != 1 or support[1].shape[1] != 1:
        raise FslError("only curves of one number can be drawn", where=f"dataset={name}")
    rows = [(f"{x:.4g}", f"{y:.4g}") for x, y in zip(*(each[:, 0].tolist() for each in support), strict=True)]
    console.table(f"{title}: support", ("x", "y"), rows)
    (x, y), (query_x, query_y) = ([each[:, 0] for each in pair] for pair in (support, query))
    write_atomically(file, lambda to: draw_points((x, y), (query_x, query_y), title, to))


def _draw(rows: Sequence[Row], title: str, file: Path, groups: Sequence[str] = ("",)) -> None:
    images = rows[0].groups[0].ndim == 4
    write_atomically(file, lambda to: draw_sheet(rows, title, to, groups) if images else draw_map(rows, title, to))
