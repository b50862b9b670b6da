"""Sinusoids: what is drawn, as a pure function of seed, split and index."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fsl_cli.datasets.sinusoid import Sinusoid, SinusoidSampler
from fsl_cli.episodes import Episodes, Regression, Task
from fsl_cli.errors import FslError

TASK = Task(1, 10, 20)


def sampler(split: str = "train", seed: int = 0, task: Task = TASK) -> SinusoidSampler:
    return Sinusoid().sampler(split, task, seed)  # type: ignore[arg-type]


def points(episodes: Episodes) -> torch.Tensor:
    """x and y of all points ``[T, B, 2]``."""
    return torch.cat([torch.cat([each.x, each.y], -1) for each in (episodes.support, episodes.query)], 1)


def test_points_lie_on_sinusoids_of_the_papers_amplitudes_and_phases():
    drawn = points(sampler().batch(0, 400)).double()
    x, y = drawn[..., 0], drawn[..., 1]
    assert drawn.shape == (400, 30, 2)
    assert float(x.min()) >= -5
    assert float(x.max()) <= 5
    # y = a sin x + b cos x with a = A cos phi, b = -A sin phi: least squares finds them without knowing how they were drawn
    basis = torch.stack([x.sin(), x.cos()], -1)
    solved = torch.linalg.lstsq(basis, y.unsqueeze(-1)).solution.squeeze(-1)
    torch.testing.assert_close((basis @ solved.unsqueeze(-1)).squeeze(-1), y, rtol=0, atol=1e-5)
    amplitude, phase = solved.norm(dim=-1), torch.atan2(-solved[:, 1], solved[:, 0])
    for values, low, high in ((amplitude, 0.1, 5.0), (phase, 0.0, math.pi), (x.flatten(), -5.0, 5.0)):
        scaled = ((values - low) / (high - low)).numpy()
        assert scaled.min() > -1e-4
        assert scaled.max() < 1 + 1e-4
        counts = np.histogram(scaled, bins=4, range=(0, 1))[0] / len(scaled)
        np.testing.assert_allclose(counts, 0.25, atol=0.08)


def test_an_episode_is_the_same_whatever_the_batch_and_the_number_of_queries():
    whole = points(sampler().batch(0, 9))
    pieces = torch.cat([points(sampler().batch(first, 3)) for first in (0, 3, 6)])
    assert torch.equal(whole, pieces)
    more = sampler(task=Task(1, 10, 100)).batch(0, 9)
    assert torch.equal(points(more)[:, :30], whole)


def test_splits_seeds_and_episodes_differ():
    one = points(sampler().batch(0, 2))
    assert not torch.equal(one[0], one[1])
    assert not torch.equal(one, points(sampler("val").batch(0, 2)))
    assert not torch.equal(one, points(sampler(seed=1).batch(0, 2)))


def test_the_digest_identifies_the_episodes():
    assert sampler().digest(5) == sampler().digest(5)
    others = [sampler().digest(6), sampler("val").digest(5), sampler(seed=1).digest(5), sampler(task=Task(1, 5, 20)).digest(5)]
    assert len({sampler().digest(5), *others}) == 5


def test_the_problem_is_regression_of_one_number():
    data = Sinusoid()
    assert (data.problem(TASK), data.example_shape, data.classes()) == (Regression(1), (1,), None)
    assert data.task_problems({"train": TASK}) == []
    with pytest.raises(FslError, match=r"dataset\.amplitude: 0\.05 is not greater than"):
        Sinusoid(amplitude=0.05)
