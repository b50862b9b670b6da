"""Meta-testing: N fixed episodes of a split, one row of scores per episode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fsl_cli.algos.common.algorithm import Algorithm, exact_scores, portions
from fsl_cli.compute.hardware import Hardware
from fsl_cli.compute.signals import raise_if_interrupted
from fsl_cli.episodes import Episodes, EpisodeSampler
from fsl_cli.episodes.adapted_sampler import AdaptedEpisodeSampler
from fsl_cli.episodes.mixture_sampler import MixtureSampler
from fsl_cli.episodes.sampler import Sampler
from fsl_cli.episodes.uneven_sampler import UnevenSampler, batches, order

_IMAGES = 256  # images embedded at once; larger batches are not faster
_EPISODES = 8  # granularity of the processes' shares if there are too few episodes to share whole chunks
_DRAWN = 256  # episodes whose image indices are drawn at once
_MOST_EMBEDDED = 2**30  # bytes of embeddings that are kept; where there would be more, every episode is embedded by itself
_LARGEST = 2**16  # bytes of an embedding, assumed as long as so many of them could be kept
_Embeddable = EpisodeSampler | AdaptedEpisodeSampler  # whose images can be had without their episodes


@dataclass(frozen=True)
class EpisodeScores:
    """One value per episode, in the order of the episodes.

    Attributes:
        values: float64 ``[n]`` for each score of the problem, by name.
        curves: float64 ``[n, points]``, the headline score at the points of each curve of the algorithm, by curve name.
    """

    values: dict[str, np.ndarray]
    curves: dict[str, np.ndarray] = field(default_factory=dict)

    def __getitem__(self, name: str) -> np.ndarray:
        """The values of a score."""
        return self.values[name]


def values_of_sets(sampler: Sampler, values: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """The values of the episodes of each set by the names of set and score, of a mixture of data sets; otherwise empty.

    Args:
        sampler: of the episodes.
        values: ``[n]`` for each score, of the first n episodes.
    """
    if not isinstance(sampler, MixtureSampler):
        return {}
    of = sampler.set_of(0, len(next(iter(values.values()))))
    chosen = {label: of == number for number, label in enumerate(sampler.sets)}
    return {label: {name: each[mine] for name, each in values.items()} for label, mine in chosen.items() if mine.any()}


class MonotoneProgress:
    """Reports progress that never decreases, even if work is repeated.

    Args:
        advance: called with every increment.
    """

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance, self._position = advance, 0

    def to(self, start: int, stop: int, fraction: float) -> None:
        """Advance to ``start + fraction * (stop - start)``, ``fraction`` in 0..1, unless the position is already higher."""
        position = start + int((stop - start) * fraction)
        if position > self._position:
            self._advance(position - self._position)
            self._position = position


class EmbeddedSampler:
    """The episodes of a sampler with embeddings instead of images.

    Args:
        sampler: source of the episodes.
        images: int64, indices of the embedded images in the split, in ascending order.
        table: ``[len(images), ...]``, their embeddings.
    """

    def __init__(self, sampler: _Embeddable | UnevenSampler, images: Tensor, table: Tensor) -> None:
        self.task, self.problem, self.digest = sampler.task, sampler.problem, sampler.digest
        self._sampler, self._table = sampler, table
        self._row = torch.full((int(images[-1]) + 1,), -1)
        self._row[images] = torch.arange(len(images))

    def order(self, first: int, count: int) -> Sequence[int]:
        """See `OrderingSampler`."""
        return order(self._sampler, first, count)

    def batches(self, numbers: Sequence[int]) -> Iterator[Episodes]:
        """See `OrderingSampler`."""
        if isinstance(self._sampler, UnevenSampler):
            yield from self._sampler.batches_of(self._embeddings, numbers)
        else:
            yield self._sampler.batch_of(self._embeddings, numbers[0], len(numbers))

    def batch(self, first: int, count: int) -> Episodes:
        """Episodes ``first .. first+count-1``, which must have one shape."""
        (found,) = self.batches(range(first, first + count))
        return found

    def _embeddings(self, images: Tensor) -> Tensor:
        return self._table.index_select(0, self._row[images].to(self._table.device))


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
        algorithm: the algorithm to score; left unchanged.
        sampler: source of the episodes.
        episodes: number of episodes.
        hardware: device, precision, number of episodes computed at once, and processes. Each process computes its share
            of the episodes and returns the scores of all. If memory runs out, fewer episodes are computed at once.
        advance: called with increments that add up to ``episodes``; embedding the images, if done, counts as half.
        curves: also score at the points of the algorithm's curves.

    Raises:
        FslError: a single episode does not fit into memory.
    """
    progress = MonotoneProgress(advance)
    training = algorithm.training
    algorithm.eval()
    widths = {name: len(points) for name, points in algorithm.curve_points(sampler.task).items()} if curves else {}
    even = sampler.even if isinstance(sampler, UnevenSampler) else sampler
    done, score = 0, partial(algorithm.score, curves=bool(widths))
    try:
        if algorithm.embeds and isinstance(even, _Embeddable):
            uneven = sampler if isinstance(sampler, UnevenSampler) else None
            images = uneven.occurring(range(episodes)) if uneven else torch.from_numpy(_occurring(even, episodes))
            if _can_be_kept(algorithm, even, images, hardware):
                done = episodes // 2
                sampler = _embedded(algorithm, uneven or even, even, images, hardware, lambda part: progress.to(0, done, part))
                score = partial(_score_embedded, algorithm)

        numbers = order(sampler, 0, episodes)

        def rows(part: range) -> Tensor:
            drawn = batches(sampler, numbers[part.start : part.stop])
            scores = [score(chunk) for each in drawn for chunk in portions(algorithm, each, len(part))]
            return torch.cat([_row(each) for each in scores])

        unit = _unit(episodes, hardware)
        table = _table(rows, episodes, hardware, lambda part: progress.to(done, episodes, part), unit=unit)
    finally:
        algorithm.train(training)
    names = [each.name for each in sampler.problem.every_score]
    table = table[torch.tensor(list(numbers)).argsort()]  # back in the order of the episodes
    values, *along = table.split([len(names), *widths.values()], dim=1)
    return EpisodeScores(
        {name: column.contiguous().numpy() for name, column in zip(names, values.unbind(1), strict=True)},
        {name: each.numpy() for name, each in zip(widths, along, strict=True)},
    )


