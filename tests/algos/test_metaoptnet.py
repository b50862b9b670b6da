"""MetaOptNet: the support vector machine against scikit-learn and scipy, its gradient against finite differences."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from closed_form import SHAPE, TASK, TEST, TRAIN, gradient_is_the_finite_difference, normal, shuffled, without_gradient
from problems import TinyNet, random_episodes
from scipy.optimize import minimize
from sklearn.svm import LinearSVC
from small_training import accuracy, faint_patterns, is_at_chance, noise_classes, train

from fsl_cli.algos.common.crammer_singer import dual_variables
from fsl_cli.algos.metaoptnet import MetaOptNet
from fsl_cli.backbones.mlp import MLP
from fsl_cli.episodes import EpisodeSampler, Task


def metaoptnet(**options) -> MetaOptNet:
    """MetaOptNet in float64, with batch normalisation averages other than the initial ones."""
    torch.manual_seed(0)
    algorithm = MetaOptNet(TinyNet(), **options).double()
    algorithm.backbone.norm.running_mean.normal_()
    algorithm.backbone.norm.running_var.uniform_(0.5, 2)
    return algorithm


def learner(cls: type[MetaOptNet] = MetaOptNet, **options) -> MetaOptNet:
    torch.manual_seed(0)
    return cls(MLP(SHAPE, widths=[32]), train_ways=None, init_scale=1.0, **options)


def labels_of(ways: int, shots: int, tasks: int) -> torch.Tensor:
    """Labels in another order for each task."""
    labels = torch.arange(ways).repeat_interleave(shots)
    return torch.stack([labels[torch.randperm(len(labels))] for _ in range(tasks)])


def scikit_learns(inputs: torch.Tensor, labels: torch.Tensor, penalty: float) -> np.ndarray:
    """Weights ``[N, D]`` of scikit-learn's machine of Crammer and Singer."""
    machine = LinearSVC(
        multi_class="crammer_singer", fit_intercept=False, C=penalty, tol=1e-10, max_iter=1_000_000, random_state=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return machine.fit(inputs.numpy(), labels.numpy()).coef_


# --- the support vector machine


@pytest.mark.parametrize(("ways", "shots", "width"), [(5, 1, 16), (4, 5, 8), (3, 3, 20)])
@pytest.mark.parametrize("penalty", [0.1, 2.0])
def test_weights_are_scikit_learns(ways, shots, width, penalty):
    torch.manual_seed(0)
    inputs, labels = normal(3, ways * shots, width), labels_of(ways, shots, 3)
    kernel = inputs @ inputs.mT + 1e-9 * torch.eye(ways * shots)
    weights = dual_variables(kernel, labels, ways, penalty).mT @ inputs
    for task in range(3):
        np.testing.assert_allclose(weights[task], scikit_learns(inputs[task], labels[task], penalty), atol=1e-5)


def test_dual_variables_are_scipys():
    """With a ridge, which scikit-learn has not: sequential quadratic programming on the dual."""
    torch.manual_seed(0)
    ways, penalty, labels = 3, 0.5, labels_of(3, 2, 1)
    inputs = normal(1, 6, 4)
    kernel = inputs @ inputs.mT + 0.8 * torch.eye(6)
    k, y = kernel[0].numpy(), np.eye(ways)[labels[0].numpy()]
    found = minimize(
        lambda a: 0.5 * np.sum(a.reshape(6, 3) * (k @ a.reshape(6, 3))) - np.sum(y * a.reshape(6, 3)),
        np.zeros(18),
        bounds=[(None, penalty * target) for target in y.flatten()],
        constraints={"type": "eq", "fun": lambda a: a.reshape(6, 3).sum(1)},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    assert found.success
    solved = dual_variables(kernel, labels, ways, penalty)[0].numpy()
    np.testing.assert_allclose(solved, found.x.reshape(6, 3), atol=1e-6)


@pytest.mark.parametrize("size", [0.01, 1, 30, 300])
@pytest.mark.parametrize("penalty", [0.01, 0.1, 10])
@pytest.mark.parametrize(("ways", "shots"), [(5, 1), (5, 5), (20, 1), (2, 10)])
def test_embeddings_of_any_size_are_solved_to_the_optimality_conditions(ways, shots, size, penalty):
    torch.manual_seed(0)
    labels = labels_of(ways, shots, 2)
    inputs = size * torch.randn(2, ways * shots, 32).double().relu()
    kernel = inputs @ inputs.mT + 1e-3 * torch.eye(ways * shots)
    a = dual_variables(kernel, labels, ways, penalty)
    targets = torch.nn.functional.one_hot(labels, ways)
    slack, score = penalty * targets - a, targets - kernel @ a
    multiplier = score - score.gather(2, slack.argmax(-1, keepdim=True))  # the sums' multiplier: where there is most slack
    tolerance = 1e-6
    assert slack.min() > -tolerance * penalty
    assert a.sum(-1).abs().max() < tolerance * penalty
    assert multiplier.min() > -tolerance
    assert (slack * multiplier).abs().max() < tolerance * penalty


def test_the_gradient_is_the_finite_difference():
    torch.manual_seed(0)
    labels = labels_of(3, 2, 2)
    inputs = normal(2, 6, 4).requires_grad_()

    def weights(x: torch.Tensor) -> torch.Tensor:
        return dual_variables(x @ x.mT + 0.1 * torch.eye(6), labels, 3, 0.1).mT @ x

    a = dual_variables((inputs @ inputs.mT + 0.1 * torch.eye(6)).detach(), labels, 3, 0.1)
    at_bound = (a > 0.1 - 1e-6).sum(), (a.abs() < 1e-6).sum()
    assert min(at_bound) > 0  # the derivative knows which constraints hold
    assert torch.autograd.gradcheck(weights, inputs, eps=1e-6, atol=1e-5)


def test_each_task_is_solved_by_itself():
    torch.manual_seed(0)
    inputs, labels = normal(4, 6, 5), labels_of(3, 2, 4)
    kernel = inputs @ inputs.mT + 0.01 * torch.eye(6)
    alone = torch.cat([dual_variables(kernel[task : task + 1], labels[task : task + 1], 3, 0.1) for task in range(4)])
    torch.testing.assert_close(dual_variables(kernel, labels, 3, 0.1), alone, rtol=1e-9, atol=1e-12)


# --- the algorithm


def test_predict_is_scikit_learns_decision_function():
    algorithm, episodes = metaoptnet(ridge=1e-9, init_scale=3.0), random_episodes()
    logits = algorithm.predict(episodes)
    for task in range(len(episodes)):
        support, query = (algorithm.embed(x[task]).detach() for x in (episodes.support.x, episodes.query.x))
        weights = torch.from_numpy(scikit_learns(support, episodes.support.y[task], 0.1))
        torch.testing.assert_close(logits[task], 3.0 * query @ weights.T, rtol=1e-4, atol=1e-6)


def test_loss_is_the_smoothed_cross_entropy_in_loops():
    algorithm, episodes = metaoptnet(label_smoothing=0.2), random_episodes()
    step = algorithm.loss(episodes)
    total = 0.0
    for task in range(3):
        for query in range(6):
            log_p = step.outputs[task, query].log_softmax(0)
            for label in range(3):
                total -= (0.8 if label == episodes.query.y[task, query] else 0.1) * log_p[label].item() / 18
    assert step.loss.item() == pytest.approx(total)


def test_loss_has_a_gradient_for_every_parameter_and_it_is_the_finite_difference():
    gradient_is_the_finite_difference(metaoptnet(), random_episodes())


def test_scale_is_logged():
    assert metaoptnet(init_scale=2.5).loss(random_episodes()).metrics["scale"].item() == 2.5


def test_noise_is_classified_at_chance():
    assert is_at_chance(learner(), EpisodeSampler(noise_classes(), "test", TASK, 0), 200)


# --- learning


@pytest.fixture(scope="module")
def trained() -> MetaOptNet:
    algorithm = learner()
    assert accuracy(algorithm, TEST) < 0.35
    train(algorithm, TRAIN, iterations=120, meta_batch=2)
    return algorithm


def test_learns_to_tell_unseen_classes_apart(trained):
    assert accuracy(trained, TEST) > 0.8


def test_is_tested_on_more_ways_and_shots_than_it_was_trained_on(trained):
    one, five = (accuracy(trained, EpisodeSampler(faint_patterns(seed=1), "test", Task(10, k, 5), 0), 30) for k in (1, 5))
    assert 0.5 < one < five


@pytest.mark.parametrize("broken", [shuffled, without_gradient])
def test_a_broken_copy_learns_nothing(broken):
    algorithm = learner(broken(MetaOptNet))
    train(algorithm, TRAIN, iterations=120, meta_batch=2)
    assert accuracy(algorithm, TEST, 100) < 0.35
