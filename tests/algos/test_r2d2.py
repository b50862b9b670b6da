"""R2D2 against scikit-learn's ridge regression, the normal equations and finite differences."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from closed_form import SHAPE, TASK, TEST, TRAIN, gradient_is_the_finite_difference, normal, shuffled, without_gradient
from problems import TinyNet, of_embeddings, random_episodes
from sklearn.linear_model import Ridge
from small_training import accuracy, faint_patterns, is_at_chance, noise_classes, train
from torch import nn

from fsl_cli.algos.r2d2 import R2D2, ridge_regression
from fsl_cli.backbones.batch_norm import statistics_from
from fsl_cli.backbones.mlp import MLP
from fsl_cli.episodes import EpisodeSampler, Task
from fsl_cli.episodes.uneven_sampler import UnevenSampler
from fsl_cli.settings.sizes import Range

EXACT = {"rtol": 1e-9, "atol": 1e-11}


def r2d2(**options) -> R2D2:
    """R2D2 in float64, with batch normalisation averages other than the initial ones."""
    torch.manual_seed(0)
    algorithm = R2D2(TinyNet(), **options).double()
    algorithm.backbone.norm.running_mean.normal_()
    algorithm.backbone.norm.running_var.uniform_(0.5, 2)
    return algorithm


def learner(cls: type[R2D2] = R2D2, **options) -> R2D2:
    torch.manual_seed(0)
    return cls(MLP(SHAPE, widths=[32]), train_ways=None, **options)


# --- the equations


@pytest.mark.parametrize(("images", "width"), [(6, 4), (4, 9)], ids=["more images than features", "fewer"])
@pytest.mark.parametrize("penalty", [0.01, 3.0])
def test_ridge_regression_is_scikit_learns(images, width, penalty):
    inputs, targets = normal(3, images, width), normal(3, images, 5)
    weights = ridge_regression(inputs, targets, penalty)
    assert weights.shape == (3, width, 5)
    for task in range(3):
        ridge = Ridge(alpha=penalty, fit_intercept=False).fit(inputs[task].numpy(), targets[task].numpy())
        np.testing.assert_allclose(weights[task].T, ridge.coef_, rtol=1e-8, atol=1e-10)


def test_the_gradient_of_ridge_regression_is_the_finite_difference():
    inputs, targets = normal(2, 4, 3).requires_grad_(), normal(2, 4, 3)
    penalty = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, p: ridge_regression(x, targets, p), (inputs, penalty))


@pytest.mark.parametrize("batch_norm", ["inductive", "transductive"])
def test_predict_is_the_paper_the_slow_way(batch_norm):
    """The network through torch's layers, ridge regression by the D x D normal equations, task by task."""
    algorithm, episodes = r2d2(init_lambda=0.3, init_alpha=4.0, batch_norm=batch_norm), random_episodes()
    norm = nn.BatchNorm2d(4).double()
    norm.load_state_dict(algorithm.backbone.norm.state_dict() | {"num_batches_tracked": torch.tensor(0)})
    norm.train(batch_norm == "transductive")
    logits = algorithm.predict(episodes)
    for task in range(len(episodes)):
        both = torch.cat([episodes.support.x[task], episodes.query.x[task]])
        embedded = torch.tanh(norm(algorithm.backbone.conv(both))).mean((-2, -1)).detach()
        x, query = embedded[:6], embedded[6:]
        y = torch.zeros(6, 3, dtype=torch.float64)
        for row, label in enumerate(episodes.support.y[task].tolist()):
            y[row, label] = 1
        weights = torch.linalg.inv(x.T @ x + 0.3 * torch.eye(4)) @ x.T @ y
        torch.testing.assert_close(logits[task], 4.0 * query @ weights, rtol=1e-6, atol=1e-8)


def test_loss_is_the_cross_entropy_of_each_episode_normalised_by_its_own_images():
    algorithm, episodes = r2d2(), random_episodes()
    step = algorithm.loss(episodes)
    logits = algorithm.log_alpha.new_zeros(step.outputs.shape)
    with statistics_from(algorithm.backbone, "batch"), torch.no_grad():
        for task, each in enumerate(episodes.split(1)):
            both = algorithm.backbone(torch.cat([each.support.x[0], each.query.x[0]]))
            logits[task] = algorithm.classify(of_embeddings(both[None, :6], each.support.y, both[None, 6:], 3))[0]
    torch.testing.assert_close(step.outputs, logits, **EXACT)
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), episodes.query.y.flatten())
    torch.testing.assert_close(step.loss.detach(), expected, **EXACT)


def test_loss_has_a_gradient_for_every_parameter_and_it_is_the_finite_difference():
    gradient_is_the_finite_difference(r2d2(), random_episodes())


