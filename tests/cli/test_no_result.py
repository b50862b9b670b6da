"""What is not finite is no result: predictions, weights, losses; and pictures that carry no signal are refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import merged, metrics, results

from fsl_cli.algos.common.algorithm import exact_scores
from fsl_cli.errors import FslError
from fsl_cli.results import tables
from fsl_cli.results.records import records
from fsl_cli.results.results import read_results


@pytest.fixture
def run(small) -> Path:
    return small("run", "algo=maml")


def test_predictions_that_are_not_finite_are_no_result(run, fsl, tmp_path):
    folder = tmp_path / "test"
    outcome = fsl("eval", f"run={run}", "algo.inner_lr=1e30", f"hydra.run.dir={folder}")
    assert outcome.code == 2
    assert "test  12 episodes  accuracy none: there are predictions that are not finite" in outcome.out.splitlines()
    reason = "test: there is no accuracy: predictions of 12 of 12 test episodes are not finite"
    assert outcome.err.startswith(f"error: {reason} (")
    assert outcome.err.count("\n") == 1
    text = (folder / "results.json").read_text()
    assert "NaN" not in text
    none = {"mean": None, "ci95": None, "n": 12, "method": "t"}
    assert json.loads(text)["scores"] == {"accuracy": none, "loss": none}
    assert json.loads(text)["accuracy"] == none
    read = read_results(folder / "results.json")
    assert read is not None
    assert not read.found
    assert np.isnan(np.load(folder / "episodes.npz")["accuracy"]).all()
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 2)
    row = tables.row(folder, "test")
    assert (row["accuracy %"], row["± 95% CI"], row["episodes"]) == ("none", "none", "12")
    assert row["state"].startswith(f"failed: {reason}")
    (record,) = records([folder])
    assert record["results.accuracy.mean"] is None


def test_the_points_of_a_curve_that_are_not_finite_are_marked_too(run, fsl, tmp_path):
    words = ("algo.inner_lr=1e30", "algo.test_inner_steps=[0,3]", f"hydra.run.dir={tmp_path / 'test'}")
    outcome = fsl("eval", f"run={run}", *words)
    assert outcome.code == 2
    before, after = results(tmp_path / "test")["curves"]["inner_steps"]
    assert 0 <= before["mean"] <= 1
    assert (after["at"], after["mean"], after["ci95"]) == (3, None, None)
    assert "3\tnone\t12" in outcome.out.splitlines()
    assert f"0\t{100 * before['mean']:.2f} ± {100 * before['ci95']:.2f}\t12" in outcome.out.splitlines()


def test_one_episode_without_a_prediction_is_enough(run, fsl, tmp_path, monkeypatch):
    from fsl_cli.algos.maml import MAML

    predict = MAML.predict

    def damaged(self, episodes):
        outputs = predict(self, episodes)
        outputs[0, 0, 0] = torch.inf
        return outputs

    monkeypatch.setattr(MAML, "predict", damaged)
    outcome = fsl("eval", f"run={run}", "hardware.task_chunk=12", f"hydra.run.dir={tmp_path / 'test'}")
    assert "predictions of 1 of 12 test episodes are not finite" in outcome.err
    assert results(tmp_path / "test")["loss"]["mean"] is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("algo=maml", "train.optimizer.lr=1e30"), "the loss is nan at iteration"),
        (("algo=maml", "train.optimizer.lr=1e30", "train.iterations=1"), "no validation has had finite predictions"),
        (
            ("algo=protonet", "algo.train_ways=5", "backbone=conv4", "train.optimizer.lr=1e9"),
            "weights are not finite at iteration 2: backbone.",
        ),
    ],
)
def test_training_that_diverges_has_no_result(fsl, tmp_path, words, said):
    outcome = fsl("train", *merged(words), f"hydra.run.dir={tmp_path / 'run'}")
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: train: {said}")
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "run" / "results.json").exists()
    assert not (tmp_path / "run" / "checkpoints" / "best.pt").exists()


def test_validations_that_are_not_finite_choose_no_checkpoint(small, fsl, tmp_path, monkeypatch):
    calls, broken = [], 1

    def damaged(algorithm, episodes):
        calls.append(episodes)
        return exact_scores(episodes, algorithm.classify(episodes) * (torch.nan if len(calls) <= broken else 1))

    monkeypatch.setattr("fsl_cli.evaluation._score_embedded", damaged)
    words = ("algo=protonet", "algo.train_ways=5", "hardware.task_chunk=12", "train.val_episodes=12")
    folder = small("run", *words)
    validated = [line["val/accuracy"] for line in metrics(folder) if "val/accuracy" in line]
    assert validated[0] is None
    assert None not in validated[1:]
    assert results(folder)["iteration"] > 2
    broken = 100
    outcome = fsl("train", *merged(words), f"hydra.run.dir={tmp_path / 'none'}")
    assert outcome.code == 2
    assert "train: no validation has had finite predictions" in outcome.err
    assert "accuracy none  loss none\n" in outcome.out
    assert not (tmp_path / "none" / "checkpoints" / "best.pt").exists()


def test_weights_that_are_not_finite_are_refused(run, fsl, tmp_path):
    for name in ("best", "last"):
        path = run / "checkpoints" / f"{name}.pt"
        payload = torch.load(path, weights_only=True)
        first = next(iter(payload["algo"]))
        payload["algo"][first].view(-1)[-1] = torch.nan
        torch.save(payload, path)
    said = f".pt: holds weights that are not finite: {first} (the training has diverged"
    outcome = fsl("eval", f"run={run}", f"hydra.run.dir={tmp_path / 'test'}")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert f"best{said}" in outcome.err
    assert not (tmp_path / "test").exists()
    resumed = fsl("train", *merged(("algo=maml", "train.iterations=8", f"hydra.run.dir={run}", "resume=auto")))
    assert resumed.code == 2
    assert f"last{said}" in resumed.err


def test_a_model_does_not_answer_with_numbers_that_are_not_finite(run):
    import fsl_cli

    model = fsl_cli.load(run)
    x = torch.rand(10, 1, 28, 28)
    labels = [*range(5)] * 2
    assert np.isfinite(model.predict(x, labels, x).outputs).all()
    with pytest.raises(FslError, match="support_x: has values that are not finite"):
        model.predict(x * torch.nan, labels, x)
    with pytest.raises(FslError, match="query_x: has values that are not finite"):
        model.predict(x, labels, torch.full_like(x, torch.inf))
    with pytest.raises(FslError, match="the predictions are not finite"):
        fsl_cli.load(run, ["algo.inner_lr=1e30"]).predict(x, labels, x)


DATA_SET = """
import numpy as np, torch
from fsl_cli.datasets.dataset import ImageClasses
from fsl_cli.datasets.sinusoid import Sinusoid
from fsl_cli.episodes.class_images import ClassImages
class Pictures(ImageClasses):
    name = "pictures"
    image_shape = (1, 8, 8)
    def __init__(self, *, blank: str = "none", share: float = 0.0):
        self.blank, self.share = blank, share
    def counts(self, name):
        return np.full(10, 20)
    def split(self, name):
        pixels = torch.randint(0, 256, (200, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        if self.blank == name:
            pixels[:] = 255
        pixels[torch.rand(200, generator=torch.Generator().manual_seed(1)) < self.share] = 0
        return ClassImages(pixels, self.counts(name), [f"{name} {index}" for index in range(10)])
class Curves(Sinusoid):
    def __init__(self, *, damaged: str = "none"):
        super().__init__()
        self.damaged = damaged
    def sampler(self, split, *arguments):
        sampler = super().sampler(split, *arguments)
        batch = sampler.batch
        def damaged(first, count):
            episodes = batch(first, count)
            getattr(episodes.query, self.damaged)[:, 0] = torch.nan
            return episodes
        if self.damaged != "none":
            sampler.batch = damaged
        return sampler
"""


@pytest.fixture
def data_sets(tmp_path, monkeypatch):
    """``dataset=pictures`` and ``dataset=curves``, whose pictures can be blank and whose numbers can be NaN."""
    conf = tmp_path / "plugged" / "conf" / "dataset"
    conf.mkdir(parents=True)
    (tmp_path / "plugged" / "odd_data.py").write_text(DATA_SET)
    (conf / "pictures.yaml").write_text("name: pictures\n_target_: odd_data.Pictures\nblank: none\nshare: 0.0\n")
    curves = "dataset:\n  name: curves\n  _target_: odd_data.Curves\n  damaged: none\ntask:\n  ways: null\n"
    (conf / "curves.yaml").write_text(f"# @package _global_\n{curves}")
    monkeypatch.setenv("FSL_PLUGINS", str(tmp_path / "plugged"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    sys.modules.pop("odd_data", None)


@pytest.mark.usefixtures("data_sets")
@pytest.mark.parametrize("split", ["train", "val"])
def test_pictures_without_a_signal_are_noticed_before_training(fsl, tmp_path, split):
    outcome = fsl("train", *merged(("algo=protonet", "algo.train_ways=5", "dataset=pictures", f"dataset.blank={split}")))
    assert outcome.code == 2
    said = f"error: dataset: the {split} split has an episode whose examples are all the same ("
    assert outcome.err.startswith(said)
    assert outcome.err.count("\n") == 1
    assert not list(tmp_path.rglob("status.json"))


@pytest.mark.usefixtures("data_sets")
def test_a_test_split_without_a_signal_gives_no_result(small, fsl, tmp_path):
    run = small("run", "dataset=pictures")
    outcome = fsl("eval", f"run={run}", "dataset.blank=test", f"hydra.run.dir={tmp_path / 'test'}")
    assert outcome.code == 2
    assert "the test split has an episode whose examples are all the same" in outcome.err
    assert not (tmp_path / "test" / "results.json").exists()


@pytest.mark.usefixtures("data_sets")
@pytest.mark.parametrize("damaged", ["x", "y"])
def test_examples_that_are_not_finite_are_noticed_before_training(fsl, small, tmp_path, damaged):
    words = ("algo=maml", "dataset=curves", "backbone.widths=[8]")
    small("run", *words)
    outcome = fsl("train", *merged((*words, f"dataset.damaged={damaged}", f"hydra.run.dir={tmp_path / 'damaged'}")))
    assert outcome.code == 2
    assert "the train split has examples that are not finite numbers" in outcome.err
    assert not (tmp_path / "damaged").exists()


@pytest.mark.usefixtures("data_sets")
@pytest.mark.parametrize(("share", "warns"), [(0.2, True), (0.0, False)])
def test_blank_images_among_others_are_a_warning(fsl, tmp_path, share, warns):
    words = merged(("dataset=pictures", f"dataset.share={share}", f"hydra.run.dir={tmp_path / 'run'}"))
    outcome = fsl("train", *words)
    assert outcome.code == 0
    for split in ("train", "val", "test"):
        assert (f"images of the {split} split that were looked at are blank; look at the files" in outcome.err) == warns


@pytest.mark.parametrize(("lr", "diverged"), [(1e6, True), (1e-3, False)])
def test_a_training_that_has_diverged_to_finite_weights_is_marked(small, fsl, tmp_path, lr, diverged):
    words = ("algo=maml", f"train.optimizer.lr={lr}", "eval.episodes=200")
    outcome = fsl("train", *merged(words), f"hydra.run.dir={tmp_path / 'run'}")
    assert outcome.code == 0
    (line,) = [line for line in outcome.out.splitlines() if line.startswith("test ")]
    assert ("% (95% CI, t), with a loss of " in line) == diverged
    assert ("warning: training or the inner loop has diverged" in outcome.err) == diverged
    assert results(tmp_path / "run")["diverged"] == diverged
    assert tables.row(tmp_path / "run", "run")["state"] == ("done, diverged" if diverged else "done")
