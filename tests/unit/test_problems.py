"""Problems: losses, scores and derivatives against autograd and hand-written formulas; how scores are written."""

from __future__ import annotations

import math

import pytest
import torch

from fsl_cli.episodes import Classification, Problem, Regression
from fsl_cli.statistics.scores import ACCURACY, MSE

MASK = torch.tensor([[True, True, False, True], [True, False, False, True]])
PROBLEMS = [Classification(3), Regression(), Regression(2)]


def examples(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(2, 4, problem.outputs, generator=generator, dtype=torch.float64)
    if problem.has_ways:
        return outputs, torch.randint(problem.outputs, (2, 4), generator=generator)
    return outputs, torch.randn(outputs.shape, generator=generator, dtype=torch.float64)


def test_losses_and_scores_match_the_formulas_over_unmasked_rows():
    logits, labels = examples(Classification(3))
    for task in range(2):
        rows = [row for row in range(4) if MASK[task, row]]
        p = logits[task].softmax(-1)
        loss = -sum(math.log(p[row, labels[task, row]]) for row in rows) / len(rows)
        right = sum(int(p[row].argmax() == labels[task, row]) for row in rows) / len(rows)
        scores = Classification(3).scores(logits, labels, MASK)
        assert list(scores) == ["accuracy", "loss"]
        assert scores["loss"][task].item() == pytest.approx(loss)
        assert scores["accuracy"][task].item() == pytest.approx(right)
    outputs, targets = examples(Regression(2))
    for task in range(2):
        rows = [row for row in range(4) if MASK[task, row]]
        mse = sum(float(outputs[task, row, o] - targets[task, row, o]) ** 2 for row in rows for o in (0, 1)) / (2 * len(rows))
        assert list(Regression(2).scores(outputs, targets, MASK)) == ["mse"]
        assert Regression(2).scores(outputs, targets, MASK)["mse"][task].item() == pytest.approx(mse)
        assert Regression(2).loss(outputs, targets, MASK)[task].item() == pytest.approx(mse)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_derivatives_match_autograd(problem, masked):
    outputs, targets = examples(problem)
    mask = MASK if masked else None
    outputs.requires_grad_()
    (gradient,) = torch.autograd.grad(problem.loss(outputs, targets, mask).sum(), outputs, create_graph=True)
    weights = 1 / 4 if mask is None else (mask.double() / mask.sum(1, keepdim=True)).unsqueeze(-1)
    saved: dict[str, torch.Tensor] = {}
    found = problem.loss_gradient(outputs.detach(), problem.encoded(targets, torch.float64), weights, saved)
    torch.testing.assert_close(found, gradient.detach(), rtol=1e-12, atol=1e-14)
    tangent = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (product,) = torch.autograd.grad(gradient, outputs, tangent)
    torch.testing.assert_close(problem.loss_gradient_tangent(tangent, weights, saved), product, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_the_loss_of_an_episode_does_not_depend_on_the_batch(problem):
    outputs, targets = examples(problem)
    both = problem.loss(outputs, targets)
    torch.testing.assert_close(torch.stack([problem.loss(*each) for each in zip(outputs, targets, strict=True)]), both)


def test_scores_are_written_with_their_unit_and_the_interval_with_the_digits_of_the_mean():
    assert ACCURACY.text(0.93674, 0.00361) == "93.67 ± 0.36 %"
    assert ACCURACY.text(0.9367, digits=1) == "93.7 %"
    assert (ACCURACY.label, MSE.label) == ("accuracy %", "mse")
    assert MSE.text(0.159012, 0.012941) == "0.1590 ± 0.0129"
    assert MSE.text(12.3456, 0.98765) == "12.35 ± 0.99"
    assert MSE.text(1.2341e-7, 1e-8) == "1.234e-07 ± 1.000e-08"
    assert MSE.text(float("nan"), float("nan")) == "none"


def test_which_of_two_values_is_better_and_nan_is_worse_than_any():
    assert ACCURACY.better(0.9, 0.8)
    assert not MSE.better(0.9, 0.8)
    assert MSE.better(0.8, 0.9)
    for score in (ACCURACY, MSE):
        assert score.better(0.5, math.nan)
        assert not score.better(math.nan, 0.5)
        assert not score.better(math.nan, math.nan)
