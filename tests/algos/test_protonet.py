"""ProtoNet against slow loops, scipy and torch's own batch normalisation."""

from __future__ import annotations

import copy

import pytest
import torch
from problems import TinyNet, random_episodes
from scipy.spatial.distance import cdist
from small_training import accuracy, faint_patterns, is_at_chance, is_same, noise_classes, train
from torch import nn

from fsl_cli.algos.common.prototypes import class_means, cosine_distance, squared_euclidean
from fsl_cli.algos.protonet import ProtoNet
from fsl_cli.backbones.batch_norm import BatchNorm
from fsl_cli.backbones.mlp import MLP
from fsl_cli.episodes import Classification, Episodes, EpisodeSampler, Examples, Task

EXACT = {"rtol": 1e-10, "atol": 1e-12}
TASK = Task(5, 1, 5)
SHAPE = (2, 4, 4)


def protonet(**options) -> ProtoNet:
    """A ProtoNet in float64, with batch normalisation averages other than the initial ones."""
    torch.manual_seed(0)
    algorithm = ProtoNet(TinyNet(), **options).double()
    algorithm.backbone.norm.running_mean.normal_()
    algorithm.backbone.norm.running_var.uniform_(0.5, 2)
    return algorithm


def learner(**options) -> ProtoNet:
    torch.manual_seed(0)
    return ProtoNet(MLP(SHAPE, widths=[32]), train_ways=None, **options)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


# --- the equations


def test_class_means_are_the_means_of_each_class():
    embedded = normal(3, 7, 4)
    labels = torch.tensor([[2, 0, 1, 1, 0, 2, 2], [0, 1, 2, 0, 1, 0, 0], [2, 2, 2, 2, 2, 1, 0]])
    expected = torch.zeros(3, 3, 4, dtype=torch.float64)
    for task in range(3):
        for label in range(3):
            rows = [embedded[task, row] for row in range(7) if labels[task, row] == label]
            expected[task, label] = sum(rows) / len(rows)
    torch.testing.assert_close(class_means(embedded, labels, 3), expected, **EXACT)


@pytest.mark.parametrize(("mine", "name"), [(squared_euclidean, "sqeuclidean"), (cosine_distance, "cosine")])
def test_distances_are_scipys(mine, name):
    query, prototypes = normal(3, 6, 5), normal(3, 4, 5)
    distances = mine(query, prototypes)
    assert distances.shape == (3, 6, 4)
    for task in range(3):
        torch.testing.assert_close(distances[task], torch.from_numpy(cdist(query[task], prototypes[task], name)), **EXACT)


def test_squared_euclidean_is_torchs_cdist_squared_and_the_slow_loop():
    query, prototypes = normal(2, 3, 4), normal(2, 5, 4)
    distances = squared_euclidean(query, prototypes)
    torch.testing.assert_close(distances, torch.cdist(query, prototypes).square(), rtol=1e-8, atol=1e-10)
    difference = [a - b for a, b in zip(query[1, 2].tolist(), prototypes[1, 3].tolist(), strict=True)]
    assert distances[1, 2, 3].item() == pytest.approx(sum(value**2 for value in difference))


@pytest.mark.parametrize("distance", ["sqeuclidean", "cosine"])
@pytest.mark.parametrize("batch_norm", ["inductive", "transductive"])
def test_predict_is_the_paper_the_slow_way(distance, batch_norm):
    """One image after the other through torch's layers; the query's logit is minus its distance to the class mean."""
    algorithm, episodes = protonet(distance=distance, scale=2.5, batch_norm=batch_norm), random_episodes(ways=3, shots=2)
    net = algorithm.backbone
    norm = nn.BatchNorm2d(4).double()
    norm.load_state_dict(net.norm.state_dict() | {"num_batches_tracked": torch.tensor(0)})
    norm.train(batch_norm == "transductive")
    logits = algorithm.predict(episodes)
    for task in range(len(episodes)):
        both = torch.cat([episodes.support.x[task], episodes.query.x[task]])
        embedded = torch.tanh(norm(net.conv(both))).mean((-2, -1)).detach()
        support, query = embedded[:6], embedded[6:]
        means = torch.stack([support[2 * label : 2 * label + 2].mean(0) for label in range(3)])
        torch.testing.assert_close(logits[task], -2.5 * torch.from_numpy(cdist(query, means, distance)), **EXACT)


def test_a_query_that_is_the_only_support_image_is_recognised():
    episodes = random_episodes(ways=4, shots=1, queries=1)
    episodes = Episodes(episodes.support, episodes.support, Classification(4))
    logits = protonet().predict(episodes)
    torch.testing.assert_close(logits.argmax(-1), episodes.query.y)
    torch.testing.assert_close(logits.diagonal(dim1=1, dim2=2), torch.zeros(3, 4, dtype=torch.float64), **EXACT)


# --- training


def test_loss_is_the_cross_entropy_of_each_episode_normalised_by_its_own_images():
    algorithm, episodes = protonet(batch_norm="inductive"), random_episodes()
    step = algorithm.loss(episodes)
    transductive = protonet(batch_norm="transductive")
    transductive.load_state_dict(algorithm.state_dict())
    logits = transductive.predict(episodes)
    torch.testing.assert_close(step.outputs, logits, **EXACT)
    assert not step.outputs.requires_grad
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), episodes.query.y.flatten())
    torch.testing.assert_close(step.loss.detach(), expected, **EXACT)


