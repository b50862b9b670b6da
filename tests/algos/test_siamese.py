"""Siamese networks against loops over pairs, and against draws of balanced pairs."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from problems import TinyNet, of_embeddings, random_episodes
from small_training import faint_patterns, train

from fsl_cli.algos.siamese import Siamese, balanced_mean
from fsl_cli.backbones.batch_norm import statistics_from
from fsl_cli.backbones.mlp import MLP
from fsl_cli.episodes import Episodes, EpisodeSampler, Task

EXACT = {"rtol": 1e-10, "atol": 1e-12}


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def siamese() -> Siamese:
    torch.manual_seed(0)
    algorithm = Siamese(TinyNet(), 4).double()
    algorithm.alpha.data.normal_()
    algorithm.bias.data.fill_(0.3)
    return algorithm


def test_p_is_the_sigmoid_of_the_weighted_l1_distance():
    algorithm, support, query = siamese(), normal(2, 3, 4), normal(2, 5, 4)
    p = algorithm.log_odds(support, query).sigmoid()
    assert p.shape == (2, 5, 3)
    for task in range(2):
        for q in range(5):
            for s in range(3):
                pairs = zip(algorithm.alpha.tolist(), query[task, q].tolist(), support[task, s].tolist(), strict=True)
                total = sum(alpha * abs(one - other) for alpha, one, other in pairs) + 0.3
                assert p[task, q, s].item() == pytest.approx(1 / (1 + math.exp(-total)), rel=1e-6)


def test_a_class_is_as_likely_as_its_most_similar_image():
    algorithm, support, query = siamese(), normal(2, 4, 4), normal(2, 5, 4)
    labels = torch.tensor([[1, 0, 1, 0], [1, 1, 0, 1]])
    odds, logits = algorithm.log_odds(support, query), algorithm.classify(of_embeddings(support, labels, query, 2))
    for task in range(2):
        for q in range(5):
            for n in range(2):
                assert logits[task, q, n] == max(odds[task, q, s] for s in range(4) if labels[task, s] == n)


def test_the_loss_and_the_accuracy_are_of_all_pairs_same_and_different_weighing_half_each():
    algorithm, episodes = siamese(), random_episodes(ways=3, shots=2, queries=2)
    step = algorithm.loss(episodes)
    losses, rights = [], []
    for task in range(3):
        images = torch.cat([episodes.support.x[task], episodes.query.x[task]])
        labels = [*episodes.support.y[task].tolist(), *episodes.query.y[task].tolist()]
        with statistics_from(algorithm, "batch"), torch.no_grad():
            h = algorithm.backbone(images)
        values: dict[bool, list[float]] = {True: [], False: []}
        right: dict[bool, list[bool]] = {True: [], False: []}
        for i in range(12):
            for j in range(i):
                p = torch.sigmoid(((h[i] - h[j]).abs() * algorithm.alpha.detach()).sum() + 0.3).item()
                same = labels[i] == labels[j]
                values[same].append(-math.log(p if same else 1 - p))
                right[same].append((p > 0.5) is same)
        losses.append(sum(sum(each) / len(each) for each in values.values()) / 2)
        rights.append(sum(sum(each) / len(each) for each in right.values()) / 2)
    assert step.loss.item() == pytest.approx(sum(losses) / 3, rel=1e-6)
    assert step.metrics["verification_accuracy"].item() == pytest.approx(sum(rights) / 3, rel=1e-6)
    torch.testing.assert_close(step.outputs, siamese_with_batch_statistics(episodes), **EXACT)


def siamese_with_batch_statistics(episodes: Episodes) -> torch.Tensor:
    algorithm = siamese()
    with statistics_from(algorithm, "batch"), torch.no_grad():
        support, query = algorithm.embed_episodes(episodes)
        return algorithm.classify(episodes.with_embeddings(support, query))


def test_that_is_the_expectation_over_draws_of_as_many_same_as_different_pairs():
    odds, labels = normal(1, 8, 4), torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    same = (labels.unsqueeze(1) == torch.arange(4)).unsqueeze(0)
    losses = F.binary_cross_entropy_with_logits(odds, same.double(), reduction="none")
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for kind in (same, ~same):
        values = losses[kind]
        drawn.append(values[torch.randint(len(values), (20000,), generator=generator)])
    drawn = torch.cat(drawn)
    error = drawn.std() / len(drawn) ** 0.5
    assert abs(drawn.mean() - balanced_mean(losses, same, ~same)[0]) < 4 * error < 0.05


def test_the_order_survives_probabilities_that_are_rounded_to_one():
    algorithm = Siamese(MLP((1, 2, 2), widths=[2]), 2)
    algorithm.alpha.data.fill_(-1.0)
    algorithm.bias.data.fill_(60.0)
    support, query = torch.tensor([[[3.0, 0.0], [1.0, 0.0]]]), torch.zeros(1, 1, 2)
    logits = algorithm.classify(of_embeddings(support, torch.tensor([[0, 1]]), query, 2))
    assert torch.equal(logits.sigmoid(), torch.ones(1, 1, 2))
    assert logits.argmax().item() == 1


def test_verification_is_learned_on_classes_that_were_not_trained():
    torch.manual_seed(0)
    algorithm = Siamese(MLP((2, 4, 4), widths=[32]), 32, train_ways=None)
    unseen = EpisodeSampler(faint_patterns(seed=1), "test", Task(5, 1, 5), 0).batch(0, 200)
    before = algorithm.loss(unseen).metrics["verification_accuracy"]
    train(algorithm, EpisodeSampler(faint_patterns(seed=0), "train", Task(5, 1, 5), 0), iterations=200)
    after = algorithm.loss(unseen).metrics["verification_accuracy"]
    assert before < 0.65 < 0.8 < after
