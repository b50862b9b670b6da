"""Meta-testing: N fixed episodes of a split, one value per episode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from fsl_cli import metrics
from fsl_cli.algos.algorithm import Algorithm
from fsl_cli.episodes import EpisodeSampler
from fsl_cli.hardware import Hardware


@dataclass(frozen=True)
class EpisodeScores:
    """One value per episode, in the order of the episodes.

    Attributes:
        accuracy: float64 ``[n]`` in 0..1.
        loss: float64 ``[n]``, cross-entropy in nats.
    """

    accuracy: np.ndarray
    loss: np.ndarray


def evaluate(
    algorithm: Algorithm,
    sampler: EpisodeSampler,
    episodes: int,
    hardware: Hardware,
    advance: Callable[[int], None] = lambda amount: None,
) -> EpisodeScores:
    """Score the first ``episodes`` episodes of ``sampler``.

    Args:
        algorithm: left exactly as it was.
        sampler: where the episodes come from.
        episodes: how many.
        hardware: device, precision and how many episodes are computed at once.
        advance: called with the number of episodes done.
    """
    accuracy, loss = [], []
    training = algorithm.training
    algorithm.eval()
    try:
        for first in range(0, episodes, hardware.task_chunk):
            batch = sampler.batch(first, min(hardware.task_chunk, episodes - first))
            with torch.no_grad(), hardware.autocast():
                logits = algorithm.predict(batch)
            exact, labels = logits.cpu().double(), batch.query_y.cpu()
            accuracy.append(metrics.accuracy(exact, labels))
            loss.append(metrics.cross_entropy(exact, labels))
            advance(len(batch))
    finally:
        algorithm.train(training)
    return EpisodeScores(*(torch.cat(values).numpy() for values in (accuracy, loss)))
