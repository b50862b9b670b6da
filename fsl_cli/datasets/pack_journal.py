"""The journal of a packing: what became of every block, from which the index of the pack follows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from fsl_cli.datasets.pack_reading import duplicate_rows
from fsl_cli.datasets.pack_source import Packed, PackSource, Place


@dataclass(frozen=True)
class Entry:
    """One block, and one line of the journal.

    Attributes:
        rows: number of images written.
        crc32: of their pixels.
        unusable: position in the block and reason of every image that cannot be used.
        dropped: number of usable images that were not written because their class has too few.
    """

    rows: int
    crc32: int
    unusable: Sequence[tuple[int, str]]
    dropped: int = 0

    @property
    def images(self) -> int:
        """Number of images of the block, whatever became of them."""
        return self.rows + self.dropped + len(self.unusable)

    def line(self) -> bytes:
        """The entry as a line of JSON."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def of_line(cls, line: bytes) -> Entry:
        """The entry in a line. Raises ValueError, KeyError or TypeError if the line is not complete."""
        found = json.loads(line)
        return cls(**{**found, "unusable": [(position, reason) for position, reason in found["unusable"]]})


@dataclass(frozen=True)
class PackedClass:
    """A class, and the numbers of its blocks among those of all classes."""

    split: str
    name: str
    count: int
    blocks: range


class Journal:
    """The blocks written so far.

    Args:
        source: the content of the pack.

    Attributes:
        classes: the classes of all splits.
        entries: one for each block written, in order.
    """

    def __init__(self, source: PackSource) -> None:
        named = [(split, name, each) for split, classes in source.splits.items() for name, each in classes.items()]
        ends = accumulate(len(each.blocks) for _, _, each in named)
        self.classes = [
            PackedClass(split, name, each.count, range(end - len(each.blocks), end))
            for (split, name, each), end in zip(named, ends, strict=True)
        ]
        self.entries: list[Entry] = []
        self._splits = list(source.splits)

    def of_class(self, each: PackedClass) -> list[Entry]:
        """The blocks of a class that are written."""
        return self.entries[each.blocks.start : each.blocks.stop]

    def rows(self, each: PackedClass) -> int:
        """Number of images of a class that are written."""
        return sum(entry.rows for entry in self.of_class(each))

    def unusable(self) -> list[str]:
        """Why images cannot be used."""
        return [reason for entry in self.entries for _, reason in entry.unusable]

    def index(self) -> dict[str, Any]:
        """The content of ``index.json``."""
        found, first = {}, 0
        for split in self._splits:
            counts = {each.name: self.rows(each) for each in self.classes if each.split == split}
            present = {name: count for name, count in counts.items() if count}
            found[split] = {"classes": list(present), "counts": list(present.values()), "first": first}
            first += sum(present.values())
        return found

    def packed(self, hashes: np.ndarray) -> Packed:
        """What a data set may want to tell its user.

        Args:
            hashes: uint64 ``[M]``, of all images.
        """
        empty = [each for each in self.classes if not self.rows(each)]
        small = [(each.name, sum(entry.dropped for entry in self.of_class(each))) for each in empty]
        places = self._places() if len(pairs := duplicate_rows(hashes).tolist()) else []
        twice = [(places[row], places[first]) for row, first in pairs]
        return Packed(self.unusable(), small, [(place, first) for place, first in twice if place[0] != first[0]])

    def _places(self) -> list[Place]:
        """Where each image of the pack was announced."""
        found: list[Place] = []
        for each in self.classes:
            first = 0
            for entry in self.of_class(each):
                unusable = {position for position, _ in entry.unusable}
                usable = [position for position in range(entry.images) if position not in unusable]
                found += [(each.split, each.name, first + position) for position in usable[: entry.rows]]
                first += entry.images
        return found
