"""`fsl data ls`: which data sets are here or packed, and how to get the others. Downloads, decodes and packs nothing."""

from __future__ import annotations

from collections.abc import Sequence

from fsl_cli.commands.data.sizes import bytes_of
from fsl_cli.datasets.dataset import SPLITS
from fsl_cli.datasets.status import Status, status_of
from fsl_cli.errors import FslError
from fsl_cli.run.data import data_of
from fsl_cli.run.plan import compose_one
from fsl_cli.settings.compose import Composer
from fsl_cli.settings.conf_files import members
from fsl_cli.settings.words import as_typed
from fsl_cli.show import console

COMMAND = "fsl data ls"
COLUMNS = ("data set", "state", f"classes {'/'.join(SPLITS)}", "examples", "files", "pack", "where, or how to get it")
_FOLDERS = ("data_dir", "cache_dir")  # what may be set for all data sets at once


def main(words: Sequence[str]) -> int:
    """Run the command. Returns the exit code."""
    composer = Composer("train")
    if any(word.startswith("dataset=") for word in words):
        data = data_of(words, COMMAND, composer)
        console.table("data sets", COLUMNS, [_row(str(data.settings.dataset["name"]), status_of(data.dataset))])
        return 0
    compose_one(composer, as_typed(words), COMMAND, "one folder at a time")
    for word in words:
        if word.partition("=")[0] not in _FOLDERS:
            raise FslError("of which data set?", where=word, hint=f"add dataset=NAME, or set {' or '.join(_FOLDERS)} only")
    rows = [_any_row(name, member.plugin, words, composer) for name, member in members("dataset").items()]
    console.table("data sets", COLUMNS, rows)
    return 0


def _any_row(name: str, plugin: str | None, words: Sequence[str], composer: Composer) -> tuple[str, ...]:
    """The row of a data set, whatever is wrong with it."""
    label = name + (f" [from {plugin}]" if plugin else "")
    try:
        dataset = data_of([f"dataset={name}", *words], COMMAND, composer).dataset
    except FslError as error:  # most often a setting without a default
        return label, "missing", *[""] * 4, str(error)
    try:
        return _row(label, status_of(dataset))
    except FslError as error:
        return label, "unreadable", *[""] * 4, str(error)


def _row(label: str, status: Status) -> tuple[str, ...]:
    packed = status.pack is not None and status.pack.is_dir()
    counts = status.counts
    state = "packed" if packed else "missing" if status.missing else "here"
    classes = " / ".join(f"{len(counts[split]):,}" for split in SPLITS if split in counts)
    examples = f"{sum(int(each.sum()) for each in counts.values()):,}" if counts else ""
    files = console.size(sum(map(bytes_of, status.files))) if status.files else ""
    pack = console.size(bytes_of(status.pack)) if packed and status.pack else ""
    needs = "packed at first use" if status.pack and not packed else "needs no files"
    where = status.missing or ", ".join(str(path) for path in status.files) or needs
    return label, state, classes, examples, files, pack, where
