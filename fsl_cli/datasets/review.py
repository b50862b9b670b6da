"""Examples as they are read, and what a review of them finds: counts, unreadable examples, the same content twice."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Read:
    """One example that was read, or could not be.

    Attributes:
        split: train, val or test.
        label: its class.
        name: what it is called in a report: a file, or a number in its class.
        content: its pixels or features; or why it cannot be read.
    """

    split: str
    label: str
    name: str
    content: np.ndarray | str


class Review:
    """Counts examples and remembers those that are unreadable or have the content of an earlier one.

    Attributes:
        counts: for each split, the number of readable examples of each class, 0 included.
        unreadable: each unreadable example with the reason.
        twice: examples with the very content of an earlier one, by where the two are.
    """

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {}
        self.unreadable: list[str] = []
        self.twice: dict[str, list[str]] = {"in a class": [], "in two classes": [], "in two splits": []}
        self._seen: dict[bytes, tuple[str, str, str]] = {}

    def add(self, read: Read) -> None:
        """Take in the next example."""
        counts = self.counts.setdefault(read.split, Counter())
        counts[read.label] += not isinstance(read.content, str)
        if isinstance(read.content, str):
            self.unreadable.append(f"{read.name}: {read.content}")
            return
        digest = hashlib.blake2b(np.ascontiguousarray(read.content).data, digest_size=16).digest()
        mine = (read.split, read.label, read.name)
        split, label, name = self._seen.setdefault(digest, mine)
        if (split, label, name) != mine:
            where = "in two splits" if split != read.split else "in two classes" if label != read.label else "in a class"
            self.twice[where].append(f"{read.name} ({read.split}) is {name} ({split})")
