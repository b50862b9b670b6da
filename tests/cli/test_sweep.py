"""Sweeps: a complete run folder per job, the same numbers as each job alone, one table at the end."""

from __future__ import annotations

import csv
import functools
import json
import os
import signal
import time

import pytest
import torch
from command_line import merged, metrics, results


@pytest.fixture
def sweep(fsl, tmp_path):
    folder = tmp_path / "sweep"
    words = merged(("algo=maml,protonet", "seed=0,1", "wandb.mode=offline"))
    outcome = fsl("train", *words, "-m", f"hydra.sweep.dir={folder}", "task.ways=4")
    return folder, outcome


def test_jobs_are_complete_and_equal_to_the_job_alone(sweep, fsl, tmp_path):
    folder, outcome = sweep
    assert outcome.code == 0, outcome.err
    jobs = [("maml", 0), ("maml", 1), ("protonet", 0), ("protonet", 1)]
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["0", "1", "2", "3"]
    for number, (algo, seed) in enumerate(jobs):
        job = folder / str(number)
        assert json.loads((job / "status.json").read_text())["state"] == "done"
        assert (results(job)["algo"], results(job)["seed"]) == (algo, seed)
    for number in (0, 3):
        algo, seed = jobs[number]
        alone = tmp_path / f"alone{number}"
        words = merged((f"algo={algo}", f"seed={seed}", "task.ways=4"))
        assert fsl("train", *words, f"hydra.run.dir={alone}").code == 0
        job = folder / str(number)
        assert results(alone) == results(job)
        assert metrics(alone) == metrics(job)
        ours, theirs = (torch.load(each / "checkpoints/last.pt", weights_only=True)["algo"] for each in (alone, job))
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_the_table_says_what_the_runs_say(sweep):
    folder, outcome = sweep
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == ["0", "1", "2", "3"]
    for row in rows:
        found = results(folder / row["run"])
        assert row["algo"] == found["algo"]
        assert float(row["accuracy %"]) == pytest.approx(100 * found["accuracy"]["mean"], abs=0.005)
        assert float(row["± 95% CI"]) == pytest.approx(100 * found["accuracy"]["ci95"], abs=0.005)
        assert row["mode"] == ("transductive" if found["transductive"] else "inductive")
    markdown = (folder / "results.md").read_text().splitlines()
    assert len(markdown) == 6
    assert all(line.count("|") == markdown[0].count("|") for line in markdown)
    assert "results.md" in outcome.out


def test_every_job_is_its_own_wandb_run_in_one_group(sweep):
    from wandb_file import read_wandb

    folder, _ = sweep
    runs = [read_wandb(path) for path in sorted(folder.glob("*/wandb/offline-run-*/*.wandb"))]
    assert len(runs) == 4
    assert {run.group for run in runs} == {"sweep"}
    assert [run.config["seed"] for run in runs] == [0, 1, 0, 1]
    for number, run in enumerate(runs):
        assert run.summary["test/accuracy_mean"] == pytest.approx(results(folder / str(number))["accuracy"]["mean"])


def test_a_job_that_fails_does_not_stop_the_others(fsl, tmp_path):
    folder = tmp_path / "sweep"
    words = merged(("task.ways=5,5000,4", f"hydra.sweep.dir={folder}"))
    outcome = fsl("train", "-m", *words)
    assert outcome.code == 2
    assert "5000 ways, but the val split has" in outcome.err
    with (folder / "results.csv").open() as file:
        states = [row["state"] for row in csv.DictReader(file)]
    assert [state.split(":")[0] for state in states] == ["done", "failed", "done"]
    assert "5000 ways" in states[1]


