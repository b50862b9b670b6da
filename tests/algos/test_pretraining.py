"""Supervised pre-training, and the methods on top of it: SimpleShot, Baseline, Baseline++."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from closed_form import SHAPE, TASK, TEST, normal
from problems import TinyNet, of_embeddings, random_episodes
from sklearn.neighbors import NearestCentroid
from small_training import accuracy, faint_patterns, is_at_chance, is_same, noise_classes, train
from torch import nn
from torch.nn import functional as F

from fsl_cli.algos.baseline import Baseline
from fsl_cli.algos.baselinepp import BaselinePP
from fsl_cli.algos.common.pretraining import CosineHead, LinearHead, Pretrained
from fsl_cli.algos.simpleshot import SimpleShot
from fsl_cli.backbones.mlp import MLP
from fsl_cli.episodes import Episodes, EpisodeSampler, Task
from fsl_cli.episodes.randomness import uniform
from fsl_cli.errors import FslError
from fsl_cli.results import checkpoint

EXACT = {"rtol": 1e-9, "atol": 1e-11}
METHODS = [SimpleShot, Baseline, BaselinePP]
TRAIN = EpisodeSampler(faint_patterns(seed=0), "train", Task(20, 1, 1), 0)


def tiny(cls: type[Pretrained], classes: int = 7, **options) -> Pretrained:
    """In float64, with batch normalisation averages other than the initial ones."""
    torch.manual_seed(0)
    algorithm = cls(TinyNet(), 4, classes, **options).double()
    algorithm.backbone.norm.running_mean.normal_()
    algorithm.backbone.norm.running_var.uniform_(0.5, 2)
    return algorithm


def learner(cls: type[Pretrained], **options) -> Pretrained:
    torch.manual_seed(0)
    return cls(MLP(SHAPE, widths=[32]), 32, 60, train_ways=20, **options)


def mini_batches() -> Episodes:
    """Of three classes each, two images of a class, that are classes 0..6 of the split."""
    return replace(random_episodes(ways=3, shots=1, queries=1), classes=torch.tensor([[4, 0, 6], [1, 2, 3], [5, 4, 1]]))


# --- pre-training


@pytest.mark.parametrize("cls", METHODS)
def test_loss_is_the_cross_entropy_over_all_classes_of_each_mini_batch(cls):
    algorithm, batches = tiny(cls), mini_batches()
    norm = nn.BatchNorm2d(4).double().train()
    norm.load_state_dict(algorithm.backbone.norm.state_dict() | {"num_batches_tracked": torch.tensor(0)})
    step, losses = algorithm.loss(batches), []
    for task, labels in enumerate([[4, 0, 6, 4, 0, 6], [1, 2, 3, 1, 2, 3], [5, 4, 1, 5, 4, 1]]):
        images = torch.cat([batches.support.x[task], batches.query.x[task]])
        features = torch.tanh(norm(algorithm.backbone.conv(images))).mean((-2, -1))
        if cls is BaselinePP:
            logits = 20 * F.cosine_similarity(features.unsqueeze(1), algorithm.head.weight, dim=-1)
        else:
            logits = features @ algorithm.head.weight.T + algorithm.head.bias
        assert step.targets[task].tolist() == labels
        torch.testing.assert_close(step.outputs[task], logits.detach(), **EXACT)
        losses += [F.cross_entropy(row, torch.tensor(label)) for row, label in zip(logits, labels, strict=True)]
    torch.testing.assert_close(step.loss, torch.stack(losses).mean(), **EXACT)
    torch.testing.assert_close(algorithm.backbone.norm.running_mean, norm.running_mean, **EXACT)
    torch.testing.assert_close(algorithm.backbone.norm.running_var, norm.running_var, **EXACT)
    step.loss.backward()
    assert all(each.grad.any() for each in (*algorithm.head.parameters(), algorithm.backbone.conv.weight))


def test_a_mini_batch_has_two_images_of_each_class_whatever_is_tested():
    assert tiny(Baseline, train_ways=9).train_task(TASK) == Task(9, 1, 1)


@pytest.mark.parametrize("cls", METHODS)
def test_a_checkpoint_is_loaded_whatever_the_number_of_classes_of_the_data_set(cls, tmp_path):
    trained, other = tiny(cls, classes=7), tiny(cls, classes=3)
    payload = {"algo": trained.state_dict()}
    checkpoint.load_weights(other, payload, tmp_path)
    assert is_same(other.state_dict(), trained.state_dict())
    assert is_same(other.predict(random_episodes()), trained.predict(random_episodes()))
    assert all(each.requires_grad for each in other.parameters())
    with pytest.raises(FslError):  # another width of the network is another network
        checkpoint.load_weights(cls(TinyNet(filters=5), 5, 7), payload, tmp_path)
    del payload["algo"]["head.weight"]
    with pytest.raises(FslError):
        checkpoint.load_weights(other, payload, tmp_path)


def test_loading_the_same_number_of_classes_keeps_the_parameters_that_an_optimizer_knows():
    algorithm = tiny(Baseline)
    before = [id(each) for each in algorithm.parameters()]
    algorithm.load_state_dict(tiny(Baseline).state_dict())
    assert [id(each) for each in algorithm.parameters()] == before


# --- what is done with the features


def test_simpleshot_keeps_the_mean_feature_of_training_as_batch_normalisation_would():
    algorithm, batches = tiny(SimpleShot), mini_batches()
    norm = nn.BatchNorm1d(4, momentum=0.1).double()
    with torch.no_grad():
        for task in range(3):
            batch = torch.cat([batches.support.x[task], batches.query.x[task]])
            norm(torch.tanh(algorithm.backbone.norm(algorithm.backbone.conv(batch))).mean((-2, -1)))
    algorithm.loss(batches)
    torch.testing.assert_close(algorithm.center.mean, norm.running_mean, **EXACT)


@pytest.mark.parametrize("transform", ["un", "l2n", "cl2n"])
def test_simpleshot_is_scikit_learns_nearest_centroid_of_transformed_features(transform):
    algorithm = tiny(SimpleShot, transform=transform)
    algorithm.center.mean.copy_(normal(4))
    support, query, labels = 2 + normal(3, 8, 4), 2 + normal(3, 30, 4), torch.arange(4).repeat(3, 2)
    logits = algorithm.classify(of_embeddings(support, labels, query, 4))
    for task in range(3):
        s, q = support[task].numpy(), query[task].numpy()
        if transform == "cl2n":
            s, q = s - algorithm.center.mean.numpy(), q - algorithm.center.mean.numpy()
        if transform != "un":
            s, q = (x / np.sqrt((x**2).sum(1, keepdims=True)) for x in (s, q))
        nearest = NearestCentroid().fit(s, labels[task].numpy())
        assert logits[task].argmax(-1).tolist() == nearest.predict(q).tolist()
        distances = ((q[:, None] - nearest.centroids_) ** 2).sum(-1)
        np.testing.assert_allclose(logits[task], -distances, rtol=1e-9)


OPTIONS = {"test_steps": 15, "test_lr": 0.5, "test_momentum": 0.8, "test_dampening": 0.6, "test_weight_decay": 0.05}


@pytest.mark.parametrize("momentum", [0.8, 0.0])
@pytest.mark.parametrize("cls", [Baseline, BaselinePP])
def test_the_new_classifier_is_what_torchs_sgd_fits_to_each_task(cls, momentum):
    algorithm = tiny(cls, **OPTIONS | {"test_momentum": momentum})
    support, query, labels = normal(3, 6, 4), normal(3, 5, 4), torch.tensor([0, 1, 2, 2, 1, 0]).expand(3, -1)
    logits = algorithm.classify(of_embeddings(support, labels, query, 3))
    for task in range(3):
        head = (CosineHead(4, 3, 2.0) if cls is BaselinePP else LinearHead(4, 3)).double()
        for parameter in head.parameters():
            nn.init.zeros_(parameter)
        if cls is BaselinePP:
            head.weight.data += F.normalize(support[task], dim=-1).mean(0)
        optimizer = torch.optim.SGD(head.parameters(), lr=0.5, momentum=momentum, dampening=0.6, weight_decay=0.05)
        for _ in range(15):
            optimizer.zero_grad()
            F.cross_entropy(head(support[task]), labels[task]).backward()
            optimizer.step()
        torch.testing.assert_close(logits[task], head(query[task]).detach(), **EXACT)


def fitted_by_the_authors_loop(algorithm, support, labels, seed, epochs):
    """Chen et al.'s ``set_forward_adaptation`` for one task, from the start of `new_head`; and the number of its steps."""
    cosine = isinstance(algorithm, BaselinePP)
    head = (CosineHead(4, 3, 2.0) if cosine else LinearHead(4, 3)).double()
    for name, value in algorithm.new_head(support[None], 3, None).items():
        getattr(head, name).data.copy_(value[0])
    optimizer = torch.optim.SGD(head.parameters(), lr=0.01, momentum=0.9, dampening=0.9, weight_decay=0.001)
    orders, steps = uniform(seed[None], (len(support), epochs), "passes")[0].argsort(0), 0
    for epoch in range(epochs):
        order = orders[:, epoch]
        assert sorted(order.tolist()) == list(range(len(support)))
        for i in range(0, len(support), 4):
            chosen = order[i : min(i + 4, len(support))]
            optimizer.zero_grad()
            F.cross_entropy(head(support[chosen]), labels[chosen]).backward()
            optimizer.step()
            steps += 1
    return head, steps


