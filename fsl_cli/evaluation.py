"""Meta-testing: N fixed episodes of a split, one value per episode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fsl_cli.algos.common.algorithm import Algorithm
from fsl_cli.compute.hardware import Hardware
from fsl_cli.episodes import EpisodeSampler
from fsl_cli.statistics import classification as metrics

_IMAGES = 256  # embedded at once: more are no faster
_EPISODES = 8  # the processes' shares are multiples of it where there are too few for whole chunks
_DRAWN = 256  # episodes drawn at once, without their images


@dataclass(frozen=True)
class EpisodeScores:
    """One value per episode, in the order of the episodes.

    Attributes:
        accuracy: float64 ``[n]`` in 0..1.
        loss: float64 ``[n]``, cross-entropy in nats.
        curves: float64 ``[n, points]`` in 0..1, the accuracy along each curve of the algorithm, by its name.
    """

    accuracy: np.ndarray
    loss: np.ndarray
    curves: dict[str, np.ndarray] = field(default_factory=dict)


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
    *,
    curves: bool = False,
) -> EpisodeScores:
    """Score the first ``episodes`` episodes of ``sampler``.

    Args:
        algorithm: left exactly as it was.
        sampler: where the episodes come from.
        episodes: how many.
        hardware: device, precision, how many episodes are computed at once, and the processes; each of them computes
            its share of the episodes and returns the scores of all. Where memory runs out, fewer at once from then on.
        advance: called with the number of episodes done; where images are embedded first, that is half the work.
        curves: score along the algorithm's curves too.

    Raises:
        FslError: one episode alone does not fit into memory.
    """
    forward = Forward(advance)
    training = algorithm.training
    algorithm.eval()
    try:
        embedded = _embed(algorithm, sampler, episodes, hardware, forward) if algorithm.embeds else None
        done = episodes // 2 if embedded else 0

        def scores(part: range) -> Tensor:
            logits, labels, along = _predict(algorithm, sampler, part, embedded, curves)
            exact, labels = logits.cpu().double(), labels.cpu()
            columns = torch.stack([metrics.accuracy(exact, labels), metrics.cross_entropy(exact, labels)], dim=1)
            return torch.cat([columns, *(each.cpu().double() for each in along)], dim=1)

        unit = _unit(episodes, hardware)
        table = _table(scores, episodes, hardware, lambda part: forward.to(done, episodes, part), unit=unit)
    finally:
        algorithm.train(training)
    widths = {name: len(points) for name, points in algorithm.curve_points(sampler.task).items()} if curves else {}
    accuracy, loss, *along = table.split([1, 1, *widths.values()], dim=1)
    named = {name: each.numpy() for name, each in zip(widths, along, strict=True)}
    return EpisodeScores(accuracy[:, 0].contiguous().numpy(), loss[:, 0].contiguous().numpy(), named)


class Forward:
    """Progress that never goes back, though work may be repeated.

    Args:
        advance: called with each amount of progress.
    """

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance, self._position = advance, 0

    def to(self, start: int, stop: int, fraction: float) -> None:
        """Go on to a fraction, in 0..1, of the way from ``start`` to ``stop``, unless that has been passed."""
        position = start + int((stop - start) * fraction)
        if position > self._position:
            self._advance(position - self._position)
            self._position = position


def _unit(episodes: int, hardware: Hardware) -> int:
    """What the processes' shares are multiples of: chunks, so that each computes the very chunks of one process."""
    chunk = hardware.processes.from_first(lambda: hardware.task_chunk)  # it may have shrunk in some of them
    return chunk if 4 * chunk * hardware.processes.size <= episodes else _EPISODES  # else some would have much more to do


def _table(
    compute: Callable[[range], Tensor],
    count: int,
    hardware: Hardware,
    progress: Callable[[float], None],
    *,
    unit: int,
    per_episode: int = 1,
    limit: int | None = None,
) -> Tensor:
    """The rows ``[n, ...]`` of ``compute`` for ``range(count)``, computed by all processes and known to all.

    Args:
        compute: rows of a part of the range.
        count: how many rows.
        hardware: see `evaluate`.
        progress: called with the fraction that is done.
        unit: the shares of the processes are multiples of it.
        per_episode: rows of an episode; those of ``hardware.task_chunk`` episodes are computed at once.
        limit: but no more rows than this.
    """
    processes = hardware.processes
    share = processes.share(count, unit)
    most = max(1, min(limit or count, len(share)))

    def mine(chunk: int) -> Tensor | None:
        size, rows = min(most, chunk * per_episode), []
        for first in range(share.start, share.stop, size):
            part = range(first, min(first + size, share.stop))
            with hardware.autocast():
                rows.append(compute(part))
            progress((part.stop - share.start) / len(share))
        return torch.cat(rows) if rows else None

    return processes.gather(processes.together(lambda: hardware.within_memory("evaluation", -(-most // per_episode), mine)))


def _embed(algorithm: Algorithm, sampler: EpisodeSampler, episodes: int, hardware: Hardware, forward: Forward) -> Embedded:
    """Embed every image that occurs in the first ``episodes`` episodes, each in one of the processes."""
    images = torch.from_numpy(_occurring(sampler, episodes))
    table = _table(
        lambda part: algorithm.embed(sampler.images(images[part.start : part.stop])),
        len(images),
        hardware,
        lambda part: forward.to(0, episodes // 2, part),
        unit=_IMAGES,
        per_episode=sampler.task.ways * (sampler.task.shots + sampler.task.queries),
        limit=_IMAGES,
    )
    row = torch.full((int(images[-1]) + 1,), -1)
    row[images] = torch.arange(len(images))
    return Embedded(table, row.to(sampler.device))


def _predict(
    algorithm: Algorithm, sampler: EpisodeSampler, part: range, embedded: Embedded | None, curves: bool
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Query logits and labels of some episodes, and if ``curves`` the accuracies along the curves."""
    if embedded is None:
        batch = sampler.batch(part.start, len(part))
        logits, along = algorithm.predict_along(batch) if curves else (algorithm.predict(batch), {})
        return logits, batch.query_y, list(along.values())
    shots = sampler.task.shots
    images = sampler.indices(part.start, len(part)).images
    support, query = embedded.of(images[:, :, :shots]), embedded.of(images[:, :, shots:])
    support_y, query_y = sampler.labels(len(part))
    return algorithm.classify(support, support_y, query, sampler.task.ways), query_y, []


def _occurring(sampler: EpisodeSampler, episodes: int) -> np.ndarray:
    """Images of the split that occur in the first ``episodes`` episodes, int64, ascending."""
    occurs = np.zeros(len(sampler.source.images), dtype=bool)
    for first in range(0, episodes, _DRAWN):
        occurs[sampler.indices(first, min(_DRAWN, episodes - first)).images] = True
    return np.flatnonzero(occurs)
