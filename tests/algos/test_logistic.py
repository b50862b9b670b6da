"""Logistic regression on pre-trained features, against scikit-learn."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from closed_form import SHAPE, TEST, normal
from problems import TinyNet, of_embeddings
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import normalize
from small_training import accuracy, faint_patterns, train
from torch.nn import functional as F

from fsl_cli.algos.common.logistic_regression import fit
from fsl_cli.algos.logistic import Logistic
from fsl_cli.backbones.mlp import MLP
from fsl_cli.episodes import EpisodeSampler, Task


def scikit_learns(inputs, labels, penalty: float) -> LogisticRegression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # so close to the optimum its line search may find nothing better
        return LogisticRegression(C=penalty, solver="newton-cholesky", tol=1e-12, max_iter=1000).fit(inputs, labels)


@pytest.mark.parametrize("size", [0.1, 1, 10])
@pytest.mark.parametrize("penalty", [0.01, 1.0])
@pytest.mark.parametrize(("ways", "shots", "width"), [(5, 1, 64), (5, 5, 64), (3, 8, 3), (12, 2, 30)])
def test_every_task_has_scikit_learns_classifier(ways, shots, width, penalty, size):
    torch.manual_seed(0)
    inputs = size * normal(3, ways * shots, width)
    labels = torch.stack([torch.arange(ways).repeat(shots)[torch.randperm(ways * shots)] for _ in range(3)])
    weights, offsets = fit(inputs, labels, ways, penalty)
    for task in range(3):
        expected = scikit_learns(inputs[task].numpy(), labels[task].numpy(), penalty)
        np.testing.assert_allclose(weights[task], expected.coef_, rtol=1e-5, atol=1e-5 * abs(expected.coef_).max())
        centred = expected.intercept_ - expected.intercept_.mean()
        np.testing.assert_allclose(offsets[task], centred, rtol=1e-5, atol=1e-5 * max(1, abs(centred).max()))


def objective(inputs: torch.Tensor, labels: torch.Tensor, penalty: float, weights, offsets) -> float:
    logits = inputs @ torch.as_tensor(weights).T + torch.as_tensor(offsets)
    return (penalty * F.cross_entropy(logits, labels, reduction="sum") + torch.as_tensor(weights).square().sum() / 2).item()


@pytest.mark.parametrize("size", [1, 10])
@pytest.mark.parametrize(("ways", "shots", "width"), [(5, 1, 64), (5, 5, 64), (12, 2, 30)])
def test_a_penalty_at_which_scikit_learn_may_stop_early_is_minimised_at_least_as_well(ways, shots, width, size):
    torch.manual_seed(0)
    inputs, labels = size * normal(3, ways * shots, width), torch.arange(ways).repeat(shots).expand(3, -1)
    weights, offsets = fit(inputs, labels, ways, 1e4)
    for task in range(3):
        expected = scikit_learns(inputs[task].numpy(), labels[task].numpy(), 1e4)
        best = objective(inputs[task], labels[task], 1e4, expected.coef_, expected.intercept_)
        assert objective(inputs[task], labels[task], 1e4, weights[task], offsets[task]) < best + 1e-7 * abs(best)


def test_rows_that_do_not_count_have_no_effect():
    inputs, labels = normal(2, 9, 6), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 0]).expand(2, -1)
    mask = torch.tensor([True] * 6 + [False, True, False]).expand(2, -1)
    for found, expected in zip(
        fit(inputs * torch.where(mask, 1.0, 1e3).unsqueeze(-1), labels, 3, 2.0, mask),
        fit(inputs[:, mask[0]], labels[:, mask[0]], 3, 2.0),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_features_that_are_all_zero_give_the_frequencies_of_the_classes():
    weights, offsets = fit(torch.zeros(1, 6, 4), torch.tensor([[0, 0, 0, 1, 1, 2]]), 3, 1.0)
    assert not weights.any()
    torch.testing.assert_close(offsets.softmax(-1), torch.tensor([[3 / 6, 2 / 6, 1 / 6]]))


@pytest.mark.parametrize("transform", ["un", "l2n", "cl2n"])
def test_logits_are_scikit_learns_decision_function_of_transformed_features(transform):
    torch.manual_seed(0)
    algorithm = Logistic(TinyNet(), 4, 7, transform=transform, penalty=3.0).double()
    algorithm.center.mean.copy_(normal(4))
    support, query, labels = 2 + normal(3, 8, 4), 2 + normal(3, 30, 4), torch.arange(4).repeat(3, 2)
    logits = algorithm.classify(of_embeddings(support, labels, query, 4))
    for task in range(3):
        s, q = (x[task].numpy() - (algorithm.center.mean.numpy() if transform == "cl2n" else 0) for x in (support, query))
        if transform != "un":
            s, q = normalize(s), normalize(q)
        expected = scikit_learns(s, labels[task].numpy(), 3.0).predict_log_proba(q)
        np.testing.assert_allclose(logits[task].log_softmax(-1), expected, rtol=1e-5, atol=1e-6)


def test_learns_to_tell_unseen_classes_apart():
    torch.manual_seed(0)
    algorithm = Logistic(MLP(SHAPE, widths=[32]), 32, 60, train_ways=20)
    assert accuracy(algorithm, TEST) < 0.35
    train(algorithm, EpisodeSampler(faint_patterns(seed=0), "train", Task(20, 1, 1), 0), iterations=200)
    assert accuracy(algorithm, TEST) > 0.7