def test_lambda_and_alpha_are_learned_stay_positive_and_are_logged():
    algorithm, episodes = r2d2(init_lambda=0.5, init_alpha=3.0), random_episodes()
    metrics = algorithm.loss(episodes).metrics
    assert (metrics["lambda"].item(), metrics["alpha"].item()) == pytest.approx((0.5, 3.0))
    optimizer = torch.optim.SGD(algorithm.parameters(), lr=1e3)
    algorithm.loss(episodes).loss.backward()
    optimizer.step()
    after = algorithm.learned()
    assert after["lambda"] > 0
    assert after["alpha"] > 0
    assert not torch.isclose(after["lambda"], metrics["lambda"])


def test_a_lambda_per_image_is_the_authors_division_of_x_and_y():
    """Their code divides X and Y by sqrt(N*K) and adds lambda to the diagonal, whatever the ways and shots."""
    for ways, shots in ((3, 2), (2, 1)):
        algorithm, episodes = r2d2(init_lambda=0.3, init_alpha=1.0, lambda_per_image=True), random_episodes(ways, shots)
        x, query = (normal(3, ways * each, 4) for each in (shots, 2))
        y = torch.nn.functional.one_hot(episodes.support.y, ways).double()
        root = (ways * shots) ** 0.5
        weights = torch.linalg.inv(x.mT @ x / root**2 + 0.3 * torch.eye(4)) @ (x.mT / root) @ (y / root)
        logits = algorithm.classify(of_embeddings(x, episodes.support.y, query, ways)).detach()
        torch.testing.assert_close(logits, query @ weights, rtol=1e-6, atol=1e-8)


def test_a_lambda_per_image_does_not_count_padding_rows():
    algorithm, episodes = r2d2(lambda_per_image=True), random_episodes()
    x, y, query = normal(3, 6, 4), episodes.support.y, normal(3, 6, 4)
    mask = torch.tensor([True, True, True, True, True, False]).expand(3, -1)
    padded = of_embeddings(x, y, query, 3)
    padded = replace(padded, support=replace(padded.support, mask=mask))
    logits = algorithm.classify(of_embeddings(x[:, :5], y[:, :5], query, 3))
    torch.testing.assert_close(algorithm.classify(padded), logits, **EXACT)


def test_a_fixed_lambda_is_not_learned():
    algorithm, episodes = r2d2(init_lambda=50.0, learn_lambda=False), random_episodes()
    optimizer = torch.optim.SGD(algorithm.parameters(), lr=1.0)
    algorithm.loss(episodes).loss.backward()
    optimizer.step()
    after = algorithm.learned()
    assert after["lambda"].item() == pytest.approx(50)
    assert after["alpha"].item() != pytest.approx(10)


# --- prediction


def test_mixed_precision_keeps_out_of_the_regression():
    algorithm, episodes = learner().eval(), TEST.batch(0, 2)
    exact = algorithm.predict(episodes)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = algorithm.predict(episodes)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, exact, rtol=0.1, atol=0.1)


def test_noise_is_classified_at_chance():
    assert is_at_chance(learner(), EpisodeSampler(noise_classes(), "test", TASK, 0))


# --- learning


@pytest.fixture(scope="module")
def trained() -> R2D2:
    algorithm = learner()
    assert accuracy(algorithm, TEST) < 0.35
    train(algorithm, TRAIN, iterations=200)
    return algorithm


def test_learns_to_tell_unseen_classes_apart(trained):
    assert accuracy(trained, TEST) > 0.8


def test_is_tested_on_more_ways_and_shots_than_it_was_trained_on(trained):
    one, five = (accuracy(trained, EpisodeSampler(faint_patterns(seed=1), "test", Task(20, k, 5), 0), 50) for k in (1, 5))
    assert 0.5 < one < five


@pytest.mark.parametrize("broken", [shuffled, without_gradient])
def test_a_broken_copy_learns_nothing(broken):
    algorithm = learner(broken(R2D2))
    train(algorithm, TRAIN, iterations=200)
    assert accuracy(algorithm, TEST) < 0.35


# --- the training episodes of the authors' code


def test_what_is_left_of_the_images_of_a_class_are_queries():
    algorithm = r2d2(train_ways=4, train_shots=Range(1, 9), train_images=10)
    task = algorithm.train_task(Task(5, 1, 15))
    assert str(task) == "4-way 1..9-shot, 1..9 queries per class"
    assert algorithm.train_problems(task) == []
    sampler = UnevenSampler(EpisodeSampler(faint_patterns(), "train", task.smallest, 0), task, "train", 0)
    found = [sampler.batch(number, 1) for number in range(40)]
    assert {each.support.y.shape[1] + each.query.y.shape[1] for each in found} == {40}
    assert {each.support.y.shape[1] // 4 for each in found} == set(range(1, 10))


def test_shots_that_leave_no_query_are_refused_in_training_only():
    algorithm = r2d2(train_images=10)
    task = algorithm.train_task(Task(5, 10, 15))
    (problem,) = algorithm.train_problems(task)
    assert str(problem).startswith("algo.train_images: 10 shots of 10 images of a class leave no query (use at least 11")
