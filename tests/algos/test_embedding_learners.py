"""Tests common to matching, relation and siamese networks and IMP: gradients, normalisation, learning."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from problems import TinyNet, changed, random_episodes
from small_training import accuracy, faint_patterns, is_at_chance, noise_classes, train
from torch import nn

from fsl_cli.algos.common.embedding_learner import EmbeddingLearner
from fsl_cli.algos.imp import IMP
from fsl_cli.algos.matchingnet import MatchingNet
from fsl_cli.algos.protonet import ProtoNet
from fsl_cli.algos.relationnet import RelationNet
from fsl_cli.algos.siamese import Siamese
from fsl_cli.backbones.batch_norm import statistics_from
from fsl_cli.backbones.conv4 import Conv4
from fsl_cli.backbones.mlp import MLP
from fsl_cli.episodes import Episodes, EpisodeSampler, Task

SHAPE = (2, 4, 4)
TASK = Task(5, 1, 5)
EXACT = {"rtol": 1e-10, "atol": 1e-12}
OPEN = {"alpha": 0.9, "sigma": 0.01}  # IMP with several clusters per class where there are several shots

Make = Callable[..., EmbeddingLearner]
METHODS: dict[str, Make] = {
    "matchingnet": lambda net, width, shape, **options: MatchingNet(net, width, **options),
    "matchingnet_fce": lambda net, width, shape, **options: MatchingNet(net, width, fce=True, processing_steps=3, **options),
    "relationnet": lambda net, width, shape, **options: RelationNet(net, shape, **{"combine": "mean", **options}),
    "siamese": lambda net, width, shape, **options: Siamese(net, width, **options),
    "imp": lambda net, width, shape, **options: IMP(net, **options),
}
EVERY = pytest.mark.parametrize("name", list(METHODS))
METHODS["protonet"] = lambda net, width, shape, **options: ProtoNet(net, **options)  # has a file of its own


def tiny(name: str, **options) -> EmbeddingLearner:
    """A method in float64 on a smooth network, with batch normalisation averages other than the initial ones."""
    torch.manual_seed(0)
    algorithm = METHODS[name](TinyNet(), 4, (1, 6, 6), **(OPEN if name == "imp" else {}), **options).double()
    for layer in algorithm.modules():
        if hasattr(layer, "running_mean"):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    return algorithm


def learner(name: str, **options) -> EmbeddingLearner:
    torch.manual_seed(0)
    return METHODS[name](MLP(SHAPE, widths=[32]), 32, SHAPE, train_ways=None, **options)


# --- gradients and normalisation


@EVERY
def test_every_parameter_has_a_gradient_and_it_is_the_finite_difference(name):
    algorithm, episodes = tiny(name), random_episodes(shots=3)
    algorithm.loss(episodes).loss.backward()
    for label, parameter in algorithm.named_parameters():
        flat, gradient = parameter.data.view(-1), parameter.grad.view(-1)
        for position in {0, len(flat) - 1}:
            losses = []
            for sign in (1, -1):
                before = flat[position].item()
                flat[position] = before + sign * 1e-6
                losses.append(algorithm.loss(episodes).loss.item())
                flat[position] = before
            # IMP's assignments are constants to the gradient: see test_imp.py.
            if name != "imp":
                assert gradient[position].item() == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-4, abs=1e-7), label
    if name != "matchingnet":
        assert all(parameter.grad.abs().sum() > 0 for label, parameter in algorithm.named_parameters() if "bias" not in label)


@EVERY
def test_logits_of_training_are_the_transductive_predictions(name):
    algorithm, episodes = tiny(name), random_episodes(shots=2)
    transductive = tiny(name, batch_norm="transductive")
    torch.testing.assert_close(algorithm.loss(episodes).outputs, transductive.predict(episodes), **EXACT)


@pytest.mark.parametrize("name", ["relationnet", "imp", "protonet"])
def test_support_and_queries_can_be_normalised_separately(name):
    """In training and in transductive tests, as if each were a batch of its own."""
    episodes, options = random_episodes(shots=2), {"batch_norm": "transductive"}
    apart, together = tiny(name, normalize_separately=True, **options), tiny(name, **options)
    support, query = (torch.stack([apart.backbone(x) for x in each.x]).detach() for each in (episodes.support, episodes.query))
    with statistics_from(apart, "batch"):
        expected = apart.compare(episodes, support, query).detach()
    torch.testing.assert_close(apart.predict(episodes), expected, **EXACT)
    torch.testing.assert_close(apart.loss(episodes).outputs, expected, **EXACT)
    assert not torch.allclose(together.predict(episodes), expected)


@EVERY
def test_embedding_each_image_once_gives_the_same_predictions(name):
    algorithm, episodes = tiny(name), random_episodes()
    assert algorithm.embeds is (name != "matchingnet_fce")
    assert not tiny(name, batch_norm="transductive").embeds
    if algorithm.embeds:
        support, query = (torch.stack([algorithm.embed(x) for x in each]) for each in (episodes.support.x, episodes.query.x))
        logits = algorithm.classify(episodes.with_embeddings(support, query))
        torch.testing.assert_close(logits.detach(), algorithm.predict(episodes), **EXACT)


@EVERY
def test_labels_and_not_positions_say_what_a_support_image_is(name):
    """The same episode with its support images in another order, and with other names for its classes."""
    algorithm, episodes = tiny(name), random_episodes(ways=3, shots=1)
    logits = algorithm.predict(episodes)
    order, names = [2, 0, 1], torch.tensor([1, 2, 0])
    reordered = changed(episodes, support_x=episodes.support.x[:, order], support_y=episodes.support.y[:, order])
    if name != "matchingnet_fce":  # its LSTM reads them in order
        torch.testing.assert_close(algorithm.predict(reordered), logits, **EXACT)
    renamed = changed(episodes, support_y=names[episodes.support.y])
    torch.testing.assert_close(algorithm.predict(renamed)[..., names], logits, **EXACT)


@EVERY
def test_train_task_is_the_tested_task_with_what_is_set(name):
    task = Task(5, 1, 15)
    assert tiny(name, train_ways=None, train_queries=None).train_task(task) == task
    assert tiny(name, train_ways=20, train_shots=2, train_queries=3).train_task(task) == Task(20, 2, 3)


# --- learning

TRAIN = EpisodeSampler(faint_patterns(seed=0), "train", TASK, 0)
UNSEEN = faint_patterns(seed=1)  # other patterns
TEST = EpisodeSampler(UNSEEN, "test", TASK, 0)
NOISE = EpisodeSampler(noise_classes(), "test", TASK, 0)


@EVERY
def test_learns_to_tell_unseen_classes_apart_with_any_ways_and_shots(name):
    algorithm = learner(name)
    assert accuracy(algorithm, TEST) < 0.4
    assert is_at_chance(algorithm, NOISE)
    train(algorithm, TRAIN, iterations=120)
    assert accuracy(algorithm, TEST) > (0.6 if name == "relationnet" else 0.8)  # it has more to learn
    one, five = (accuracy(algorithm, EpisodeSampler(UNSEEN, "test", Task(10, shots, 5), 0), 50) for shots in (1, 5))
    assert 0.4 < one < five
    assert is_at_chance(algorithm, NOISE)


@pytest.mark.parametrize("name", ["relationnet", "imp"])
def test_learns_from_five_shots(name):
    algorithm = learner(name, **(OPEN if name == "imp" else {"combine": "sum"}))
    train(algorithm, EpisodeSampler(faint_patterns(seed=0), "train", Task(5, 5, 5), 0), iterations=150)
    assert accuracy(algorithm, EpisodeSampler(UNSEEN, "test", Task(5, 5, 5), 0)) > 0.7


@EVERY
def test_a_copy_trained_with_shuffled_labels_learns_nothing(name):
    """Of the queries too, since a siamese network learns from pairs of them."""
    algorithm = learner(name)
    loss = algorithm.loss

    def broken(episodes: Episodes):
        support_y, query_y = (labels[:, torch.randperm(labels.shape[1])] for labels in (episodes.support.y, episodes.query.y))
        return loss(changed(episodes, support_y=support_y, query_y=query_y))

    algorithm.loss = broken
    train(algorithm, TRAIN, iterations=120)
    assert accuracy(algorithm, TEST, 100) < 0.4


@EVERY
def test_with_the_gradient_stopped_at_the_embeddings_it_learns_much_less(name):
    """Not nothing: the averages of batch normalisation and what compares the embeddings still learn."""

    class Stopped(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).detach()

    torch.manual_seed(0)
    algorithm = METHODS[name](Stopped(MLP(SHAPE, widths=[32])), 32, SHAPE, train_ways=None)
    train(algorithm, TRAIN, iterations=120)
    assert accuracy(algorithm, TEST, 100) < 0.4


@EVERY
def test_a_convolutional_backbone_works_too(name):
    torch.manual_seed(0)
    algorithm = METHODS[name](Conv4((1, 28, 28), filters=4), 4, (1, 28, 28))
    episodes = random_episodes(size=28).to(dtype=torch.float32)
    algorithm.loss(episodes).loss.backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in algorithm.parameters())
    assert algorithm.predict(episodes).isfinite().all()