def test_an_interruption_stops_the_sweep_and_the_table_says_so(fsl, tmp_path, monkeypatch):
    from fsl_cli.training import Training

    step = Training.step

    def interrupted(self):
        if self.progress.iteration == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        step(self)

    monkeypatch.setattr(Training, "step", interrupted)
    folder = tmp_path / "sweep"
    outcome = fsl("train", "-m", *merged(("seed=0,1,2", f"hydra.sweep.dir={folder}")))
    assert outcome.code == 130
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["0"]
    with (folder / "results.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["state"].startswith("interrupted")


def test_the_table_is_where_the_jobs_are_however_long_the_checks_take(fsl, tmp_path, monkeypatch):
    from fsl_cli.commands import train

    check = train._check_everything

    def slow(*arguments):
        folder = check(*arguments)
        time.sleep(1.1)  # the clock in the folder's name moves on
        return folder

    monkeypatch.setattr(train, "_check_everything", slow)
    outcome = fsl("train", "-m", *merged(("seed=0,1",)))
    assert outcome.code == 0, outcome.err
    (folder,) = (tmp_path / "outputs/sweep").iterdir()
    assert {path.name for path in folder.iterdir()} == {"0", "1", "multirun.yaml", "results.md", "results.csv"}


def rows_of(folder):
    with (folder / "results.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_table_names_what_was_swept_and_every_folder(fsl, tmp_path):
    folder = tmp_path / "sweep"
    words = ("algo.inner_lr=0.1,0.4", "seed=0", f"hydra.sweep.dir={folder}", "hydra.sweep.subdir=lr_${algo.inner_lr}")
    outcome = fsl("train", "-m", *merged(words))
    assert outcome.code == 0, outcome.err
    rows = rows_of(folder)
    assert [(row["run"], row["algo.inner_lr"], row["state"]) for row in rows] == [
        ("lr_0.1", "0.1", "done"),
        ("lr_0.4", "0.4", "done"),
    ]
    assert (folder / "results.md").read_text().startswith("| run | algo.inner_lr | algo |")
    assert "algo.inner_lr" in outcome.out


def test_a_folder_with_a_clock_of_its_own_is_read_once(fsl, tmp_path):
    outcome = fsl("train", "-m", *merged(("seed=0,1", "hydra.sweep.dir='outputs/s_${now:%f}'")))
    assert outcome.code == 0, outcome.err
    (folder,) = (tmp_path / "outputs").iterdir()
    assert [row["state"] for row in rows_of(folder)] == ["done", "done"]


def test_a_job_that_finds_an_older_run_in_its_folder_has_no_result(fsl, tmp_path):
    words = merged(("seed=0,1", f"hydra.sweep.dir={tmp_path / 'sweep'}"))
    assert fsl("train", "-m", *words).code == 0
    older = results(tmp_path / "sweep" / "0")
    assert fsl("train", "-m", *words, "train.meta_batch=3").code == 2
    rows = rows_of(tmp_path / "sweep")
    assert all("already holds a run" in row["state"] for row in rows)
    assert not any(row["accuracy %"] for row in rows)
    assert results(tmp_path / "sweep" / "0") == older


def test_a_job_that_breaks_while_it_is_built_is_a_line_of_the_table(fsl, tmp_path, monkeypatch):
    from fsl_cli.backbones.mlp import MLP

    build = MLP.__init__

    @functools.wraps(build)
    def broken(self, image_shape, **options):
        if options["widths"] == [17]:
            raise RuntimeError("not enough memory")
        build(self, image_shape, **options)

    monkeypatch.setattr(MLP, "__init__", broken)
    folder = tmp_path / "sweep"
    words = [word for word in merged((f"hydra.sweep.dir={folder}",)) if not word.startswith("backbone.widths")]
    outcome = fsl("train", "-m", *words, "backbone.widths=[17],[16]")
    assert outcome.code == 1
    assert "unexpected RuntimeError: not enough memory (traceback: " in outcome.err
    rows = rows_of(folder)
    assert [(row["backbone.widths"], row["state"].split(":")[0]) for row in rows] == [("[17]", "failed"), ("[16]", "done")]
    alone = fsl("train", *words, "backbone.widths=[17]", f"hydra.run.dir={tmp_path / 'alone'}")
    assert alone.code == 1
    assert not (tmp_path / "alone").exists()
