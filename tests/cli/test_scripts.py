"""The scripts, run as by a user; the `fsl` that they start is a fork, to save the import time."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from command_line import SMALL, merged, results, shell

from fsl_cli.settings.conf_files import choices

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(autouse=True)
def forks(warm, monkeypatch) -> None:
    monkeypatch.setenv("FSL", str(warm.fsl))


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open() as file:
        return list(csv.DictReader(file))


def test_meta_test_evaluates_every_run_at_every_task_and_says_what_failed(small, tmp_path):
    small("runs/one")
    small("runs/two", "seed=1")
    out = tmp_path / "out"
    words = ("runs/*", "nowhere", "ways=3,5000", "shots=2", "episodes=10", f"out={out}", "algo.batch_norm=inductive")
    done = shell(SCRIPTS / "meta_test.sh", *words, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    table = rows(out)
    assert [(row["run"], row["ways"], row["state"].split(":")[0]) for row in table] == [
        ("runs/one", "3", "done"),
        ("runs/one", "5000", "failed"),
        ("runs/two", "3", "done"),
        ("runs/two", "5000", "failed"),
        ("nowhere", "3", "failed"),
        ("nowhere", "5000", "failed"),
    ]
    assert "5000 ways, but the test split has" in table[1]["state"]
    assert "is not a run folder" in table[4]["state"]
    assert table[0]["mode"] == "inductive"
    assert float(table[0]["accuracy %"]) == pytest.approx(100 * results(out / "0")["accuracy"]["mean"], abs=0.005)
    assert results(out / "0")["accuracy"]["n"] == 10
    assert (out / "results.md").read_text().count("\n") == 8
    assert str(out / "results.md") in done.stdout


def test_meta_test_takes_a_sweep_and_succeeds_when_all_do(fsl, tmp_path):
    words = merged(("seed=0,1", f"hydra.sweep.dir={tmp_path / 'sweep'}"))
    assert fsl("train", "-m", *words).code == 0
    done = shell(SCRIPTS / "meta_test.sh", tmp_path / "sweep", "episodes=6", f"out={tmp_path / 'out'}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [row["seed"] for row in rows(tmp_path / "out")] == ["0", "1"]


def test_meta_test_takes_lists_and_leaves_older_tables_alone(small, tmp_path):
    small("runs/one")
    words = (SCRIPTS / "meta_test.sh", "runs/one", "episodes=6", "algo.test_inner_steps=[0,1]", f"out={tmp_path / 'out'}")
    assert shell(*words, cwd=tmp_path).returncode == 0
    (row,) = rows(tmp_path / "out")
    assert row["state"] == "done"
    assert [point["at"] for point in results(tmp_path / "out" / "0")["curves"]["inner_steps"]] == [0, 1]
    again = shell(*words, cwd=tmp_path)
    assert again.returncode == 2
    assert "is not empty: choose another out=" in again.stderr
    assert rows(tmp_path / "out") == [row]


def test_meta_test_without_runs_says_how_it_is_used(tmp_path):
    done = shell(SCRIPTS / "meta_test.sh", "ways=5", cwd=tmp_path)
    assert done.returncode == 2
    assert "which runs?" in done.stderr


def test_the_sweep_over_step_sizes(tmp_path):
    words = merged(("algo.inner_lr=0.1,0.4", "seed=0", f"hydra.sweep.dir={tmp_path / 'sweep'}"))
    done = shell(SCRIPTS / "sweep_inner_lr.sh", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [row["state"] for row in rows(tmp_path / "sweep")] == ["done", "done"]


def test_settings_of_the_scripts_may_be_written_as_sweep_agents_do(small, tmp_path):
    small("run")
    words = [
        f"--{word}" for word in merged(("algo.inner_lr=0.1", "seed=0", "dataset=glyphs", f"hydra.sweep.dir={tmp_path / 's'}"))
    ]
    done = shell(SCRIPTS / "sweep_inner_lr.sh", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [row["state"] for row in rows(tmp_path / "s")] == ["done"]
    words = ("run", "--shots=2", "--episodes=6", "--algo.batch_norm=inductive", f"--out={tmp_path / 'out'}")
    done = shell(SCRIPTS / "meta_test.sh", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [(row["shots"], row["mode"], row["episodes"]) for row in rows(tmp_path / "out")] == [("2", "inductive", "6")]


BOARD = ("minutes=0.005", "episodes=8", *(word for word in SMALL if not word.startswith(("train.iterations", "eval."))))


def test_the_leaderboard_trains_every_method_for_the_same_time_and_keeps_finished_rows(tmp_path):
    methods = "methods=protonet,maml+algo.inner_steps=2,protonet+algo.distance=cosine+algo.scale=10,maml+algo.inner_stps=1"
    words = (SCRIPTS / "leaderboard.sh", "--jobs", "2", methods, *BOARD, "--dataset=glyphs", f"--out={tmp_path / 'board'}")
    done = shell(*words, cwd=tmp_path)
    assert done.returncode == 1  # one of the methods is misspelled
    table = rows(tmp_path / "board")
    assert {row["run"] for row in table} == set(methods.removeprefix("methods=").split(","))
    assert [row["state"] for row in table[:3]] == ["done"] * 3
    assert "did you mean algo.inner_steps" in table[3]["state"]
    assert sorted((float(row["accuracy %"]) for row in table[:3]), reverse=True) == [
        float(row["accuracy %"]) for row in table[:3]
    ]
    folders = sorted(path for path in (tmp_path / "board").iterdir() if (path / "results.json").exists())
    assert len(folders) == 3
    assert len({results(folder)["episodes_digest"] for folder in folders}) == 1
    assert all(results(folder)["accuracy"]["n"] == 8 for folder in folders)
    times = [(folder / "results.json").stat().st_mtime_ns for folder in folders]
    interrupted = folders[0]
    for name in ("results.json", "status.json"):
        (interrupted / name).unlink()
    again = shell(*words, cwd=tmp_path)
    assert again.stdout.count("kept") == 2
    assert "resume " in (tmp_path / "board" / f"{interrupted.name}.log").read_text()
    assert [(folder / "results.json").stat().st_mtime_ns for folder in folders[1:]] == times[1:]
    assert {row["state"] for row in rows(tmp_path / "board")[:3]} == {"done"}
    other = shell(*words, "task.shots=2", cwd=tmp_path)
    assert other.returncode == 2
    assert "holds rows with other settings" in other.stderr


def leaderboard_words(folder: Path, *words: str) -> list[list[str]]:
    """The arguments of each ``fsl train`` of a leaderboard, recorded by a replacement of ``fsl`` that fails."""
    write = f'if [ "$1" = train ]; then echo "$@" >> {folder}/words; exit 1; fi'
    programs = {"fsl": f'{write}; exec {sys.executable} -m fsl_cli "$@"', "python": f'exec {sys.executable} "$@"'}
    for name, line in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    done = shell(SCRIPTS / "leaderboard.sh", *words, cwd=folder, FSL=str(folder / "fsl"), PYTHONPATH=str(SCRIPTS.parent))
    assert done.returncode == 1, done.stderr
    return [line.split() for line in (folder / "words").read_text().splitlines()]


def test_by_default_the_leaderboard_has_every_method_for_ten_minutes_on_omniglot(tmp_path):
    lines = leaderboard_words(tmp_path, "--jobs", "100")
    assert sorted(line[1] for line in lines) == sorted(f"algo={name}" for name in [*choices("algo"), "nearest"])
    common = {"train.max_minutes=10", "eval.episodes=1000", "hardware.threads=1", "dataset=omniglot", "resume=auto"}
    assert all(common <= set(line) for line in lines)
    assert {"algo.space=network" in line for line in lines if line[1] == "algo=nearest"} == {True, False}
    assert len(rows(tmp_path / "outputs" / "leaderboard" / "omniglot_10min")) == len(lines)


def test_a_list_in_the_overrides_of_a_method_keeps_its_commas(tmp_path):
    lines = leaderboard_words(tmp_path, "methods=maml+algo.test_inner_steps=[0,1]+seed=3,protonet")
    assert [line[1] for line in lines] == ["algo=maml", "algo=protonet"]
    assert {"algo.test_inner_steps=[0,1]", "seed=3"} <= set(lines[0])
    assert not any("[" in word for word in lines[0] if word.startswith("hydra.run.dir="))


def test_an_interrupted_leaderboard_leaves_no_training_behind(tmp_path):
    words = ("--jobs", "2", "methods=protonet,maml", *BOARD, "minutes=9", "dataset=glyphs", f"out={tmp_path / 'board'}")
    states = [tmp_path / "board" / name / "status.json" for name in ("protonet", "maml")]
    script = subprocess.Popen(
        [SCRIPTS / "leaderboard.sh", *words],
        cwd=tmp_path,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # what runs the tests may ignore it
    )
    try:
        wait_for(lambda: all(state.exists() and (state.parent / "metrics.jsonl").exists() for state in states))
        script.send_signal(signal.SIGINT)
        assert script.wait(60) == 130
        running = processes()
    except subprocess.TimeoutExpired:
        logs = [log.read_text() for log in sorted((tmp_path / "board").glob("*.log"))]
        pytest.fail("\n".join(["the script did not end", processes(), *logs]))
    finally:
        with suppress(ProcessLookupError):
            os.killpg(script.pid, signal.SIGKILL)
        script.wait()
    assert [json.loads(state.read_text())["state"] for state in states] == ["interrupted"] * 2
    assert str(tmp_path) not in running


def processes() -> str:
    """The command lines of all processes."""
    return subprocess.run(["ps", "-eo", "pid,ppid,stat,args"], capture_output=True, text=True, check=True).stdout


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--jobs=x",), "--jobs: x is not valid"),
        (("maml",), "maml: what is it?"),
        (("methods=maml+a=[0,1",), "no closing bracket"),
    ],
)
def test_invalid_arguments_of_the_leaderboard_are_one_line(words, message, tmp_path):
    done = shell(SCRIPTS / "leaderboard.sh", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.parametrize("script", ["meta_test.sh", "sweep_inner_lr.sh", "leaderboard.sh"])
def test_help(script, tmp_path):
    shown = shell(SCRIPTS / script, "--help", cwd=tmp_path)
    assert shown.returncode == 0
    assert f"scripts/{script}" in shown.stdout
