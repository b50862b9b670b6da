"""Runs tested on another data set, and runs that are trained on several, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from command_line import metrics, results
from PIL import Image

from fsl_cli.statistics.intervals import t_interval

NET = ("algo=protonet", "algo.train_ways=5", "algo.train_queries=2", "task.ways=3", "task.shots=1", "eval.episodes=40")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """15 classes of four colour photos."""
    random = np.random.default_rng(0)
    for number in range(15):
        folder = tmp_path / "photos" / f"class {number:02d}"
        folder.mkdir(parents=True)
        for k in range(4):
            noise = random.integers(0, 60, (24, 24, 3)) + np.array([12 * number, 180 - 12 * number, 90])
            Image.fromarray(noise.astype(np.uint8)).save(folder / f"{k}.png")
    return tmp_path / "photos"


def of_folder(photos: Path) -> tuple[str, ...]:
    return ("dataset=folder", f"dataset.root={photos}", "dataset.size=16", "dataset.fractions=[0.4,0.3,0.3]")


def test_a_run_on_grey_characters_is_tested_on_colour_photos(small, fsl, photos, tmp_path):
    run = small("run", *NET, "dataset=glyphs")
    done = fsl("eval", f"run={run}", *of_folder(photos), f"hydra.run.dir={tmp_path / 'other'}")
    assert done.code == 0, done.err
    assert "data    folder; weights and running averages are those of glyphs" in done.out
    assert "adapted folder: 3x16x16 as 1x28x28: luminance, resized (bilinear, antialiased)" in done.out
    found = results(tmp_path / "other")
    assert (found["dataset"], found["trained_on"]) == ("folder", "glyphs")
    assert found["adaptations"] == {"folder": "3x16x16 as 1x28x28: luminance, resized (bilinear, antialiased)"}
    assert found["accuracy"]["mean"] > 0.5  # chance is 1/3; the photos of a class have one colour
    assert "trained_on" not in results(run)
    assert "adaptations" not in results(run)


def test_a_run_on_colour_photos_is_tested_on_grey_characters(small, fsl, photos, tmp_path):
    run = small("run", *NET, *of_folder(photos))
    done = fsl("eval", f"run={run}", "dataset=glyphs", f"hydra.run.dir={tmp_path / 'other'}")
    assert done.code == 0, done.err
    assert "adapted glyphs: 1x28x28 as 3x16x16: grey repeated, resized (bilinear, antialiased)" in done.out
    found = results(tmp_path / "other")
    assert found["task"] == {"ways": 3, "shots": 1, "queries": 2}
    assert found["accuracy"]["n"] == 40


def test_vectors_of_another_width_are_refused_in_one_line(small, fsl, tmp_path):
    random = np.random.default_rng(0)
    for width in (8, 6):
        np.savez(tmp_path / f"{width}.npz", x=random.normal(size=(300, width)), y=np.arange(30).repeat(10))
    run = small("run", *NET, "dataset=features", f"dataset.file={tmp_path / '8.npz'}")
    refused = fsl("eval", f"run={run}", f"dataset.file={tmp_path / '6.npz'}", f"hydra.run.dir={tmp_path / 'other'}")
    message = "dataset: an example of features has the shape [6], and the trained network takes [8]"
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert message in refused.err
    refused = fsl("eval", f"run={run}", "dataset=glyphs", f"hydra.run.dir={tmp_path / 'pictures'}")
    assert "an example of glyphs has the shape [1, 28, 28], and the trained network takes [8]" in refused.err


def test_training_on_several_data_sets(small, fsl, photos, tmp_path):
    sets = f"dataset.sets={{glyphs:{{}},mine:{{dataset:folder,root:'{photos}',size:16,fractions:[0.4,0.3,0.3]}}}}"
    run = small("run", *NET, "dataset=mixture", sets, "dataset.weights=[1,3]", "dataset.size=12", "train.val_episodes=20")
    found = results(run)
    saved = yaml.safe_load((run / "config.yaml").read_text())["dataset"]["sets"]
    assert saved["glyphs"]["_target_"] == "fsl_cli.datasets.glyphs.Glyphs"
    assert saved["mine"]["size"] == 16
    assert found["adaptations"] == {
        "glyphs": "1x28x28 as 1x12x12: resized (bilinear, antialiased)",
        "mine": "3x16x16 as 1x12x12: luminance, resized (bilinear, antialiased)",
    }
    apart = {label: scores["accuracy"] for label, scores in found["sets"].items()}
    assert sum(each["n"] for each in apart.values()) == 40
    assert apart["mine"]["n"] > apart["glyphs"]["n"] > 1
    values = np.load(run / "episodes.npz")["accuracy"]
    together = sum(each["mean"] * each["n"] for each in apart.values()) / 40
    assert found["accuracy"]["mean"] == pytest.approx(together)
    assert found["accuracy"]["ci95"] == pytest.approx(t_interval(values).ci95)
    assert {"val/accuracy/glyphs", "val/accuracy/mine"} <= set(metrics(run)[-1])

    again = ("eval", f"run={run}", f"hydra.run.dir={tmp_path / 'again'}")
    refused = fsl(*again)
    assert refused.err.startswith("error: dataset.sets.mine.root: is missing: a test takes no folders from a saved run")
    assert fsl(*again, f"dataset.sets.mine.root={photos}").code == 0
    assert results(tmp_path / "again")["sets"] == found["sets"]
    assert results(tmp_path / "again")["episodes_digest"] == found["episodes_digest"]
    alone = fsl("eval", f"run={run}", "dataset=glyphs", f"hydra.run.dir={tmp_path / 'alone'}")
    assert "adapted glyphs: 1x28x28 as 1x12x12" in alone.out, alone.err
    assert results(tmp_path / "alone")["trained_on"] == "mixture"


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ("[glyphs,omniglott]", "dataset.sets.omniglott: there is no dataset omniglott (did you mean omniglot?"),
        ("[glyphs,glyphs]", "dataset.sets: ['glyphs', 'glyphs'] is not valid"),
        ("[glyphs,sinusoid]", "dataset.sets: sinusoid is regression, and only data sets with classes can be mixed"),
        ("[glyphs,folder]", "dataset.sets.folder.root: is missing"),
        ("{glyphs:{siez:20},omniglot:{}}", "dataset.sets.glyphs.siez: unknown option (did you mean size?"),
        ("{glyphs:{size:big},omniglot:{}}", "dataset.sets.glyphs.size: 'big' is not valid"),
        (
            "{glyphs:{},other:{_target_:fsl_cli.results.tracking.JsonLines,path:x,upto:0}}",
            "dataset.sets.other._target_: 'fsl_cli.results.tracking.JsonLines' may not be built here",
        ),
        ("{glyphs:{},other:{_target_:fsl_cli.backbones.mlp.MLP}}", "dataset.sets.other._target_: 'fsl_cli.backbones.mlp.MLP'"),
    ],
)
def test_sets_that_cannot_be_mixed_are_one_line(fsl, tmp_path, sets, message):
    words = ("algo=protonet", "dataset=mixture", f"dataset.sets={sets}", "wandb.mode=disabled")
    done = fsl("train", *words, f"hydra.run.dir={tmp_path / 'run'}")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert message in done.err
    assert not (tmp_path / "run").exists()


def test_a_received_mixture_names_only_data_sets_and_reads_nothing_of_the_environment(small, fsl, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    run = small("run", *NET, "dataset=mixture", "dataset.sets={a:{dataset:glyphs},b:{dataset:glyphs}}")
    saved = yaml.safe_load((run / "config.yaml").read_text())
    saved["dataset"]["sets"]["a"]["name"] = "${oc.env:SECRET}"
    (run / "config.yaml").write_text(yaml.safe_dump(saved))
    outcome = fsl("eval", f"run={run}", f"hydra.run.dir={tmp_path / 'again'}")
    assert outcome.code == 0, outcome.err
    assert "hunter2" not in json.dumps(yaml.safe_load((tmp_path / "again" / "config.yaml").read_text()))
    saved["dataset"]["sets"]["a"] = {"_target_": "fsl_cli.results.tracking.JsonLines", "path": str(tmp_path / "x"), "upto": 0}
    (run / "config.yaml").write_text(yaml.safe_dump(saved))
    outcome = fsl("eval", f"run={run}", f"hydra.run.dir={tmp_path / 'other'}")
    assert outcome.code == 2
    assert "dataset.sets.a._target_: 'fsl_cli.results.tracking.JsonLines' may not be built here" in outcome.err
