"""Meta-testing: N fixed episodes of a split, one value per episode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fsl_cli import metrics
from fsl_cli.algos.algorithm import Algorithm
from fsl_cli.episodes import EpisodeSampler
from fsl_cli.hardware import Hardware

_IMAGES = 256  # embedded at once: more are no faster
_EPISODES = 8  # the processes' shares are multiples of it, so that a processor computes the same chunks as one process
_DRAWN = 256  # episodes drawn at once, without their images


@dataclass(frozen=True)
class EpisodeScores:
    """One value per episode, in the order of the episodes.

    Attributes:
        accuracy: float64 ``[n]`` in 0..1.
        loss: float64 ``[n]``, cross-entropy in nats.
    """

    accuracy: np.ndarray
    loss: np.ndarray


@dataclass(frozen=True)
class Embedded:
    """The images of some episodes, each embedded once.

    Attributes:
        table: ``[distinct images, ...]``.
        row: int64 ``[images of the split]``, where in the table an image is.
    """

    table: Tensor
    row: Tensor

    def of(self, images: np.ndarray) -> Tensor:
        """Embeddings ``[T, B, ...]`` of images of the split, int64 ``[T, ...]``, B in all for each T."""
        rows = self.row[torch.from_numpy(images.reshape(len(images), -1)).to(self.row.device)]
        return self.table[rows]


@torch.no_grad()
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
        hardware: device, precision, how many episodes are computed at once, and the processes; each of them computes
            its share of the episodes and returns the scores of all.
        advance: called with the number of episodes done; where images are embedded first, that is half the work.
    """
    scores = []
    share = hardware.processes.share(episodes, _EPISODES)
    training = algorithm.training
    algorithm.eval()
    try:
        with hardware.autocast():
            embedded = _embed(algorithm, sampler, episodes, hardware, advance) if algorithm.embeds else None
        firsts = range(share.start, share.stop, hardware.task_chunk)
        left = episodes // 2 if embedded else episodes
        for first, amount in zip(firsts, portions(left, len(firsts)), strict=True):
            count = min(hardware.task_chunk, share.stop - first)
            with hardware.autocast():
                logits, labels = _predict(algorithm, sampler, first, count, embedded)
            exact, labels = logits.cpu().double(), labels.cpu()
            scores.append(torch.stack([metrics.accuracy(exact, labels), metrics.cross_entropy(exact, labels)], dim=1))
            advance(amount)
    finally:
        algorithm.train(training)
    accuracy, loss = hardware.processes.gather(torch.cat(scores) if scores else None).T.contiguous().numpy()
    return EpisodeScores(accuracy, loss)


def _predict(
    algorithm: Algorithm, sampler: EpisodeSampler, first: int, count: int, embedded: Embedded | None
) -> tuple[Tensor, Tensor]:
    """Query logits and labels of episodes ``first .. first+count-1``."""
    if embedded is None:
        batch = sampler.batch(first, count)
        return algorithm.predict(batch), batch.query_y
    shots = sampler.task.shots
    images = sampler.indices(first, count).images
    support, query = embedded.of(images[:, :, :shots]), embedded.of(images[:, :, shots:])
    support_y, query_y = sampler.labels(count)
    return algorithm.classify(support, support_y, query, sampler.task.ways), query_y


def _embed(
    algorithm: Algorithm, sampler: EpisodeSampler, episodes: int, hardware: Hardware, advance: Callable[[int], None]
) -> Embedded:
    """Embed every image that occurs in the first ``episodes`` episodes, each in one of the processes."""
    images = torch.from_numpy(_occurring(sampler, episodes))
    task, share = sampler.task, hardware.processes.share(len(images), _IMAGES)
    at_once = min(_IMAGES, hardware.task_chunk * task.ways * (task.shots + task.queries))
    batches = images[share.start : share.stop].split(at_once) if share else ()
    table: list[Tensor] = []
    for batch, amount in zip(batches, portions(episodes - episodes // 2, len(batches)), strict=True):
        table.append(algorithm.embed(sampler.images(batch)))
        advance(amount)
    row = torch.full((int(images[-1]) + 1,), -1)
    row[images] = torch.arange(len(images))
    return Embedded(hardware.processes.gather(torch.cat(table) if table else None), row.to(sampler.device))


def _occurring(sampler: EpisodeSampler, episodes: int) -> np.ndarray:
    """Images of the split that occur in the first ``episodes`` episodes, int64, ascending."""
    occurs = np.zeros(len(sampler.source.images), dtype=bool)
    for first in range(0, episodes, _DRAWN):
        occurs[sampler.indices(first, min(_DRAWN, episodes - first)).images] = True
    return np.flatnonzero(occurs)


def portions(total: int, pieces: int) -> Iterator[int]:
    """Whole numbers that add up to ``total``, as equal as possible."""
    return (total * (piece + 1) // pieces - total * piece // pieces for piece in range(pieces))
