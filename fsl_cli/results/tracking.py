"""Where metrics go: a JSON-lines file and Weights & Biases."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fsl_cli.results.files import write_text
from fsl_cli.results.wandb_run import WandbRun


class Trackers:
    """Everything that receives what a run measures; without W&B and a file, as in processes other than the first, nothing.

    Args:
        lines: the file, or None.
        wandb: the W&B run, or None.
    """

    def __init__(self, lines: JsonLines | None = None, wandb: WandbRun | None = None) -> None:
        self._lines, self._wandb = lines, wandb

    @property
    def wandb_id(self) -> str | None:
        """What W&B calls the run."""
        return self._wandb.id if self._wandb else None

    @property
    def where(self) -> str:
        """Where the run can be looked at."""
        return self._wandb.where if self._wandb else "disabled"

    def log(self, iteration: int, values: Mapping[str, float]) -> None:
        """Record metrics of an iteration."""
        for each in (self._lines, self._wandb):
            if each:
                each.log(iteration, values)

    @property
    def keeps_pictures(self) -> bool:
        """Whether a picture would be kept; to draw one for nobody takes most of a second."""
        return self._wandb is not None

    def picture(self, iteration: int, name: str, png: Path) -> None:
        """Record a picture."""
        if self._wandb:
            self._wandb.picture(iteration, name, png)

    def test(self, iteration: int, values: Mapping[str, float], summary: Mapping[str, Any]) -> None:
        """Record the test: one point of each value, and the summary of the run; ``results.json`` holds the same."""
        if self._wandb:
            self._wandb.log(iteration, values)
            self._wandb.summarise(summary)

    def checkpoint(self, path: Path, metadata: Mapping[str, Any]) -> None:
        """Keep a checkpoint as an artifact."""
        if self._wandb:
            self._wandb.checkpoint(path, metadata)


class JsonLines:
    """One JSON object per line: ``iteration`` and the metrics of that moment.

    Args:
        path: the file; appended to.
        upto: iteration a run goes on from; later lines of an earlier attempt are dropped.
    """

    def __init__(self, path: Path, upto: int) -> None:
        kept = [line for line in read_metrics(path) if line["iteration"] <= upto]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")

    def log(self, iteration: int, values: Mapping[str, float]) -> None:
        """Append a line."""
        finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
        self._file.write(json.dumps({"iteration": iteration, **finite}) + "\n")
        self._file.flush()

    def finish(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of a ``metrics.jsonl``; a last line cut off by a crash is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines
