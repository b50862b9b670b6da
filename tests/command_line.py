"""Helpers: run the command line in process, make small runs, and read their files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fsl_cli.settings.compose import Composer, without_hydra
from fsl_cli.settings.resolve import resolve

SMALL = (
    "backbone=mlp",
    "backbone.widths=[16]",
    "task.queries=2",
    "train.iterations=6",
    "train.meta_batch=2",
    "train.log_every=1",
    "train.val_every=2",
    "train.val_episodes=4",
    "eval.episodes=12",
    "wandb.mode=disabled",
    "hardware.threads=1",  # networks this small only wait for each other
)


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


def merged(words: tuple[str, ...]) -> list[str]:
    """The small settings overridden by these; a group must not occur twice, which Hydra refuses."""
    given = {word.split("=")[0] for word in words}
    drop = {"backbone.widths"} if "backbone" in given else set()
    return [word for word in SMALL if word.split("=")[0] not in given | drop] + list(words)


def command(*words: str) -> list[str]:
    """The command line as another process would start it."""
    return [sys.executable, "-m", "fsl_cli", *words]


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def metrics(folder: Path) -> list[dict]:
    """``metrics.jsonl`` without timing values."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if "second" not in key} for line in lines]


def composed(*words: str) -> dict:
    """The configuration of ``fsl train`` with these arguments."""
    return resolve(without_hydra(Composer("train").compose(words)))


def shell(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
