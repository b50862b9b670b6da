"""Regression with every method that has an inner loop: it learns, engines agree, and MSE is reported."""

from __future__ import annotations

import copy
import json
from typing import Any

import command_line
import numpy as np
import pytest
import torch
from small_training import CPU, train
from torch import nn

from fsl_cli.algos.common.algorithm import Algorithm
from fsl_cli.algos.maml import MAML
from fsl_cli.backbones.mlp import MLP
from fsl_cli.cli import main
from fsl_cli.datasets.sinusoid import Sinusoid
from fsl_cli.episodes import Regression, Task
from fsl_cli.evaluation import evaluate
from fsl_cli.inner.engines import ENGINES
from fsl_cli.run import episode_picture
from fsl_cli.run.parts import Parts
from fsl_cli.settings import build
from fsl_cli.show.pictures import draw_fit

METHODS = ["maml", "fomaml", "anil", "boil", "metasgd", "mamlpp", "reptile", "imaml", "meta_lstm", "finetune"]
TASK = Task(1, 10, 10)
DATA = Sinusoid()
TEST = DATA.sampler("test", TASK, 0)
EXACT = {"rtol": 1e-8, "atol": 1e-10}


def made(name: str, engine: str = "auto", **changes: Any) -> Algorithm:
    """The algorithm that ``algo=NAME dataset=sinusoid`` means."""
    config = command_line.composed(f"algo={name}", "dataset=sinusoid")
    torch.manual_seed(0)
    runtime = {"backbone": MLP((1,)), "features": 40, "ways": 1, "engine": engine, "classes": None, "problem": Regression()}
    return build.build({**config["algo"], **changes}, "algo", runtime)


@pytest.mark.parametrize("name", METHODS)
def test_learns_curves_that_it_adapts_to(name):
    steps = [0, 1] if name == "metasgd" else [0, 1, 10]  # its step sizes are learned for the one step of training
    algorithm = made(name, test_inner_steps=steps)
    before = evaluate(algorithm, TEST, 100, CPU)["mse"].mean()
    train(algorithm, DATA.sampler("train", algorithm.train_task(TASK), 0), lr=0.003, iterations=200, meta_batch=8)
    scores = evaluate(algorithm, TEST, 100, CPU, curves=True)
    curve = scores.curves["inner_steps"].mean(0)
    assert list(scores.values) == ["mse"]
    assert np.array_equal(scores["mse"], scores.curves["inner_steps"][:, -1])
    assert curve[-1] < 0.95 * curve[0]  # steps on the support set help
    assert curve[-1] < 0.95 * before  # and so does training


def test_the_score_is_the_mean_squared_error_of_what_is_predicted():
    algorithm, episodes = made("maml"), TEST.batch(0, 3)
    predicted = algorithm.predict(episodes)
    expected = [float(((a - b) ** 2).mean()) for a, b in zip(predicted.double(), episodes.query.y.double(), strict=True)]
    np.testing.assert_allclose(evaluate(algorithm, TEST, 3, CPU)["mse"], expected, rtol=1e-6)


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("adapt", ["all", "head", "body"])
@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "auto"])
def test_loss_and_meta_gradient_are_those_of_plain_autograd(engine, adapt, first_order):
    if (engine, adapt) == ("learn2learn", "body"):
        pytest.skip("learn2learn cannot")
    torch.manual_seed(0)
    options = {"inner_steps": 2, "inner_lr": 0.05, "adapt": adapt, "first_order": first_order}
    algorithm = MAML(MLP((1,), widths=[8, 6]), 6, 1, engine, **options).double()
    nn.init.normal_(algorithm.net.head.weight)
    reference = copy.deepcopy(algorithm.net)
    episodes = TEST.batch(0, 4).to(dtype=torch.float64)
    loss = algorithm.loss(episodes).loss
    loss.backward()

    parameters = dict(reference.named_parameters())
    moved = [name for name in parameters if adapt == "all" or name.startswith(adapt)]
    losses = []
    for task in range(4):
        weights = dict(parameters)
        for _ in range(2):
            outputs = torch.func.functional_call(reference, weights, episodes.support.x[task])
            error = (outputs - episodes.support.y[task]).square().mean()
            gradients = torch.autograd.grad(error, [weights[name] for name in moved], create_graph=not first_order)
            weights |= {name: weights[name] - 0.05 * each for name, each in zip(moved, gradients, strict=True)}
        outputs = torch.func.functional_call(reference, weights, episodes.query.x[task])
        losses.append((outputs - episodes.query.y[task]).square().mean())
    expected = torch.stack(losses).mean()
    expected.backward()
    torch.testing.assert_close(loss, expected, **EXACT)
    for (name, each), same in zip(algorithm.net.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(each.grad, same.grad, msg=lambda text, name=name: f"{name}: {text}", **EXACT)


@pytest.mark.parametrize("engine", ["fast", "vmap"])
@pytest.mark.parametrize("name", ["imaml", "reptile", "meta_lstm", "mamlpp", "metasgd"])
def test_engines_agree_for_other_methods(name, engine):
    episodes = TEST.batch(0, 3).to(dtype=torch.float64)
    one, other = (made(name, each).double() for each in ("loop", engine))
    losses = [each.loss(episodes).loss for each in (one, other)]
    torch.testing.assert_close(losses[1], losses[0], **EXACT)
    for each in losses:
        each.backward()
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None)
        if mine.grad is not None:
            torch.testing.assert_close(theirs.grad, mine.grad, **EXACT)


