"""The end of a run is recorded, wherever it happens."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fsl_cli.errors import UnexpectedError
from fsl_cli.results import environment
from fsl_cli.run.lifecycle import lifecycle


def _live(folder: Path, work: Callable[[], None]) -> None:
    with lifecycle(folder) as life:
        life.begin({}, torch.device("cpu"), "fsl train")
        work()


def _status(folder: Path) -> dict:
    return json.loads((folder / "status.json").read_text())


@pytest.mark.parametrize(("error", "state"), [(KeyboardInterrupt, "interrupted"), (OSError, "failed")])
def test_a_stop_while_the_folder_is_claimed_is_recorded(tmp_path, monkeypatch, error, state):
    def stop(*arguments):
        raise error

    monkeypatch.setattr(environment, "describe", stop)  # it asks git, which takes a while
    with pytest.raises((KeyboardInterrupt, UnexpectedError)):
        _live(tmp_path / "run", lambda: None)
    assert _status(tmp_path / "run")["state"] == state


def test_a_part_that_ends_the_program_does_not_leave_a_run_that_seems_to_go_on(tmp_path):
    with pytest.raises(SystemExit):
        _live(tmp_path, lambda: sys.exit(1))
    assert _status(tmp_path)["state"] == "failed"
    assert _status(tmp_path)["exit_code"] == 1
