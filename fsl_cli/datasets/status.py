"""What a data set says about itself before any work: its files, what is missing, and how many classes it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Status:
    """What there is of a data set on this machine, found without downloading, decoding or packing.

    Attributes:
        files: the files and folders that it is read from; none: it needs none, or they are missing.
        missing: one line that says how to get what is missing; None: nothing is.
        pack: the folder of its pack in the cache, whether it is there yet or not; None: it is not packed, or the folder is not
            known before the files are there.
        counts: for each split, int64 ``[classes]``, examples per class, as far as they are known without decoding; empty:
            they are not known, or there are no classes.
        published: MD5 checksums of those ``files`` that have one, as hex digits.
    """

    files: tuple[Path, ...] = ()
    missing: str | None = None
    pack: Path | None = None
    counts: Mapping[str, np.ndarray] = field(default_factory=dict)
    published: Mapping[Path, str] = field(default_factory=dict)


def status_of(dataset: object) -> Status:
    """The status of any data set; one that has no method ``status`` needs no files."""
    describe = getattr(dataset, "status", None)
    found = describe() if describe else Status()
    assert isinstance(found, Status)
    return found
