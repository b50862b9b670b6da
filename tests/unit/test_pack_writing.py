"""Blocks are read on all cores; an interrupted packing is continued; what is left out and what is there twice is reported."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from fsl_cli.datasets.pack import packed_split
from fsl_cli.datasets.pack_source import Packed, PackSource, from_items
from fsl_cli.datasets.parallel import in_order

SHAPE = (1, 5, 7)
NUMBERS = [number for number in range(40) if number != 5]


class Numbered:
    """Images 0 to 11 of the class ``a``, of which 5 is unusable, and 12 to 39 of ``b``, in blocks of four.

    While ``interrupt`` is set, reading image 30 stops the program.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **options: object) -> None:
        monkeypatch.setattr("fsl_cli.datasets.pack_source._IMAGES", 4)
        self.read: list[int] = []
        self.reasons: list[list[str]] = []
        self.interrupt, self.options = True, options

    def image(self, number: int) -> np.ndarray | str:
        if number == 30 and self.interrupt:
            raise KeyboardInterrupt
        self.read.append(number)
        return "five is broken" if number == 5 else np.full(SHAPE, number, np.uint8)

    def __call__(self) -> PackSource:
        classes = {name: from_items(numbers, self.image, SHAPE) for name, numbers in (("a", range(12)), ("b", range(12, 40)))}
        return PackSource({"train": classes}, SHAPE, self.reasons.append, **self.options)  # type: ignore[arg-type]

    def pack_until_interrupted(self, cache: Path) -> Path:
        with pytest.raises(KeyboardInterrupt):
            packed_split(cache, "toy", "key", "train", self)
        self.interrupt = False
        self.read.clear()
        return cache / "packs" / ".toy-key.part"


def cut(path: Path, by: int) -> None:
    path.write_bytes(path.read_bytes()[:-by])


def change_image_15(part: Path) -> None:
    with (part / "images.npy").open("r+b") as file:
        file.seek(128 + NUMBERS.index(15) * 35)
        file.write(b"?")


@pytest.mark.parametrize(
    ("change", "first"),
    [
        (lambda part: None, 28),
        (lambda part: cut(part / "journal.jsonl", 5), 24),
        (change_image_15, 12),
        (lambda part: cut(part / "images.npy", 1), 24),
        (lambda part: (part / "images.npy").open("ab").write(b"half a block"), 28),
        (lambda part: (part / "images.npy").write_bytes(b""), 0),
        (lambda part: (part / "journal.jsonl").unlink(), 0),
    ],
    ids=["untouched", "torn line", "changed pixels", "short", "long", "no images", "no journal"],
)
def test_an_interrupted_packing_is_continued_after_the_last_whole_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], object], first: int
) -> None:
    source = Numbered(monkeypatch)
    part = source.pack_until_interrupted(tmp_path)
    change(part)
    advanced: list[int] = []

    @contextmanager
    def progress(what: str, total: int):  # type: ignore[no-untyped-def]
        yield advanced.append

    images = packed_split(tmp_path, "toy", "key", "train", source, progress)
    assert sorted(source.read) == list(range(first, 40))
    assert images.images[:, 0, 0, 0].tolist() == NUMBERS
    assert images.counts.tolist() == [11, 28]
    assert (advanced[0], sum(advanced)) == (first or 4, 40)
    assert source.reasons[-1] == ["five is broken"]
    assert not part.exists()
    assert sorted(path.name for path in (tmp_path / "packs" / "toy-key").iterdir()) == [
        "hashes.npy",
        "images.npy",
        "index.json",
    ]


@pytest.mark.parametrize(
    ("fewest", "counts", "small"),
    [(11, [11, 28], []), (12, [28], [("a", 11)]), (29, [], [("a", 11), ("b", 28)])],
    ids=str,
)
def test_classes_with_too_few_images_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fewest: int, counts: list[int], small: list[tuple[str, int]]
) -> None:
    said: list[Packed] = []
    source = Numbered(monkeypatch, min_images=fewest, report=said.append)
    source.pack_until_interrupted(tmp_path)
    images = packed_split(tmp_path, "toy", "key", "train", source)
    assert images.counts.tolist() == counts
    assert images.images[:, 0, 0, 0].tolist() == NUMBERS[39 - sum(counts) :]
    assert [(packed.small, packed.unusable) for packed in said] == [(small, ["five is broken"])]


def test_images_in_two_splits_are_reported_by_place(tmp_path: Path) -> None:
    def image(number: int) -> np.ndarray | str:
        return "unusable" if number < 0 else np.full(SHAPE, number, np.uint8)

    train = {"a": from_items([1, -1, 2, 3], image, SHAPE), "b": from_items([3, 4], image, SHAPE)}
    test = {"a": from_items([5, -1, -1, 3], image, SHAPE), "c": from_items([2, 6, 6], image, SHAPE)}
    said: list[Packed] = []
    source = PackSource({"train": train, "test": test}, SHAPE, lambda reasons: None, report=said.append)
    packed_split(tmp_path, "toy", "key", "train", lambda: source)
    assert said[0].twice == [(("test", "a", 3), ("train", "a", 3)), (("test", "c", 0), ("train", "a", 2))]


def test_an_image_that_must_be_usable_is_an_error(tmp_path: Path) -> None:
    source = PackSource({"train": {"a": from_items([1], lambda item: "broken", SHAPE)}}, SHAPE)
    with pytest.raises(ValueError, match="1 unusable"):
        packed_split(tmp_path, "toy", "key", "train", lambda: source)


def test_calls_run_on_all_cores_few_at_a_time_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fsl_cli.datasets.parallel.cores", lambda: 3)
    together, started = threading.Barrier(3), list[int]()

    def call(number: int) -> int:
        started.append(number)
        if number < 3:
            together.wait(10)  # passes only when three calls run at the same time
            time.sleep(0.02 * (3 - number))
        return number

    results = in_order(partial(call, number) for number in range(20))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    assert len(started) <= 3 + 3 + 1
    assert list(results) == list(range(3, 20))
