"""`fsl eval`: reproduces the results of training; other tasks, data and batch normalisation."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import results

from fsl_cli.results.files import read_json


@pytest.mark.parametrize("algo", ["maml", "protonet"])
def test_it_reproduces_the_accuracy_exactly(small, fsl, tmp_path, algo):
    options = ["algo.train_ways=5"] if algo == "protonet" else []
    run = small("run", f"algo={algo}", "backbone=conv4", "backbone.filters=8", *options)
    outcome = fsl("eval", f"run={run}", f"hydra.run.dir={tmp_path / 'again'}")
    assert outcome.code == 0, outcome.err
    again = tmp_path / "again"
    assert results(again) == results(run)
    for name in ("accuracy", "loss"):
        assert np.array_equal(np.load(again / "episodes.npz")[name], np.load(run / "episodes.npz")[name])
    assert {path.name for path in again.iterdir()} == {
        "config.yaml",
        "env.json",
        "episodes.npz",
        "results.json",
        "run.log",
        "status.json",
    }


def test_the_size_of_a_chunk_does_not_matter(small, fsl, tmp_path):
    run = small("run")
    fsl("eval", f"run={run}", "hardware.task_chunk=5", f"hydra.run.dir={tmp_path / 'chunked'}")
    np.testing.assert_allclose(
        np.load(tmp_path / "chunked/episodes.npz")["loss"], np.load(run / "episodes.npz")["loss"], rtol=1e-5
    )


def test_overrides_change_the_task_and_nothing_else(small, fsl, tmp_path):
    run = small("run")
    words = ("task.ways=20", "task.shots=5", "eval.episodes=30", "algo.batch_norm=inductive", "algo.test_inner_steps=5")
    outcome = fsl("eval", *words, f"run={run}", f"hydra.run.dir={tmp_path / 'other'}")
    assert outcome.code == 0, outcome.err
    found = results(tmp_path / "other")
    assert found["task"] == {"ways": 20, "shots": 5, "queries": 2}
    assert found["accuracy"]["n"] == 30
    assert (results(run)["transductive"], found["transductive"]) == (True, False)
    assert found["accuracy"]["mean"] > 0.1  # chance is 0.05
    assert "20-way 5-shot" in outcome.out
    assert outcome.out.strip().splitlines()[-1].startswith("test  30 episodes")


def test_a_list_of_inner_steps_gives_the_accuracy_after_each_of_them(small, fsl, tmp_path):
    run = small("run")
    words = (f"run={run}", "eval.episodes=20", "algo.inner_lr=0.1")
    outcome = fsl("eval", *words, "algo.test_inner_steps=[5,0,1]", f"hydra.run.dir={tmp_path / 'curve'}")
    assert outcome.code == 0, outcome.err
    curve = results(tmp_path / "curve")["curves"]["inner_steps"]
    along = np.load(tmp_path / "curve/episodes.npz")["accuracy_by_inner_steps"]
    assert along.shape == (20, 3)
    assert [point["at"] for point in curve] == [0, 1, 5]
    for point, column in zip(curve, along.T, strict=True):
        fsl("eval", *words, f"algo.test_inner_steps={point['at']}", f"hydra.run.dir={tmp_path / str(point['at'])}")
        alone = tmp_path / str(point["at"])
        np.testing.assert_array_equal(np.load(alone / "episodes.npz")["accuracy"], column)
        assert {key: point[key] for key in ("mean", "ci95", "n", "method")} == results(alone)["accuracy"]
        assert "curves" not in results(alone)
        assert not (alone / "curves.png").exists()
        line = f"{point['at']}\t{100 * point['mean']:.2f} ± {100 * point['ci95']:.2f}\t20"
        assert line in outcome.out.splitlines()
    assert len({point["mean"] for point in curve}) > 1
    assert results(tmp_path / "curve")["accuracy"] == results(tmp_path / "5")["accuracy"]
    assert (tmp_path / "curve" / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.data
def test_another_data_set(small, fsl, tmp_path, omniglot_dir):
    run = small("run")
    words = ("dataset=omniglot", "dataset.rotations=false", f"data_dir={omniglot_dir}")
    outcome = fsl("eval", f"run={run}", *words, f"hydra.run.dir={tmp_path / 'omniglot'}")
    assert outcome.code == 0, outcome.err
    assert results(tmp_path / "omniglot")["dataset"] == "omniglot"
    assert results(tmp_path / "omniglot")["episodes_digest"] != results(run)["episodes_digest"]


def test_the_last_checkpoint(small, fsl, tmp_path):
    run = small("run", "train.iterations=8", "train.optimizer.lr=0.05")
    fsl("eval", f"run={run}", "eval.checkpoint=last", f"hydra.run.dir={tmp_path / 'last'}")
    assert results(tmp_path / "last")["checkpoint"] == "last"
    assert results(tmp_path / "last")["iteration"] == 8


def test_results_go_to_a_folder_of_their_own_by_default(small, fsl, tmp_path):
    run = small("run")
    before = read_json(run / "results.json")
    assert fsl("eval", f"run={run}").code == 0
    assert read_json(run / "results.json") == before
    (found,) = (tmp_path / "outputs/eval").iterdir()
    assert results(found) == before


def test_the_folder_may_be_named_after_the_run(small, fsl, tmp_path):
    run = small("run")
    assert fsl("eval", f"run={run}", "hydra.run.dir=${run}/again").code == 0
    assert results(run / "again") == results(run)


def test_folders_of_this_machine_override_the_saved_ones(small, fsl, tmp_path, monkeypatch):
    small("first")  # from here on there is a pack to copy, which is faster than packing anew
    others = shutil.ignore_patterns("omniglot*")
    there, here, own = (tmp_path / name for name in ("there", "here", "own"))
    for folder in (there, here, own):
        shutil.copytree(Path(os.environ["FSL_CACHE_DIR"]) / "packs", folder / "packs", ignore=others)
    run = small("run", f"cache_dir={there}")
    shutil.rmtree(there)
    monkeypatch.setenv("FSL_CACHE_DIR", str(here))
    assert fsl("eval", f"run={run}", f"hydra.run.dir={tmp_path / 'again'}").code == 0
    shutil.rmtree(here)
    assert fsl("eval", f"run={run}", f"hydra.run.dir={tmp_path / 'mine'}", f"cache_dir={own}").code == 0
    assert not there.exists()
    assert not here.exists()
    assert read_json(tmp_path / "again" / "results.json") == read_json(tmp_path / "mine" / "results.json")


def test_a_test_that_fails_leaves_its_reason(small, fsl, tmp_path, monkeypatch):
    from fsl_cli.run import meta_test

    run = small("run")

    def broken(*arguments, **options):
        raise RuntimeError("out of everything")

    monkeypatch.setattr(meta_test, "evaluate", broken)
    outcome = fsl("eval", f"run={run}", f"hydra.run.dir={tmp_path / 'eval'}")
    assert outcome.code == 1
    assert outcome.err == f"error: RuntimeError: out of everything (traceback: {tmp_path / 'eval' / 'run.log'})\n"
    status = json.loads((tmp_path / "eval" / "status.json").read_text())
    assert (status["state"], status["error"]) == ("failed", "RuntimeError: out of everything")
    assert "Traceback (most recent call last)" in (tmp_path / "eval" / "run.log").read_text()
