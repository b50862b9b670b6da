"""What happens to a run does not depend on where its output goes."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sys
import time
from pathlib import Path

import pytest
from command_line import command, merged, metrics, shell
from warm import Warm

from fsl_cli.show import console
from fsl_cli.show.streams import lasting_streams


def piped(warm: Warm, *words: str, reader: str, cwd: Path) -> list[str]:
    """What ``reader`` and then the shell say of ``fsl WORDS |& READER``; the last line is the exit code of ``fsl``."""
    line = f"{shlex.join([str(warm.fsl), *words])} 2>&1 | {reader}; echo ${{PIPESTATUS[0]}}"
    return shell("bash", "-c", line, cwd=cwd).stdout.splitlines()


def test_a_run_whose_reader_goes_away_is_done(warm: Warm, tmp_path: Path):
    folder = tmp_path / "run"
    read = piped(warm, "train", *merged((f"hydra.run.dir={folder}",)), reader="head -1", cwd=tmp_path)
    assert len(read) == 2
    assert read[-1] == "0"
    assert json.loads((folder / "status.json").read_text())["state"] == "done"
    assert (folder / "results.json").is_file()
    log = (folder / "run.log").read_text(encoding="utf-8")
    assert log.splitlines()[-1].endswith("% (95% CI, t)")
    assert "±" in log


def test_a_sweep_whose_reader_goes_away_has_its_table(warm: Warm, tmp_path: Path):
    folder = tmp_path / "sweep"
    words = ("-m", *merged(("train.iterations=2", "seed=0,1", f"hydra.sweep.dir={folder}")))
    assert piped(warm, "train", *words, reader="true", cwd=tmp_path) == ["0"]
    assert (folder / "results.md").read_text().count("| done |") == 2


def test_output_that_cannot_be_written_is_an_error_after_the_run_is_done(warm: Warm, tmp_path: Path):
    folder = tmp_path / "run"
    line = shlex.join([str(warm.fsl), "train", *merged((f"hydra.run.dir={folder}",))])
    done = shell("bash", "-c", f"{line} > /dev/full", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "error: output could not be written: No space left on device\n")
    assert json.loads((folder / "status.json").read_text())["state"] == "done"


def test_ascii_output_replaces_what_it_cannot_say_and_colours_make_no_terminal(tmp_path: Path):
    folder = tmp_path / "run"
    ascii_only = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    done = shell(*command("train", *merged((f"hydra.run.dir={folder}",))), cwd=tmp_path, FORCE_COLOR="1", **ascii_only)
    assert done.returncode == 0, done.stderr
    coloured = done.stdout.splitlines()
    assert "\x1b[" in coloured[-1]
    plain = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
    assert "\x1b" not in plain  # colours and nothing else: no bars
    assert re.fullmatch(r"test  12 episodes  accuracy \d+\.\d\d \+/- \d+\.\d\d % \(95% CI, t\)", plain.splitlines()[-1])
    assert " ± " in (folder / "run.log").read_text(encoding="utf-8")


def test_a_table_on_a_terminal_folds_its_lines_and_cuts_nothing(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(console.out, "_force_terminal", True)
    monkeypatch.setattr(console.out, "_width", 60)
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda stream: True)
    sentence = "a sentence that goes on for longer than the terminal is wide, up to its last word"
    console.table("experiment", ("option", "what it is"), [("experiment=maml_omniglot_5w1s", sentence)])
    drawn = capsys.readouterr().out
    assert "experiment=maml_omniglot_5w1s" in drawn
    assert "…" not in drawn
    assert all(word in drawn for word in sentence.split())


def test_streams_of_inner_parts_are_those_of_the_outer_part(capsys):
    with lasting_streams(), lasting_streams():
        print("once")
    assert capsys.readouterr().out == "once\n"


LONG = ("train.iterations=100000", "train.val_every=100000", "train.log_every=1")


def started(folder: Path) -> None:
    wait_for(lambda: (folder / "metrics.jsonl").exists() and len(metrics(folder)) > 2)


def wait_for(condition) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_stops_is_the_exit_code(warm: Warm, tmp_path: Path, number: signal.Signals):
    folder = tmp_path / "run"
    process = warm.start("train", *merged((*LONG, f"hydra.run.dir={folder}")), cwd=tmp_path, log=tmp_path / "log")
    started(folder)
    os.kill(process.pid, number)
    assert process.wait() == 128 + number
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("interrupted", 128 + number)
    assert (folder / "checkpoints/last.pt").is_file()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_that_asks_for_a_checkpoint_gets_one_and_training_goes_on(warm, small, tmp_path, number):
    folder, last = tmp_path / "run", tmp_path / "run" / "checkpoints" / "last.pt"
    process = warm.start("train", *merged((*LONG, f"hydra.run.dir={folder}")), cwd=tmp_path, log=tmp_path / "log")
    started(folder)
    os.kill(process.pid, number)
    wait_for(last.is_file)
    seen = len(metrics(folder))
    wait_for(lambda: len(metrics(folder)) > seen)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert f"saved {json.loads((folder / 'status.json').read_text())['iteration']}/100000" in (tmp_path / "log").read_text()
    # the checkpoint is one to go on from: the rest of the run is that of a run that nobody has asked anything
    limit = json.loads((folder / "status.json").read_text())["iteration"] + 3
    shorter = (f"train.iterations={limit}", "train.val_every=100000", "train.log_every=1")
    assert metrics(small("run", *shorter, "resume=auto")) == metrics(small("whole", *shorter))