def test_loss_has_a_gradient_for_every_parameter_and_it_is_the_finite_difference():
    algorithm, episodes = protonet(), random_episodes()
    algorithm.loss(episodes).loss.backward()
    for parameter in algorithm.parameters():
        flat, gradient = parameter.data.view(-1), parameter.grad.view(-1)
        for position in {0, len(flat) - 1}:
            losses = []
            for sign in (1, -1):
                before = flat[position].item()
                flat[position] = before + sign * 1e-5
                losses.append(algorithm.loss(episodes).loss.item())
                flat[position] = before
            assert gradient[position].item() == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-5, abs=1e-8)


def test_training_moves_the_averages_of_batch_normalisation_as_torch_does_one_episode_after_the_other():
    algorithm, episodes = protonet(), random_episodes()
    norm = nn.BatchNorm2d(4).double().train()
    norm.load_state_dict(algorithm.backbone.norm.state_dict() | {"num_batches_tracked": torch.tensor(0)})
    algorithm.loss(episodes)
    for task in range(len(episodes)):
        norm(algorithm.backbone.conv(torch.cat([episodes.support.x[task], episodes.query.x[task]])))
    torch.testing.assert_close(algorithm.backbone.norm.running_mean, norm.running_mean, **EXACT)
    torch.testing.assert_close(algorithm.backbone.norm.running_var, norm.running_var, **EXACT)


# --- prediction


def test_embeddings_are_of_each_image_by_itself_and_only_inductive_ones_are_offered():
    algorithm, images = protonet(), random_episodes().query.x.flatten(0, 1)
    one_by_one = torch.cat([algorithm.embed(image[None]) for image in images])
    torch.testing.assert_close(algorithm.embed(images), one_by_one, **EXACT)
    assert [protonet(batch_norm=mode).embeds for mode in ("inductive", "transductive")] == [True, False]


@pytest.mark.parametrize("batch_norm", ["inductive", "transductive"])
@pytest.mark.parametrize("distance", ["sqeuclidean", "cosine"])
def test_noise_is_classified_at_chance(batch_norm, distance):
    """Any leak from labels to predictions would give an accuracy above chance."""
    algorithm = learner(batch_norm=batch_norm, distance=distance, scale=10)
    assert is_at_chance(algorithm, EpisodeSampler(noise_classes(), "test", TASK, 0))


# --- learning


class ShuffledSupport(ProtoNet):
    """A broken ProtoNet: support labels are unrelated to the queries."""

    def loss(self, episodes: Episodes):
        shuffled = torch.stack([labels[torch.randperm(len(labels))] for labels in episodes.support.y])
        return super().loss(Episodes(Examples(episodes.support.x, shuffled), episodes.query, episodes.problem))


TRAIN = EpisodeSampler(faint_patterns(seed=0), "train", TASK, 0)
TEST = EpisodeSampler(faint_patterns(seed=1), "test", TASK, 0)  # other patterns


@pytest.fixture(scope="module")
def trained() -> ProtoNet:
    algorithm = learner()
    assert accuracy(algorithm, TEST) < 0.35
    train(algorithm, TRAIN, iterations=300)
    return algorithm


def test_learns_to_tell_unseen_classes_apart(trained):
    assert accuracy(trained, TEST) > 0.85


def test_learned_averages_are_as_good_as_those_of_the_episode(trained):
    transductive = learner(batch_norm="transductive")
    transductive.load_state_dict(trained.state_dict())
    assert accuracy(transductive, TEST) > 0.85


def test_is_tested_on_more_ways_and_shots_than_it_was_trained_on(trained):
    one = accuracy(trained, EpisodeSampler(faint_patterns(seed=1), "test", Task(20, 1, 5), 0), 50)
    five = accuracy(trained, EpisodeSampler(faint_patterns(seed=1), "test", Task(20, 5, 5), 0), 50)
    assert 0.6 < one < five


def test_cosine_learns_too():
    algorithm = learner(distance="cosine", scale=10)
    train(algorithm, TRAIN, iterations=300)
    assert accuracy(algorithm, TEST) > 0.7


def test_a_copy_trained_with_shuffled_support_labels_learns_nothing():
    torch.manual_seed(0)
    broken = ShuffledSupport(MLP(SHAPE, widths=[32]), train_ways=None)
    train(broken, TRAIN, iterations=300)
    assert accuracy(broken, TEST) < 0.35


def test_a_trained_network_is_at_chance_when_query_labels_are_shuffled(trained):
    class Shuffled(EpisodeSampler):
        def labels(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
            support, query = super().labels(count)
            return support, query.gather(1, torch.stack([torch.randperm(query.shape[1]) for _ in range(count)]))

    torch.manual_seed(0)
    assert is_at_chance(trained, Shuffled(faint_patterns(seed=1), "test", TASK, 0))


def test_the_network_is_the_whole_state():
    algorithm = protonet()
    other = copy.deepcopy(algorithm)
    for parameter in other.parameters():
        parameter.data.normal_()
    other.load_state_dict(algorithm.state_dict())
    assert is_same(other.predict(random_episodes()), algorithm.predict(random_episodes()))
    assert sum(isinstance(each, BatchNorm) for each in algorithm.modules()) == 1