def _row(scores: Mapping[str, Tensor]) -> Tensor:
    """Scores, ``[T]`` or ``[T, points]`` each, side by side: float64 ``[T, columns]`` on the CPU."""
    return torch.cat([each.cpu().double().flatten(1) if each.ndim > 1 else each.cpu()[:, None] for each in scores.values()], 1)


def _score_embedded(algorithm: Algorithm, episodes: Episodes) -> dict[str, Tensor]:
    return exact_scores(episodes, algorithm.classify(episodes))


def _unit(episodes: int, hardware: Hardware) -> int:
    """The granularity of the processes' shares: a chunk, so that the chunks are the same for any number of processes."""
    chunk = hardware.processes.from_first(lambda: hardware.task_chunk)  # some processes may have reduced theirs
    return chunk if 4 * chunk * hardware.processes.size <= episodes else _EPISODES  # few whole chunks: uneven shares


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
    """Compute the rows ``[n, ...]`` for ``range(count)``, shared among the processes and returned in all of them.

    Args:
        compute: returns the rows of a part of the range.
        count: number of rows.
        hardware: see `evaluate`.
        progress: called with the fraction done.
        unit: the shares of the processes are multiples of it.
        per_episode: rows per episode; the rows of ``hardware.task_chunk`` episodes are computed at once.
        limit: maximum number of rows computed at once; None: no maximum.
    """
    processes = hardware.processes
    share = processes.share(count, unit)
    most = max(1, min(limit or count, len(share)))

    def mine(chunk: int) -> Tensor | None:
        size, found = min(most, chunk * per_episode), None
        for first in range(share.start, share.stop, size):
            part = range(first, min(first + size, share.stop))
            with hardware.autocast():
                rows = compute(part)
            found = rows.new_empty(len(share), *rows.shape[1:]) if found is None else found
            found[part.start - share.start : part.stop - share.start] = rows
            progress((part.stop - share.start) / len(share))
            raise_if_interrupted()
        return found

    return processes.gather(processes.together(lambda: hardware.within_memory("evaluation", -(-most // per_episode), mine)))


def _can_be_kept(algorithm: Algorithm, sampler: _Embeddable, images: Tensor, hardware: Hardware) -> bool:
    """Whether the embeddings of so many images fit into `_MOST_EMBEDDED`."""
    if len(images) * _LARGEST <= _MOST_EMBEDDED:
        return True
    with hardware.autocast():
        return len(images) * algorithm.embed(sampler.images(images[:1])).nbytes <= _MOST_EMBEDDED


def _embedded(
    algorithm: Algorithm,
    sampler: _Embeddable | UnevenSampler,
    source: _Embeddable,
    images: Tensor,
    hardware: Hardware,
    progress: Callable[[float], None],
) -> EmbeddedSampler:
    """Embed every one of these images of ``source`` once, shared among the processes."""
    table = _table(
        lambda part: algorithm.embed(source.images(images[part.start : part.stop])),
        len(images),
        hardware,
        progress,
        unit=_IMAGES,
        per_episode=sampler.task.most_examples,
        limit=_IMAGES,
    )
    return EmbeddedSampler(sampler, images, table)


def _occurring(sampler: _Embeddable, episodes: int) -> np.ndarray:
    """Indices of the images that occur in the first ``episodes`` episodes, int64, in ascending order."""
    occurs = np.zeros(sampler.source.size, dtype=bool)
    for first in range(0, episodes, _DRAWN):
        occurs[sampler.indices(first, min(_DRAWN, episodes - first)).images] = True
    return np.flatnonzero(occurs)
