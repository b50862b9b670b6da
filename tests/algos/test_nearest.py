"""Nearest class mean and nearest image without learning, against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from closed_form import SHAPE, TASK, TEST, TRAIN
from problems import TinyNet, random_episodes, sampler
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from small_training import accuracy, everything, is_at_chance, is_same, noise_classes, train

from fsl_cli.algos.nearest import Nearest
from fsl_cli.backbones.mlp import MLP
from fsl_cli.episodes import EpisodeSampler, Task


def nearest(**options) -> Nearest:
    torch.manual_seed(0)
    return Nearest(TinyNet(), **options).double()


@pytest.mark.parametrize("space", ["pixels", "network"])
def test_the_nearest_class_mean_is_scikit_learns(space):
    algorithm, episodes = nearest(space=space), random_episodes(queries=10)
    logits = algorithm.predict(episodes)
    for task in range(len(episodes)):
        support, query = (_features(algorithm, space, x[task]) for x in (episodes.support.x, episodes.query.x))
        centroids = NearestCentroid().fit(support, episodes.support.y[task].numpy())
        assert logits[task].argmax(-1).tolist() == centroids.predict(query).tolist()
        np.testing.assert_allclose(logits[task], -((query[:, None] - centroids.centroids_) ** 2).sum(-1), rtol=1e-6)


@pytest.mark.parametrize("space", ["pixels", "network"])
def test_the_nearest_image_is_scikit_learns(space):
    algorithm, episodes = nearest(space=space, compare="image"), random_episodes(queries=10)
    logits = algorithm.predict(episodes)
    for task in range(len(episodes)):
        support, query = (_features(algorithm, space, x[task]) for x in (episodes.support.x, episodes.query.x))
        neighbours = KNeighborsClassifier(1).fit(support, episodes.support.y[task].numpy())
        assert logits[task].argmax(-1).tolist() == neighbours.predict(query).tolist()
        np.testing.assert_allclose(-logits[task].amax(-1), neighbours.kneighbors(query)[0][:, 0] ** 2, rtol=1e-6)


def _features(algorithm: Nearest, space: str, images: torch.Tensor) -> np.ndarray:
    """By torch's own batch normalisation; its averages are those it starts with."""
    if space == "pixels":
        return images.reshape(len(images), -1).numpy()
    norm = torch.nn.BatchNorm2d(4).double().eval()
    return torch.tanh(norm(algorithm.backbone.conv(images))).mean((-2, -1)).detach().numpy()


@pytest.mark.parametrize("space", ["pixels", "network"])
def test_training_moves_nothing(space):
    torch.manual_seed(0)
    algorithm = Nearest(MLP(SHAPE, widths=[8]), space=space)
    before = everything(algorithm)
    step = algorithm.loss(TRAIN.batch(0, 3))
    assert not step.loss.requires_grad
    train(algorithm, TRAIN, iterations=3)
    after = everything(algorithm)
    assert is_same([before[key] for key in ("state", "identity")], [after[key] for key in ("state", "identity")])


def test_images_of_a_class_that_look_alike_are_found_and_noise_is_not():
    assert accuracy(nearest().float(), sampler(TASK, "test"), 50) > 0.9  # patterns of pixels
    assert accuracy(nearest(compare="image").float(), sampler(Task(20, 5, 5), "test"), 20) > 0.9
    torch.manual_seed(0)
    network = Nearest(MLP(SHAPE, widths=[32]), space="network")
    assert accuracy(network, TEST) < 0.4  # faint patterns have to be learned
    for space in ("pixels", "network"):
        algorithm = Nearest(MLP(SHAPE, widths=[32]), space=space)
        assert is_at_chance(algorithm, EpisodeSampler(noise_classes(), "test", TASK, 0), 200)
