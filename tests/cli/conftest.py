"""The command line in this process, and small runs made with it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Outcome, Run, merged

from fsl_cli.cli import main


@pytest.fixture
def fsl(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """``fsl`` with these words, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fsl"])

    def run(*words: str) -> Outcome:
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def small(fsl: Run, tmp_path: Path) -> Callable[..., Path]:
    """Train a small run into a folder of this name; returns the folder."""

    def train(name: str, *words: str) -> Path:
        outcome = fsl("train", *merged(words), f"hydra.run.dir={tmp_path / name}")
        assert outcome.code == 0, outcome.err
        return tmp_path / name

    return train
