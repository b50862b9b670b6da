"""Fine-tuning against torch's own SGD on a copy of the network, one task after the other."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from closed_form import SHAPE, TASK, TEST
from problems import TinyNet, random_episodes
from small_training import accuracy, everything, faint_patterns, is_at_chance, is_same, noise_classes, train
from torch import nn
from torch.nn import functional as F

from fsl_cli.algos.finetune import FineTune
from fsl_cli.backbones.batch_norm import statistics_from
from fsl_cli.backbones.mlp import MLP
from fsl_cli.episodes import EpisodeSampler, Task

TRAIN = EpisodeSampler(faint_patterns(seed=0), "train", Task(20, 1, 1), 0)


def finetune(**options) -> FineTune:
    torch.manual_seed(0)
    return FineTune(TinyNet(), 4, 7, **options).double()


def learner(cls: type[FineTune] = FineTune, **options) -> FineTune:
    torch.manual_seed(0)
    return cls(MLP(SHAPE, widths=[32]), 32, 60, train_ways=20, **options)


@pytest.mark.parametrize("batch_norm", ["inductive", "transductive"])
@pytest.mark.parametrize("engine", ["auto", "loop"])
def test_predict_is_torchs_sgd_on_a_copy_of_the_network(batch_norm, engine):
    algorithm, episodes = finetune(test_inner_steps=4, inner_lr=0.3, batch_norm=batch_norm, engine=engine), random_episodes()
    logits = algorithm.predict(episodes)
    for task in range(len(episodes)):
        support, labels, query = episodes.support.x[task], episodes.support.y[task], episodes.query.x[task]
        net, head = copy.deepcopy(algorithm.backbone), nn.Linear(4, 3).double()
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        optimizer = torch.optim.SGD([*net.parameters(), *head.parameters()], lr=0.3)
        for _ in range(4):
            optimizer.zero_grad()
            with statistics_from(net, "batch"):
                F.cross_entropy(head(net(support)), labels).backward()
            optimizer.step()
        if batch_norm == "transductive":
            expected = head(net(query))
        else:  # each query beside the support set, whose statistics normalise it
            with statistics_from(net, "first_rows", rows=len(support)):
                expected = torch.cat([head(net(torch.cat([support, each[None]])))[-1:] for each in query])
        torch.testing.assert_close(logits[task], expected.detach(), rtol=1e-8, atol=1e-10)


def test_no_step_leaves_a_head_of_zeros_and_steps_move_the_network_too():
    episodes = random_episodes()
    assert not finetune(test_inner_steps=0).predict(episodes).any()
    frozen = finetune(test_inner_steps=2)
    for parameter in frozen.backbone.parameters():
        parameter.data.zero_()  # with no features there is nothing to tell classes apart by
    assert not frozen.predict(episodes).any()
    assert finetune(test_inner_steps=2).predict(episodes).any()


def test_predict_changes_nothing_and_the_head_of_training_plays_no_part():
    algorithm, episodes = finetune(), random_episodes()
    before = everything(algorithm)
    logits = algorithm.predict(episodes)
    assert not logits.requires_grad
    assert is_same(everything(algorithm), before)
    algorithm.head.weight.data.normal_()
    assert torch.equal(algorithm.predict(episodes), logits)


def test_noise_is_classified_at_chance():
    assert is_at_chance(learner(), EpisodeSampler(noise_classes(), "test", TASK, 0), 200)


@pytest.fixture(scope="module")
def trained() -> FineTune:
    algorithm = learner()
    train(algorithm, TRAIN, iterations=200, meta_batch=1)
    return algorithm


def test_learns_to_tell_unseen_classes_apart(trained):
    assert accuracy(learner(), TEST, 100) < 0.4
    assert accuracy(trained, TEST, 100) > 0.6


def test_more_shots_are_better_also_with_more_ways(trained):
    one, five = (accuracy(trained, EpisodeSampler(faint_patterns(seed=1), "test", Task(20, k, 5), 0), 20) for k in (1, 5))
    assert 0.3 < one < five


def test_a_copy_trained_with_wrong_classes_learns_nothing():
    class Shuffled(FineTune):
        def loss(self, episodes):
            return super().loss(replace(episodes, classes=torch.randint(60, episodes.classes.shape)))

    algorithm = learner(Shuffled)
    train(algorithm, TRAIN, iterations=200, meta_batch=1)
    assert accuracy(algorithm, TEST, 100) < 0.4
