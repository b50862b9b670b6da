"""Sweeps: a complete run folder per job, the same numbers as each job alone, one table at the end."""

from __future__ import annotations

import csv
import functools
import json
import math
import os
import shlex
import signal
import time

import pytest
import torch
from command_line import merged, metrics, results
from omegaconf import OmegaConf

from fsl_cli.results.tables import COLUMNS


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
    rows = rows_of(folder)
    assert [row["state"].split(":")[0] for row in rows] == ["done", "failed", "done"]
    assert "5000 ways" in rows[1]["state"]
    assert [row["ways"] for row in rows] == ["5", "5000", "4"]


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
    assert outcome.code == 143
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["0"]
    first, *others = rows_of(folder)
    assert first["state"].startswith("interrupted")
    assert [row["state"] for row in others] == ["failed: it was not started"] * 2
    assert [row["seed"] for row in others] == ["1", "2"]


def test_the_table_is_where_the_jobs_are_however_long_the_checks_take(fsl, tmp_path, monkeypatch):
    from fsl_cli.commands import train

    plan_sweep = train.plan_sweep

    def slow(*arguments):
        plan = plan_sweep(*arguments)
        time.sleep(1.1)  # the clock in the folder's name moves on
        return plan

    monkeypatch.setattr(train, "plan_sweep", slow)
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


def test_the_folder_of_a_job_may_have_the_time_in_its_name(fsl, tmp_path):
    folder = tmp_path / "sweep"
    name = "hydra.sweep.subdir='${hydra.job.num}_${now:%S-%f}'"
    outcome = fsl("train", "-m", *merged(("seed=0,1", f"hydra.sweep.dir={folder}", name)))
    assert outcome.code == 0, outcome.err
    assert [row["state"] for row in rows_of(folder)] == ["done", "done"]
    assert [path.name for path in sorted(folder.iterdir()) if path.is_dir()] == [row["run"] for row in rows_of(folder)]


def test_a_grid_that_an_experiment_names_is_run_as_it_says(fsl, tmp_path, monkeypatch):
    folder = tmp_path / "sweep"
    experiment = tmp_path / "mine" / "conf" / "experiment" / "grid.yaml"
    experiment.parent.mkdir(parents=True)
    experiment.write_text("# @package _global_\nhydra:\n  sweeper:\n    params:\n      seed: 5,6\n")
    monkeypatch.setenv("FSL_PLUGINS", str(tmp_path / "mine"))
    outcome = fsl("train", "-m", *merged(("experiment=grid", "eval.seed=3,4", f"hydra.sweep.dir={folder}")))
    assert outcome.code == 0, outcome.err
    assert [(row["seed"], row["eval.seed"]) for row in rows_of(folder)] == [("5", "3"), ("5", "4"), ("6", "3"), ("6", "4")]
    assert [results(folder / str(number))["seed"] for number in range(4)] == [5, 5, 6, 6]


def test_a_sweep_that_would_overwrite_older_runs_is_refused(fsl, tmp_path):
    words = ("seed=0,1", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert fsl("train", "-m", *merged(words)).code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "sweep").rglob("*") if path.is_file()}
    refused = fsl("train", "-m", *merged((*words, "train.meta_batch=3")))
    assert refused.code == 2
    assert refused.err.count("already holds a run (go on with resume=auto") == 2
    assert {path: path.read_bytes() for path in (tmp_path / "sweep").rglob("*") if path.is_file()} == before


def test_a_job_that_breaks_while_it_is_built_is_a_line_of_the_table(fsl, tmp_path, monkeypatch):
    from fsl_cli.backbones.mlp import MLP

    build = MLP.__init__

    @functools.wraps(build)
    def broken(self, example_shape, **options):
        if options["widths"] == [17]:
            raise RuntimeError("not enough memory")
        build(self, example_shape, **options)

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


def test_jobs_in_other_processes_are_read_from_their_folders(fsl, tmp_path):
    folder = tmp_path / "sweep"
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", f"hydra.sweep.dir={folder}")
    outcome = fsl("train", "-m", *merged(("task.ways=4,500",)), *launcher)
    assert outcome.code == 2
    done, failed = rows_of(folder)
    assert tuple(done) == COLUMNS
    assert done["state"] == "done"
    assert float(done["accuracy %"]) == pytest.approx(100 * results(folder / "0")["accuracy"]["mean"], abs=0.005)
    assert failed["state"].startswith("failed: task.ways: 500 ways, but the val split has")
    assert json.loads((folder / "0" / "env.json").read_text())["command"].startswith("fsl train -m")


def test_a_sweep_over_the_folders_of_another_one_is_refused_and_leaves_them_as_they_were(fsl, tmp_path):
    folder = tmp_path / "sweep"
    words = merged(("seed=0,1", f"hydra.sweep.dir={folder}"))
    assert fsl("train", "-m", *words).code == 0
    before = [path.read_bytes() for path in sorted(folder.rglob("*.*")) if path.is_file()]
    refused = fsl("train", "-m", *words, "resume=auto", "task.shots=2")
    assert refused.code == 2
    assert refused.err.count("task.shots was 1, now 2") == 2
    assert [path.read_bytes() for path in sorted(folder.rglob("*.*")) if path.is_file()] == before  # the table too
    assert [json.loads((folder / name / "status.json").read_text())["state"] for name in "01"] == ["done"] * 2
    assert fsl("train", "-m", *words, "resume=auto").code == 0
    assert [row["state"] for row in rows_of(folder)] == ["done"] * 2