def test_fine_tuning_starts_from_the_network_that_was_trained_on_all_tasks():
    algorithm, episodes = made("finetune").double(), TEST.batch(0, 3).to(dtype=torch.float64)
    joint = algorithm.head(algorithm.backbone(episodes.query.x.flatten(0, 1))).view(3, -1, 1)
    torch.testing.assert_close(algorithm.outputs_after(episodes, [0])[0], joint, **EXACT)
    step = algorithm.loss(episodes)
    everything = episodes.support.followed_by(episodes.query)
    outputs = algorithm.head(algorithm.backbone(everything.x.flatten(0, 1))).view_as(everything.y)
    torch.testing.assert_close(step.loss, (outputs - everything.y).square().mean(), **EXACT)


def test_the_command_line_reports_the_mean_squared_error_everywhere(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    words = ["algo=maml", "dataset=sinusoid", "train.iterations=20", "train.val_every=10", "train.val_episodes=20"]
    words += [
        "train.log_every=10",
        "eval.episodes=30",
        "algo.test_inner_steps=[0,3]",
        "wandb.mode=disabled",
        "hardware.device=cpu",
    ]
    assert main(["train", *words, f"hydra.run.dir={folder}"]) == 0
    said = capsys.readouterr().out
    assert "val  10/20  mse " in said
    assert "best validation mse" in said
    assert "mse by inner_steps" in said or "inner_steps\tmse, 95% CI\tepisodes" in said
    assert "test  30 episodes  mse " in said
    assert "accuracy" not in said
    results = json.loads((folder / "results.json").read_text())
    assert (results["headline"], results["task"]) == ("mse", {"shots": 10, "queries": 10})
    assert results["scores"]["mse"]["mean"] == results["curves"]["inner_steps"][1]["mean"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {"train/mse", "val/mse", "val/mse_ci95"} <= {key for line in lines for key in line}
    with np.load(folder / "episodes.npz") as arrays:
        assert {name: arrays[name].shape for name in arrays} == {"mse": (30,), "mse_by_inner_steps": (30, 2)}
    assert json.loads((folder / "status.json").read_text())["mse"]["n"] == 30
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert main(["eval", f"run={folder}", "task.shots=5", "eval.episodes=10", f"hydra.run.dir={tmp_path / 'again'}"]) == 0
    assert "test  10 episodes  mse " in capsys.readouterr().out


def test_a_picture_of_an_episode_shows_the_curve_before_and_after(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(episode_picture, "draw_fit", lambda *args: drawn.append(args) or draw_fit(*args))
    algorithm = made("maml", test_inner_steps=[0, 3])
    parts = Parts(DATA, algorithm, CPU, TASK, TASK)
    validation = parts.sampler("val", 7)
    assert episode_picture.draw_validation_episode(parts, validation, 7, tmp_path / "fit.png")
    ((support, curve, predicted, path),) = drawn
    assert path.read_bytes().startswith(b"\x89PNG")
    assert torch.equal(support[0], validation.batch(0, 1).support.x[0, :, 0])
    assert list(predicted) == ["after 0 steps", "after 3 steps"]
    assert all(each.shape == curve[1].shape == (200,) for each in predicted.values())
    assert not torch.equal(*predicted.values())
