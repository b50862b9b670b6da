"""Meta-testing: one value per episode, for any chunk size, and every image embedded once if embeddings suffice."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from problems import TinyNet, striped_classes
from small_training import CPU, everything, is_same
from torch import Tensor, nn

from fsl_cli import evaluation
from fsl_cli.algos.common.algorithm import Algorithm
from fsl_cli.algos.maml import MAML
from fsl_cli.algos.protonet import ProtoNet
from fsl_cli.backbones.mlp import MLP
from fsl_cli.compute.hardware import Hardware
from fsl_cli.episodes import EpisodeSampler, Task
from fsl_cli.evaluation import evaluate
from fsl_cli.statistics import classification as metrics

TASK = Task(3, 1, 2)


def protonet(batch_norm: str = "inductive") -> Algorithm:
    return ProtoNet(nn.Sequential(MLP((1, 12, 12), widths=[8]), nn.Dropout(0.2)), batch_norm=batch_norm)


def transductive() -> Algorithm:
    return protonet("transductive")


def meta_sgd() -> Algorithm:
    net = nn.Sequential(MLP((1, 12, 12), widths=[8]), nn.Dropout(0.2))
    return MAML(net, 8, TASK.ways, inner_lr=0.1, inner_lr_learning="per_parameter")


ALGORITHMS = {"protonet": protonet, "transductive": transductive, "meta-sgd": meta_sgd}


@pytest.mark.parametrize("make", ALGORITHMS.values(), ids=ALGORITHMS)
def test_evaluate_matches_a_plain_loop_over_episodes(make):
    torch.manual_seed(0)
    algorithm, sampler = make(), EpisodeSampler(striped_classes(seed=1), "test", TASK, 0)
    scores = evaluate(algorithm, sampler, 11, Hardware(torch.device("cpu"), "fp32", 4))
    algorithm.eval()
    for index in range(11):
        episode = sampler.batch(index, 1)
        probabilities = algorithm.predict(episode)[0].double().softmax(-1)
        right = [int(row.argmax() == label) for row, label in zip(probabilities, episode.query.y[0], strict=True)]
        loss = [-math.log(row[label]) for row, label in zip(probabilities.tolist(), episode.query.y[0], strict=True)]
        assert scores["accuracy"][index] == np.mean(right)
        assert scores["loss"][index] == pytest.approx(np.mean(loss), rel=1e-4)
    assert scores["accuracy"].dtype == scores["loss"].dtype == np.float64
    assert len(set(scores["accuracy"])) > 2


@pytest.mark.parametrize("make", ALGORITHMS.values(), ids=ALGORITHMS)
@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_evaluate_does_not_depend_on_the_chunk(make, chunk):
    torch.manual_seed(0)
    algorithm, sampler = make(), EpisodeSampler(striped_classes(seed=1), "test", TASK, 0)
    counted: list[int] = []
    scores = evaluate(algorithm, sampler, 20, Hardware(torch.device("cpu"), "fp32", chunk), counted.append)
    reference = evaluate(algorithm, sampler, 20, CPU)
    assert np.array_equal(scores["accuracy"], reference["accuracy"])
    np.testing.assert_allclose(scores["loss"], reference["loss"], rtol=1e-4)
    assert sum(counted) == 20
    assert len(counted) >= min(3, 20 / chunk)


@pytest.mark.parametrize("make", ALGORITHMS.values(), ids=ALGORITHMS)
@pytest.mark.parametrize("mode", [True, False])
def test_evaluate_leaves_the_algorithm_unchanged(make, mode):
    algorithm = make().train(mode)
    before = everything(algorithm)
    evaluate(algorithm, EpisodeSampler(striped_classes(seed=1), "test", TASK, 0), 5, CPU)
    assert is_same(everything(algorithm), before)


@pytest.mark.parametrize(("make", "part"), [(meta_sgd, "predict"), (protonet, "embed"), (protonet, "classify")])
def test_evaluate_restores_the_mode_when_it_fails(make, part, monkeypatch):
    algorithm = make().train()
    monkeypatch.setattr(algorithm, part, lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate(algorithm, EpisodeSampler(striped_classes(), "test", TASK, 0), 5, CPU)
    assert algorithm.training


# --- every image once


class Doubles(EpisodeSampler):
    """Episodes in float64; records which images were requested."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.asked: list[Tensor] = []

    def images(self, rows: Tensor) -> Tensor:
        self.asked.append(rows)
        return super().images(rows).double()


def doubles(task: Task = TASK) -> Doubles:
    return Doubles(striped_classes(seed=1), "test", task, 0)


def exact(batch_norm: str = "inductive", **options: Any) -> ProtoNet:
    torch.manual_seed(0)
    algorithm = ProtoNet(TinyNet(), batch_norm=batch_norm, **options).double()  # type: ignore[arg-type]
    algorithm.backbone.norm.running_mean.normal_()
    return algorithm


