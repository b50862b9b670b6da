"""Shared by the tests of methods with a fitted head: learnable data, broken copies, finite differences."""

from __future__ import annotations

import pytest
import torch
from problems import changed
from small_training import faint_patterns

from fsl_cli.algos.common.algorithm import Algorithm, Step
from fsl_cli.episodes import Episodes, EpisodeSampler, Task

SHAPE = (2, 4, 4)
TASK = Task(5, 1, 5)
TRAIN = EpisodeSampler(faint_patterns(seed=0), "train", TASK, 0)
TEST = EpisodeSampler(faint_patterns(seed=1), "test", TASK, 0)  # other patterns


def normal(*shape: int) -> torch.Tensor:
    """Reproducible standard normal numbers, float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def shuffled(cls: type[Algorithm]) -> type[Algorithm]:
    """A broken copy of ``cls``: support labels are shuffled in training, so they are unrelated to the queries."""

    def loss(self: Algorithm, episodes: Episodes) -> Step:
        labels = torch.stack([each[torch.randperm(len(each))] for each in episodes.support.y])
        return cls.loss(self, changed(episodes, support_y=labels))

    return type("Shuffled", (cls,), {"loss": loss})


def without_gradient(cls: type[Algorithm]) -> type[Algorithm]:
    """A broken copy of ``cls``: the head does not pass a gradient to the embeddings."""

    def classify(self: Algorithm, episodes: Episodes) -> torch.Tensor:
        support, query = episodes.support.x.detach(), episodes.query.x.detach()
        return cls.classify(self, episodes.with_embeddings(support, query))

    return type("WithoutGradient", (cls,), {"classify": classify})


def gradient_is_the_finite_difference(algorithm: Algorithm, episodes: Episodes) -> None:
    """Compare the gradient of the loss with central differences, for the first and last entry of every parameter."""
    algorithm.loss(episodes).loss.backward()
    for parameter in algorithm.parameters():
        flat, gradient = parameter.data.view(-1), parameter.grad.view(-1)
        assert gradient.any()
        for position in {0, len(flat) - 1}:
            losses = []
            for sign in (1, -1):
                before = flat[position].item()
                flat[position] = before + sign * 1e-5
                losses.append(algorithm.loss(episodes).loss.item())
                flat[position] = before
            assert gradient[position].item() == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-4, abs=1e-8)