@pytest.mark.parametrize("cls", [Baseline, BaselinePP])
@pytest.mark.parametrize("images", [5, 8, 11])
def test_the_new_classifier_is_what_the_authors_loop_over_mini_batches_of_four_fits(cls, images):
    algorithm, seeds = tiny(cls), torch.tensor([7, 8, 9])
    support, query = normal(3, images, 4), normal(3, 5, 4)
    labels = torch.arange(images).remainder(3).expand(3, -1)
    episodes = replace(of_embeddings(support, labels, query, 3), seeds=seeds)
    logits = algorithm.classify(episodes)
    for task in range(3):
        head, steps = fitted_by_the_authors_loop(algorithm, support[task], labels[task], seeds[task], 100)
        assert len(list(algorithm.batches(episodes))) == steps == 100 * -(-images // 4)
        torch.testing.assert_close(logits[task], head(query[task]).detach(), **EXACT)


@pytest.mark.parametrize("cls", [Baseline, BaselinePP])
def test_a_task_is_fitted_alike_beside_tasks_of_more_images(cls):
    algorithm, seeds, counts = tiny(cls, test_epochs=20), torch.tensor([7, 8, 9]), [3, 11, 6]
    support, query, labels = normal(3, 11, 4), normal(3, 5, 4), torch.arange(11).remainder(3).expand(3, -1)
    mask = torch.stack([torch.arange(11).flip(0) < count for count in counts])  # its images are the last ones
    episodes = of_embeddings(support, labels, query, 3)
    together = algorithm.classify(replace(episodes, support=replace(episodes.support, mask=mask), seeds=seeds))
    for task, count in enumerate(counts):
        alone = of_embeddings(support[task, None, -count:], labels[task, None, -count:], query[task, None], 3)
        logits = algorithm.classify(replace(alone, seeds=seeds[task, None]))
        torch.testing.assert_close(together[task], logits[0], **EXACT)


# --- learning


@pytest.fixture(scope="module", params=METHODS, ids=lambda cls: cls.__name__)
def trained(request) -> Pretrained:
    algorithm = learner(request.param)
    train(algorithm, TRAIN, iterations=200, meta_batch=1)
    return algorithm


def test_learns_to_tell_unseen_classes_apart(trained):
    assert accuracy(learner(type(trained)), TEST, 100) < 0.4
    assert accuracy(trained, TEST, 100) > 0.6


def test_more_shots_are_better_also_with_more_ways(trained):
    one, five = (accuracy(trained, EpisodeSampler(faint_patterns(seed=1), "test", Task(20, k, 5), 0), 50) for k in (1, 5))
    assert 0.3 < one < five


@pytest.mark.parametrize("cls", METHODS)
def test_noise_is_classified_at_chance(cls):
    assert is_at_chance(learner(cls), EpisodeSampler(noise_classes(), "test", TASK, 0), 200)


def shuffled(cls: type[Pretrained]) -> type[Pretrained]:
    """A broken copy: the classes of a mini-batch are any classes."""

    class Shuffled(cls):
        def loss(self, episodes):
            return super().loss(replace(episodes, classes=torch.randint(60, episodes.classes.shape)))

    return Shuffled


@pytest.mark.parametrize("cls", METHODS)
def test_a_copy_trained_with_wrong_classes_learns_nothing(cls):
    algorithm = learner(shuffled(cls))
    train(algorithm, TRAIN, iterations=200, meta_batch=1)
    assert accuracy(algorithm, TEST, 100) < 0.4
