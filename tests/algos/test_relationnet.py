"""Relation networks against a network of torch's own layers that concatenates every pair."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from problems import random_episodes
from small_training import CPU, accuracy, faint_patterns, train, train_settings
from torch import nn

from fsl_cli.algos.relationnet import Relation, RelationNet
from fsl_cli.backbones.batch_norm import statistics_from
from fsl_cli.backbones.conv4 import Conv4
from fsl_cli.backbones.mlp import MLP
from fsl_cli.episodes import Classification, Episodes, EpisodeSampler, Examples, Task
from fsl_cli.training import Training

EXACT = {"rtol": 1e-10, "atol": 1e-12}


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def layers(relation: Relation) -> list[nn.Module]:
    return [each for each in relation.modules() if not list(each.children())]


def plain(channels: int, filters: int, hidden: int, size: int) -> nn.Sequential:
    """The relation module of the paper for square maps, of torch's layers."""
    net: list[nn.Module] = []
    for inputs in (2 * channels, filters):
        kernel = 3 if size > 1 else 1
        net += [nn.Conv2d(inputs, filters, kernel, padding=kernel // 2), nn.BatchNorm2d(filters), nn.ReLU()]
        if size > 1:
            net.append(nn.MaxPool2d(2))
            size //= 2
    net += [nn.Flatten(), nn.Linear(filters * size**2, hidden), nn.ReLU(), nn.Linear(hidden, 1), nn.Sigmoid()]
    return nn.Sequential(*net).double()


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("source", ["batch", "running"])
def test_the_relation_module_is_the_papers_on_every_concatenated_pair(size, source):
    torch.manual_seed(0)
    relation, theirs = Relation((3, size, size), 4, 5).double(), plain(3, 4, 5, size)
    mine = layers(relation)
    for layer, other in zip(mine, [each for each in theirs if not isinstance(each, nn.Sigmoid)], strict=True):
        for name, value in layer.named_parameters():
            value.data.normal_()
            getattr(other, name).data.copy_(value.data)
        if isinstance(other, nn.BatchNorm2d):
            layer.running_mean.normal_()
            other.running_mean.copy_(layer.running_mean)
    theirs.train(source == "batch")
    classes, query = normal(1, 3, 3, size, size), normal(1, 4, 3, size, size)
    pairs = torch.stack([torch.cat([classes[0, n], query[0, q]]) for q in range(4) for n in range(3)])
    with statistics_from(relation, source):
        scores = relation(classes, query).sigmoid()
    torch.testing.assert_close(scores, theirs(pairs).view(1, 4, 3), **EXACT)


def test_maps_that_are_not_square():
    torch.manual_seed(0)
    assert Relation((2, 1, 4), 3, 4)(torch.rand(2, 3, 2, 1, 4), torch.rand(2, 5, 2, 1, 4)).shape == (2, 5, 3)
    assert Relation((2, 2, 5), 3, 4)(torch.rand(2, 3, 2, 2, 5), torch.rand(2, 5, 2, 2, 5)).shape == (2, 5, 3)


@pytest.mark.parametrize("combine", ["sum", "mean"])
def test_a_class_is_the_sum_or_the_mean_of_its_maps(combine):
    algorithm = RelationNet(MLP((1, 4, 4), widths=[4]), (1, 4, 4), combine=combine)
    embedded, labels = normal(2, 5, 3, 2, 2), torch.tensor([[1, 0, 1, 1, 2], [2, 0, 1, 0, 2]])
    maps = algorithm.class_maps(embedded, labels, 3)
    for task in range(2):
        for label in range(3):
            rows = [embedded[task, row] for row in range(5) if labels[task, row] == label]
            expected = sum(rows) if combine == "sum" else sum(rows) / len(rows)
            torch.testing.assert_close(maps[task, label], expected, **EXACT)


def test_the_loss_is_the_mean_squared_error_of_the_scores_and_the_metrics_are_their_means():
    torch.manual_seed(0)
    algorithm = RelationNet(Conv4((1, 28, 28), filters=4), (1, 28, 28)).double()
    episodes = random_episodes(ways=3, size=28)
    step = algorithm.loss(episodes)
    assert algorithm.relation.first.weight.shape == (64, 8, 3, 3)
    errors, same, different = [], [], []
    for scores, labels in zip(step.outputs.sigmoid(), episodes.query.y, strict=True):
        for query, label in enumerate(labels.tolist()):
            for n in range(3):
                score = scores[query, n].item()
                errors.append((score - (n == label)) ** 2)
                (same if n == label else different).append(score)
    assert step.loss.item() == pytest.approx(sum(errors) / len(errors))
    assert step.metrics["relation_same"].item() == pytest.approx(sum(same) / len(same))
    assert step.metrics["relation_different"].item() == pytest.approx(sum(different) / len(different))


def test_the_gradients_of_both_networks_are_clipped_separately():
    torch.manual_seed(0)
    algorithm = RelationNet(MLP((2, 4, 4), widths=[32]), (2, 4, 4), train_ways=None)
    networks = [list(algorithm.backbone.parameters()), list(algorithm.relation.parameters())]
    assert [id(each) for network in networks for each in network] == [id(each) for each in algorithm.parameters()]
    episodes = EpisodeSampler(faint_patterns(seed=0), "train", Task(5, 1, 5), 0)
    norms = {}
    for clip in (1e9, 1e-3):
        optimizer = torch.optim.SGD(algorithm.parameters(), lr=0.0)
        Training(algorithm, optimizer, episodes, train_settings(clip_grad_norm=clip), CPU).step()
        norms[clip] = [torch.cat([each.grad.flatten() for each in network]).norm().item() for network in networks]
    assert min(norms[1e9]) > 1e-3
    assert norms[1e-3] == pytest.approx([1e-3, 1e-3], rel=1e-3)


def test_predictions_are_the_logits_of_the_scores_of_the_maps():
    torch.manual_seed(0)
    net = Conv4((1, 28, 28), filters=4)
    algorithm = RelationNet(net, (1, 28, 28)).double()
    episodes = random_episodes(ways=3, shots=2, size=28)
    with statistics_from(algorithm, "running"):
        for task, logits in enumerate(algorithm.predict(episodes)):
            maps = net.blocks(episodes.support.x[task])
            classes = torch.stack([maps[0] + maps[1], maps[2] + maps[3], maps[4] + maps[5]])
            expected = algorithm.relation(classes[None], net.blocks(episodes.query.x[task])[None])[0]
            torch.testing.assert_close(logits, expected.detach(), **EXACT)


def test_the_order_survives_scores_that_are_rounded_to_one():
    logits = torch.tensor([30.0, 40.0])
    assert logits.sigmoid()[0] == logits.sigmoid()[1]

    class Fixed(nn.Module):
        def forward(self, classes: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
            return logits.expand(1, query.shape[1], 2)

    algorithm = RelationNet(MLP((1, 4, 4), widths=[4]), (1, 4, 4))
    algorithm.relation = Fixed()
    episodes = random_episodes(ways=2, shots=1, tasks=1, size=4).to(dtype=torch.float32)
    assert algorithm.predict(episodes).argmax(-1).eq(1).all()


def test_the_mean_takes_shots_that_were_not_trained_and_the_sum_does_not():
    scores = {}
    for combine in ("sum", "mean"):
        torch.manual_seed(0)
        algorithm = RelationNet(MLP((2, 4, 4), widths=[32]), (2, 4, 4), combine=combine, train_ways=None)
        train(algorithm, EpisodeSampler(faint_patterns(seed=0), "train", Task(5, 1, 5), 0), iterations=200)
        scores[combine] = accuracy(algorithm, EpisodeSampler(faint_patterns(seed=1), "test", Task(5, 10, 5), 0), 100)
    assert scores["sum"] + 0.2 < scores["mean"] > 0.7


def test_unequal_shots_are_no_problem():
    torch.manual_seed(0)
    algorithm = RelationNet(MLP((1, 4, 4), widths=[4]), (1, 4, 4), combine="mean")
    one = random_episodes(ways=2, shots=2, tasks=1, size=4).to(dtype=torch.float32)
    uneven = Episodes(Examples(one.support.x[:, [0, 1, 2, 2]], one.support.y[:, [0, 1, 2, 2]]), one.query, Classification(2))
    single = Episodes(Examples(one.support.x[:, [0, 1, 2]], one.support.y[:, [0, 1, 2]]), one.query, Classification(2))
    assert torch.allclose(algorithm.predict(uneven), algorithm.predict(single), atol=1e-6)
    assert F.softmax(algorithm.predict(single), -1).isfinite().all()
