"""Learnable data and training runs of a few seconds, shared by the tests."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import torch
from torch import nn

from fsl_cli.algos.common.algorithm import Algorithm
from fsl_cli.backbones.batch_norm import BatchNorm
from fsl_cli.compute.hardware import Hardware
from fsl_cli.episodes import EpisodeSampler
from fsl_cli.episodes.class_images import ClassImages
from fsl_cli.episodes.sampler import Sampler
from fsl_cli.evaluation import evaluate
from fsl_cli.settings.schema import TrainSettings
from fsl_cli.training import Hooks, Training

CPU = Hardware(torch.device("cpu"), "fp32", 8)


def faint_patterns(classes: int = 60, images: int = 20, size: int = 4, seed: int = 0) -> ClassImages:
    """Two channels: a faint pattern specific to the class, and strong noise.

    An untrained network hardly does better than chance; one that has learned to look at the first channel does well
    on new patterns too.
    """
    draw = np.random.default_rng(seed)
    patterns = draw.random((classes, 1, size, size)) > 0.5
    flipped = np.where(draw.random((classes, images, size, size)) < 0.02, ~patterns, patterns)
    noise = draw.integers(0, 256, (classes, images, size, size))
    pixels = np.stack([120 + 32 * flipped, noise], axis=2).astype(np.uint8)
    return ClassImages(torch.from_numpy(pixels).flatten(0, 1), np.full(classes, images), [f"p{i}" for i in range(classes)])


def noise_classes(classes: int = 30, images: int = 12, size: int = 4) -> ClassImages:
    """Classes of pure noise, which cannot be distinguished."""
    pixels = np.random.default_rng(1).integers(0, 256, (classes * images, 2, size, size), dtype=np.uint8)
    return ClassImages(torch.from_numpy(pixels), np.full(classes, images), [f"n{i}" for i in range(classes)])


def train_settings(**changes: Any) -> TrainSettings:
    """Settings of a short training without validation."""
    values: dict[str, Any] = {
        "iterations": 100,
        "meta_batch": 4,
        "max_minutes": None,
        "optimizer": {},
        "schedule": "constant",
        "step_every": 10,
        "step_factor": 0.5,
        "clip_grad_norm": None,
        "log_every": 50,
        "val_every": 1000,
        "val_episodes": 10,
        "patience": None,
    }
    return TrainSettings(**(values | changes))


def train(algorithm: Algorithm, sampler: Sampler, *, lr: float = 0.01, **changes: Any) -> Training:
    """Train with Adam and discard the metrics."""
    optimizer = torch.optim.Adam(algorithm.parameters(), lr=lr)
    training = Training(algorithm, optimizer, sampler, train_settings(**changes), CPU)
    training.run(
        Hooks(
            lambda i, values: None,
            lambda: {f"val/{sampler.problem.headline.name}": 0.0},
            save=lambda best: None,
            advance=lambda i: None,
        )
    )
    return training


def accuracy(algorithm: Algorithm, sampler: EpisodeSampler, episodes: int = 200) -> float:
    """Mean test accuracy."""
    return float(evaluate(algorithm, sampler, episodes, CPU)["accuracy"].mean())


def is_at_chance(algorithm: Algorithm, sampler: EpisodeSampler, episodes: int = 400) -> bool:
    """Whether the accuracy is 1/N up to four standard errors; checks that these are small enough."""
    scores = evaluate(algorithm, sampler, episodes, CPU)["accuracy"]
    error = scores.std(ddof=1) / np.sqrt(len(scores))
    assert 0 < error < 0.02
    return bool(abs(scores.mean() - 1 / sampler.task.ways) < 4 * error)


def everything(algorithm: nn.Module) -> dict[str, Any]:
    """Everything that a prediction must not change: state, gradients, modes and random generators."""
    modules = list(algorithm.modules())
    return {
        "state": copy.deepcopy(algorithm.state_dict()),
        "gradients": [None if each.grad is None else each.grad.clone() for each in algorithm.parameters()],
        "wanted": [each.requires_grad for each in algorithm.parameters()],
        "identity": [id(each) for each in [*algorithm.parameters(), *algorithm.buffers(), *modules]],
        "training": [each.training for each in modules],
        "statistics": [(each.source, each.rows) for each in modules if isinstance(each, BatchNorm)],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].copy(),
        "python": random.getstate(),
    }


def is_same(one: Any, other: Any) -> bool:
    """Deep equality, including tensors and arrays."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(is_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(is_same, one, other))
    return bool(one == other)