def test_a_job_that_never_ends_counts_as_failed(fsl, tmp_path, monkeypatch):
    from fsl_cli.run import train

    run = train.SweepTask.__call__

    def killed(task, config):
        if config.seed == 1:
            raise KeyboardInterrupt  # nothing of the job is left, as when its machine goes away
        return run(task, config)

    monkeypatch.setattr(train.SweepTask, "__call__", killed)
    folder = tmp_path / "sweep"
    assert fsl("train", "-m", *merged(("seed=0,1", f"hydra.sweep.dir={folder}"))).code == 130
    assert [row["state"] for row in rows_of(folder)] == ["done", "failed: it was not started"]
    (folder / "0" / "status.json").write_text('{"state": "running", "launch": "another"}')
    assert fsl("train", "-m", *merged(("seed=0,1", f"hydra.sweep.dir={folder}", "resume=auto"))).code == 130
    assert rows_of(folder)[0]["state"] == "done"


def test_a_failed_job_returns_no_score_and_one_whose_status_stays_running_has_failed(fsl, tmp_path, monkeypatch):
    from fsl_cli.run.lifecycle import Life
    from fsl_cli.run.train import SweepTask

    returned = []
    run, done = SweepTask.__call__, Life.done
    monkeypatch.setattr(SweepTask, "__call__", lambda task, config: returned.append(run(task, config)))
    monkeypatch.setattr(Life, "done", lambda life, **details: life.details["job"] == 1 or done(life, **details))
    folder = tmp_path / "sweep"
    assert fsl("train", "-m", *merged(("task.ways=4,5,5000", f"hydra.sweep.dir={folder}"))).code == 2
    states = [row["state"] for row in rows_of(folder)]
    assert states[:2] == ["done", "failed: it has not ended: its status is running"]
    assert states[2].startswith("failed: task.ways: 5000 ways")
    for number in (0, 1):
        assert returned[number] == max(line["val/accuracy"] for line in metrics(folder / str(number)) if "val/accuracy" in line)
    assert math.isnan(returned[2])


def test_a_sweeper_goes_by_the_validation_score_and_the_test_split_may_stay_closed(fsl, tmp_path, monkeypatch):
    from fsl_cli.run import experiment

    opened = []
    assemble = experiment.assemble
    monkeypatch.setattr(
        experiment, "assemble", lambda *a, splits, **o: opened.append(splits) or assemble(*a, splits=splits, **o)
    )
    folder = tmp_path / "sweep"
    words = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.direction=maximize", "hydra.sweeper.n_jobs=1")
    searched = merged(("algo.inner_lr=interval(0.01,0.5)", "task.ways=choice(4,5)", "eval.episodes=0"))
    outcome = fsl("train", "-m", *searched, *words, f"hydra.sweep.dir={folder}")
    assert outcome.code == 0, outcome.err
    rows = rows_of(folder)
    assert [(row["run"], row["state"], row["accuracy %"]) for row in rows] == [(str(n), "done", "") for n in range(3)]
    assert len({row["algo.inner_lr"] for row in rows}) == 3
    assert opened == [("train", "val")] * 3
    assert not list(folder.rglob("results.json"))
    best = max(
        max(line["val/accuracy"] for line in metrics(folder / str(number)) if "val/accuracy" in line) for number in range(3)
    )
    assert OmegaConf.load(folder / "optimization_results.yaml").best_value == pytest.approx(best)


def test_a_launcher_that_is_not_installed_is_named(fsl):
    outcome = fsl("train", "-m", "seed=0,1", "hydra/launcher=slurmy")
    assert outcome.code == 2
    assert "hydra/launcher=slurmy: there is no slurmy (installed: basic, joblib; others come in packages" in outcome.err


def test_every_job_is_composed_and_checked_once(fsl, tmp_path, monkeypatch):
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    from fsl_cli.run import plan

    compose, validate, composed, checked = ConfigLoaderImpl.load_configuration, plan.validate, [], []

    def counted(self, config_name, overrides, *arguments, **options):
        composed.append(overrides)
        return compose(self, config_name, overrides, *arguments, **options)

    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", counted)
    monkeypatch.setattr(plan, "validate", lambda config: checked.append(config) or validate(config))
    assert fsl("train", *merged((f"hydra.run.dir={tmp_path / 'run'}",))).code == 0
    assert (len(composed), len(checked)) == (1, 1)
    assert fsl("train", "-m", *merged((f"hydra.sweep.dir={tmp_path / 'sweep'}", "seed=0,1,2"))).code == 0
    assert (len(composed) - 1, len(checked) - 1) == (4, 3)  # what the jobs have in common, then each of them


def test_auto_in_a_new_folder_of_a_sweep_names_the_command_that_goes_on(fsl, tmp_path):
    words = ("-m", *merged(("train.iterations=2", "seed=0,1", "resume=auto")))
    assert "to be able to go on: fsl train -m" in fsl("train", *words).err
    (folder,) = (tmp_path / "outputs" / "sweep").iterdir()
    command = fsl("train", *words).err.strip().partition("to go on with the newest run like this: ")[2]
    assert command.endswith(f" hydra.sweep.dir={folder}")
    outcome = fsl(*shlex.split(command)[1:])
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.count("resume  ") == 2
