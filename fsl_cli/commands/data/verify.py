"""`fsl data verify`: read every example again and report what is wrong with the data set.

Exit code 1: something is unreadable or damaged, or the task cannot be drawn. The same example twice, and an archive that is not
the published one, are reported only: data sets as published have them, and archives are packed again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from fsl_cli.commands.data.options import split_options
from fsl_cli.datasets.dataset import SPLITS, Dataset, SplitName
from fsl_cli.datasets.image_files import readable
from fsl_cli.datasets.pack_reading import damaged_splits
from fsl_cli.datasets.review import Review
from fsl_cli.datasets.status import Status, status_of
from fsl_cli.episodes import Task
from fsl_cli.episodes.sampler import task_problems
from fsl_cli.errors import FslError
from fsl_cli.results.files import check_writable, to_json, write_text
from fsl_cli.run.data import data_of
from fsl_cli.show import console

COMMAND = "fsl data verify"
_SHOWN = 20  # of each kind of finding; json=FILE has all of them


@dataclass(frozen=True)
class Findings:
    """What a check of a data set has found.

    Attributes:
        dataset: its name.
        files: what it is read from.
        counts: for each split, the readable examples of each class.
        damaged: one line for each thing that is unreadable or damaged.
        task: why the task cannot be drawn, or the classes that are too small for it.
        twice: examples that are there twice, by where the two are.
        notes: what else should be known.
    """

    dataset: str
    files: list[str]
    counts: Mapping[str, Mapping[str, int]]
    damaged: list[str] = field(default_factory=list)
    task: list[str] = field(default_factory=list)
    twice: Mapping[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def main(words: Sequence[str]) -> int:
    """Run the command. Returns the exit code."""
    options, words = split_options(words, ("json",), COMMAND)
    file = Path(options["json"]).expanduser() if "json" in options else None
    if file:
        check_writable(file.absolute().parent)
    data = data_of(words, COMMAND)
    status = status_of(data.dataset)
    if status.missing:
        raise FslError("is not here", where=f"dataset={data.settings.dataset['name']}", hint=status.missing)
    findings = verify(str(data.settings.dataset["name"]), data.dataset, status, data.task)
    _print(findings)
    wrong = bool(findings.damaged or findings.task)
    if file:
        write_text(file, to_json({**asdict(findings), "ok": not wrong}))
        console.say(f"written: {file}")
    return int(wrong)


def verify(name: str, dataset: Dataset, status: Status, task: Task) -> Findings:
    """Check the files, the examples and the pack of a data set, and whether the task can be drawn from it."""
    review, damaged = (
        Review(),
        [f"{split} split of the pack: damaged, and packed again when it is next used" for split in _damaged(status)],
    )
    try:
        _read(dataset, status, review)
    except FslError as error:
        damaged.append(str(error))
    return Findings(
        name,
        [str(path) for path in status.files],
        {split: dict(counts) for split, counts in review.counts.items()},
        review.unreadable + damaged,
        _task_problems(dataset, status, review, task),
        review.twice,
        [note for path, md5 in status.published.items() for note in _of_archive(path, md5)],
    )


def _damaged(status: Status) -> list[str]:
    return damaged_splits(status.pack) if status.pack and status.pack.is_dir() else []


def _read(dataset: Dataset, status: Status, review: Review) -> None:
    """Give every example to the review."""
    if not hasattr(dataset, "examples"):
        return
    total = sum(int(counts.sum()) for counts in status.counts.values())
    with console.progress("reading", total) as advance:
        for read in dataset.examples():
            review.add(read)
            advance(1)


def _task_problems(dataset: Dataset, status: Status, review: Review, task: Task) -> list[str]:
    """Why the task cannot be drawn. Asking a data set that is not packed yet would pack it, so that it is only counted."""
    if status.pack is None or status.pack.is_dir():
        tasks: dict[SplitName, Task] = dict.fromkeys(SPLITS, task)
        found = [str(problem) for problem in dataset.task_problems(tasks)]
    else:
        counts = {split: np.array(list(each.values()), dtype=np.int64) for split, each in review.counts.items()}
        found = [str(problem) for split, each in counts.items() for problem in task_problems(each, split, task)]
    needed = task.shots + task.queries
    small = [f"{label} ({split}): {n}" for split, each in review.counts.items() for label, n in each.items() if n < needed]
    return found + ([f"{len(small)} classes with fewer than {needed} examples: {_some(small)}"] if found and small else [])


def _of_archive(path: Path, published: str) -> list[str]:
    digest = hashlib.md5(usedforsecurity=False)
    with readable(path), path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    same = digest.hexdigest() == published
    return [
        f"{path}: {'the published archive (MD5)' if same else f'not the published archive: its MD5 is {digest.hexdigest()}'}"
    ]


def _print(findings: Findings) -> None:
    rows = []
    for split, counts in findings.counts.items():
        sizes = list(counts.values()) or [0]
        rows.append((split, f"{len(counts):,}", f"{sum(sizes):,}", f"{min(sizes):,}", f"{max(sizes):,}"))
    if rows:
        console.table(findings.dataset, ("split", "classes", "examples", "fewest in a class", "most"), rows)
    for note in findings.notes:
        console.say(note)
    for where, items in findings.twice.items():
        if items:
            console.warn(f"{len(items)} examples are twice {where}: {_some(items)}")
    for each in _first(findings.damaged) + findings.task:
        console.fail(each)
    wrong = len(findings.damaged) + len(findings.task)
    console.say("nothing is damaged" if not wrong else f"{wrong} problems", style="bold green" if not wrong else "bold red")


def _some(items: Sequence[str]) -> str:
    return "; ".join(_first(items))


def _first(items: Sequence[str]) -> list[str]:
    more = [f"and {len(items) - _SHOWN} more"] if len(items) > _SHOWN else []
    return [*items[:_SHOWN], *more]
