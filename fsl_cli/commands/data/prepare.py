"""`fsl data prepare`: download, read and pack a data set before the first run needs it."""

from __future__ import annotations

import time
from collections.abc import Sequence

from fsl_cli.commands.data.sizes import bytes_of
from fsl_cli.datasets.dataset import SPLITS, ExampleClasses
from fsl_cli.datasets.status import status_of
from fsl_cli.run.data import data_of
from fsl_cli.show import console

COMMAND = "fsl data prepare"


def main(words: Sequence[str]) -> int:
    """Run the command. Returns the exit code."""
    data = data_of(words, COMMAND)
    dataset, before = data.dataset, status_of(data.dataset).pack
    packed_before, started = before is not None and before.is_dir(), time.perf_counter()
    if isinstance(dataset, ExampleClasses):
        splits = {split: dataset.split(split) for split in SPLITS}
        rows = [(split, f"{len(images):,}", f"{int(images.counts.sum()):,}") for split, images in splits.items()]
        console.table(str(data.settings.dataset["name"]), ("split", "classes", "examples"), rows)
    else:
        dataset.task_problems(dict.fromkeys(SPLITS, data.task))  # asks for the number of examples, and so packs
    pack = status_of(dataset).pack
    if pack is None or not pack.is_dir():
        console.say("needs no packing")
    elif packed_before and before == pack:
        console.say(f"is packed: {pack} ({console.size(bytes_of(pack))})")
    else:
        seconds = console.clock(time.perf_counter() - started)
        console.say(f"packed in {seconds}: {pack} ({console.size(bytes_of(pack))})")
    return 0
