"""Problems other than classes: derivatives of the losses, engines on regression, and sinusoids."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from fsl_cli.algos.maml import MAML
from fsl_cli.datasets.sinusoid import Sinusoid
from fsl_cli.episodes import Classification, Episodes, Examples, Problem, Regression, Task

PROBLEMS = [Classification(3), Regression(1), Regression(2)]


def drawn(problem: Problem) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Outputs ``[2, 5, O]``, targets, and a weight for each row."""
    generator = torch.Generator().manual_seed(0)
    outputs, weights = (torch.randn(2, 5, size, generator=generator, dtype=torch.float64) for size in (problem.outputs, 1))
    if isinstance(problem, Regression):
        return outputs, torch.randn(outputs.shape, generator=generator, dtype=torch.float64), weights
    return outputs, torch.randint(problem.outputs, (2, 5), generator=generator), weights


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_derivatives_of_the_loss_are_those_of_autograd(problem):
    outputs, targets, weights = drawn(problem)

    def weighted(outputs: torch.Tensor) -> torch.Tensor:
        of_each_row = problem.loss(outputs[:, :, None], targets[:, :, None])
        return (weights[..., 0] * of_each_row).sum()

    gradient = torch.func.grad(weighted)
    saved: dict[str, torch.Tensor] = {}
    encoded = problem.encoded(targets, torch.float64)
    torch.testing.assert_close(problem.loss_gradient(outputs, encoded, weights, saved), gradient(outputs))
    tangent = torch.randn(outputs.shape, dtype=torch.float64)
    _, expected = torch.func.jvp(gradient, (outputs,), (tangent,))
    torch.testing.assert_close(problem.loss_gradient_tangent(tangent, weights, saved), expected)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_rows_that_are_no_examples_do_not_count(problem):
    outputs, targets, _ = drawn(problem)
    mask = torch.tensor([[True, True, False, True, False], [True, False, False, False, False]])
    losses, scores = problem.loss(outputs, targets, mask), problem.scores(outputs, targets, mask)
    for task in range(2):
        kept = outputs[task][mask[task]], targets[task][mask[task]]
        torch.testing.assert_close(losses[task], problem.loss(*kept))
        for name, value in problem.scores(*kept).items():
            torch.testing.assert_close(scores[name][task], value)


def regression_episodes() -> Episodes:
    generator = torch.Generator().manual_seed(1)
    support, query = (
        Examples(*(torch.randn(3, rows, size, generator=generator, dtype=torch.float64) for size in (1, 2))) for rows in (5, 4)
    )
    return Episodes(support, query, Regression(2))


@pytest.mark.parametrize("options", [{}, {"first_order": True}, {"inner_lr_learning": "per_parameter"}], ids=str)
def test_engines_agree_on_regression(options):
    found = []
    for engine in ("loop", "vmap", "fast"):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(1, 8), nn.ReLU())
        algorithm = MAML(net, 8, 2, engine, inner_lr=0.1, inner_steps=3, **options).double()
        nn.init.normal_(algorithm.net.head.weight)
        loss = algorithm.loss(regression_episodes()).loss
        loss.backward()
        found.append([loss.detach(), *(each.grad for each in algorithm.parameters())])
    assert min(each.abs().max() for each in found[0]) > 1e-4
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-8, atol=1e-11)


# --- sinusoids

TASK = Task(5, 10, 15)


def test_sinusoids_are_those_of_the_paper():
    episodes = Sinusoid().sampler("train", TASK, 0).batch(0, 2000)
    assert (episodes.support.x.shape, episodes.query.y.shape) == ((2000, 10, 1), (2000, 15, 1))
    x, y = (torch.cat([getattr(e, name) for e in (episodes.support, episodes.query)], 1)[..., 0].double() for name in "xy")
    basis = torch.stack([x.sin(), x.cos()], -1)  # A sin(x - phi) = (A cos phi) sin x - (A sin phi) cos x
    fitted = torch.linalg.lstsq(basis, y[..., None]).solution
    torch.testing.assert_close(basis @ fitted, y[..., None], rtol=0, atol=1e-5)
    amplitude, phase = fitted.norm(dim=1)[:, 0], torch.atan2(-fitted[:, 1, 0], fitted[:, 0, 0])
    for values, low, high in ((amplitude, 0.1, 5), (phase, 0, np.pi), (x[:, 0], -5, 5), (x[:, -1], -5, 5)):
        assert low - 1e-4 < values.min() < values.max() < high + 1e-4
        assert stats.kstest(values.numpy(), stats.uniform(low, high - low).cdf).pvalue > 0.001
    assert abs(np.corrcoef(amplitude, phase)[0, 1]) < 0.1


def same(one: Episodes, other: Episodes) -> bool:
    pairs = zip((one.support, one.query), (other.support, other.query), strict=True)
    return all(torch.equal(a.x, b.x) and torch.equal(a.y, b.y) for a, b in pairs)


def test_an_episode_of_sinusoids_is_a_pure_function_of_seed_split_and_index():
    def sampler(split="test", seed=0, task=TASK):
        return Sinusoid().sampler(split, task, seed)

    whole = sampler().batch(3, 6)
    each = list(whole.split(1))
    assert all(same(sampler().batch(3 + index, 1), each[index]) for index in range(6))
    assert not same(each[0], each[1])
    for other in (sampler("val"), sampler(seed=1)):
        assert not same(other.batch(3, 6), whole)
        assert other.digest(9) != sampler().digest(9)
    assert sampler().digest(9) == sampler().digest(9) != sampler().digest(8)
    more = sampler(task=replace(TASK, queries=20)).batch(3, 6)
    assert torch.equal(more.support.x, whole.support.x)
    assert torch.equal(more.query.y[:, :15], whole.query.y)