@pytest.mark.parametrize("task", [TASK, Task(5, 3, 4)], ids=str)
@pytest.mark.parametrize("distance", ["sqeuclidean", "cosine"])
@pytest.mark.parametrize(("chunk", "images"), [(1, 256), (3, 7), (64, 1), (64, 256)])
def test_embedding_every_image_once_matches_predict(task, distance, chunk, images, monkeypatch):
    monkeypatch.setattr(evaluation, "_IMAGES", images)
    monkeypatch.setattr(evaluation, "_DRAWN", 16)
    algorithm, sampler = exact(distance=distance), doubles(task)
    scores = evaluate(algorithm, sampler, 40, Hardware(torch.device("cpu"), "fp32", chunk))
    episodes = sampler.batch(0, 40)
    logits = algorithm.predict(episodes)
    assert np.array_equal(scores["accuracy"], metrics.accuracy(logits, episodes.query.y).numpy())
    np.testing.assert_allclose(scores["loss"], metrics.cross_entropy(logits, episodes.query.y).numpy(), rtol=1e-10)
    assert len(set(scores["accuracy"])) > 2


@pytest.mark.parametrize("chunk", [1, 64])
def test_only_images_that_occur_are_embedded_and_each_once(chunk, monkeypatch):
    monkeypatch.setattr(evaluation, "_IMAGES", 20)
    sampler = doubles()
    evaluate(exact(), sampler, 12, Hardware(torch.device("cpu"), "fp32", chunk))
    assert max(map(len, sampler.asked)) == min(20, 9 * chunk)  # never more than the chunk's episodes hold
    asked, expected = torch.cat(sampler.asked), np.unique(sampler.indices(0, 12).images)
    assert torch.equal(asked, torch.from_numpy(expected))
    assert len(expected) < len(sampler.source.images)


def test_transductive_episodes_are_embedded_as_a_whole(monkeypatch):
    algorithm, sampler = exact("transductive"), doubles()
    monkeypatch.setattr(algorithm, "embed", lambda images: 1 / 0)
    scores = evaluate(algorithm, sampler, 20, CPU)
    episodes = sampler.batch(0, 20)
    logits = algorithm.predict(episodes)
    assert np.array_equal(scores["accuracy"], metrics.accuracy(logits, episodes.query.y).numpy())
    apart = metrics.cross_entropy(exact("inductive").predict(episodes), episodes.query.y).numpy()
    assert not np.allclose(scores["loss"], apart)


def test_embedding_counts_as_half_of_the_progress(monkeypatch):
    monkeypatch.setattr(evaluation, "_IMAGES", 10)
    counted: list[int] = []
    algorithm, embed, classified = exact(), [], []
    forward, classify = algorithm.embed, algorithm.classify
    monkeypatch.setattr(algorithm, "embed", lambda images: embed.append(sum(counted)) or forward(images))
    monkeypatch.setattr(algorithm, "classify", lambda *args: classified.append(sum(counted)) or classify(*args))
    evaluate(algorithm, doubles(), 100, Hardware(torch.device("cpu"), "fp32", 10), counted.append)
    assert embed[0] == 0
    assert 40 < embed[-1] < classified[0] == 50
    assert classified == list(range(50, 100, 5))
    assert sum(counted) == 100


class Halves(Algorithm):
    """Predicts class 0 for every query; its curves are functions of the episodes' seeds."""

    transductive = False

    def loss(self, episodes):
        raise NotImplementedError

    def predict(self, episodes):
        return nn.functional.one_hot(torch.zeros_like(episodes.query.y), episodes.ways).float()

    def curve_points(self, task):
        return {"steps": [1, 2, 4], "instance": [1]}

    def score(self, episodes, *, curves=False):
        steps = episodes.seeds.remainder(7).float()
        along = {"steps": torch.stack([steps, steps / 2, steps / 4], dim=1), "instance": steps[:, None] / 8}
        return {**super().score(episodes), **(along if curves else {})}


def test_curves_are_scored_for_each_episode_where_they_are_asked_for():
    sampler = EpisodeSampler(striped_classes(seed=1), "test", TASK, 0)
    scores = evaluate(Halves(), sampler, 11, Hardware(torch.device("cpu"), "fp32", 4), curves=True)
    seeds = sampler.batch(0, 11).seeds.remainder(7).double().numpy()
    assert list(scores.curves) == ["steps", "instance"]
    np.testing.assert_array_equal(scores.curves["steps"], np.stack([seeds, seeds / 2, seeds / 4], axis=1))
    np.testing.assert_array_equal(scores.curves["instance"], seeds[:, None] / 8)
    np.testing.assert_allclose(scores["accuracy"], 1 / 3)
    assert evaluate(Halves(), sampler, 3, CPU).curves == {}
