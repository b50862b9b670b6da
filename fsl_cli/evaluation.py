"""Meta-testing: N fixed episodes of a split, one row of scores per episode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fsl_cli.algos.common.algorithm import Algorithm, check_masks, exact_scores
from fsl_cli.compute.hardware import Hardware
from fsl_cli.episodes import Episodes, EpisodeSampler
from fsl_cli.episodes.sampler import Sampler

_IMAGES = 256  # embedded at once: more are no faster
_EPISODES = 8  # the processes' shares are multiples of it where there are too few for whole chunks
_DRAWN = 256  # episodes drawn at once, without their images


@dataclass(frozen=True)
class EpisodeScores:
    """One value per episode, in the order of the episodes.

    Attributes:
        values: float64 ``[n]`` for each score of the problem, by name.
        curves: float64 ``[n, points]``, the headline score along each curve of the algorithm, by its name.
    """

    values: dict[str, np.ndarray]
    curves: dict[str, np.ndarray] = field(default_factory=dict)

    def __getitem__(self, name: str) -> np.ndarray:
        """The values of a score."""
        return self.values[name]


class MonotoneProgress:
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


class EmbeddedSampler:
    """Episodes of a sampler with embeddings for images, each image embedded once.

    Args:
        sampler: where the episodes come from.
        images: int64, rows of the split, ascending: those that are embedded.
        table: ``[len(images), ...]``, their embeddings.
    """

    def __init__(self, sampler: EpisodeSampler, images: Tensor, table: Tensor) -> None:
        self.task, self.problem, self.digest = sampler.task, sampler.problem, sampler.digest
        self._sampler, self._table = sampler, table
        self._row = torch.full((int(images[-1]) + 1,), -1)
        self._row[images] = torch.arange(len(images))

    def batch(self, first: int, count: int) -> Episodes:
        """Episodes ``first .. first+count-1``."""
        return self._sampler.batch_of(lambda rows: self._table[self._row[rows].to(self._table.device)], first, count)


@torch.no_grad()
def evaluate(
    algorithm: Algorithm,
    sampler: Sampler,
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
    progress = MonotoneProgress(advance)
    training = algorithm.training
    algorithm.eval()
    done, score = 0, partial(algorithm.score, curves=curves)
    try:
        if algorithm.embeds and isinstance(sampler, EpisodeSampler):
            done = episodes // 2
            sampler = _embedded(algorithm, sampler, episodes, hardware, lambda part: progress.to(0, done, part))
            score = partial(_score_embedded, algorithm)

        def rows(part: range) -> Tensor:
            batch = sampler.batch(part.start, len(part))
            check_masks(algorithm, batch)
            found = score(batch)
            return torch.cat([each.cpu().double().flatten(1) if each.ndim > 1 else each[:, None] for each in found.values()], 1)

        unit = _unit(episodes, hardware)
        table = _table(rows, episodes, hardware, lambda part: progress.to(done, episodes, part), unit=unit)
    finally:
        algorithm.train(training)
    names = [each.name for each in sampler.problem.every_score]
    widths = {name: len(points) for name, points in algorithm.curve_points(sampler.task).items()} if curves else {}
    values, *along = table.split([len(names), *widths.values()], dim=1)
    return EpisodeScores(
        {name: column.contiguous().numpy() for name, column in zip(names, values.unbind(1), strict=True)},
        {name: each.numpy() for name, each in zip(widths, along, strict=True)},
    )


def _score_embedded(algorithm: Algorithm, episodes: Episodes) -> dict[str, Tensor]:
    return exact_scores(episodes, algorithm.classify(episodes))


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


def _embedded(
    algorithm: Algorithm, sampler: EpisodeSampler, episodes: int, hardware: Hardware, progress: Callable[[float], None]
) -> EmbeddedSampler:
    """Embed every image that occurs in the first ``episodes`` episodes, each in one of the processes."""
    images = torch.from_numpy(_occurring(sampler, episodes))
    table = _table(
        lambda part: algorithm.embed(sampler.images(images[part.start : part.stop])),
        len(images),
        hardware,
        progress,
        unit=_IMAGES,
        per_episode=sampler.task.ways * (sampler.task.shots + sampler.task.queries),
        limit=_IMAGES,
    )
    return EmbeddedSampler(sampler, images, table)


def _occurring(sampler: EpisodeSampler, episodes: int) -> np.ndarray:
    """Images of the split that occur in the first ``episodes`` episodes, int64, ascending."""
    occurs = np.zeros(len(sampler.source.images), dtype=bool)
    for first in range(0, episodes, _DRAWN):
        occurs[sampler.indices(first, min(_DRAWN, episodes - first)).images] = True
    return np.flatnonzero(occurs)
