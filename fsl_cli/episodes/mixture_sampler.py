"""Episodes of several data sets, each from one of them."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from fsl_cli.episodes.episodes import Episodes, joined
from fsl_cli.episodes.randomness import episode_seeds, uniform
from fsl_cli.episodes.sampler import Sampler


class MixtureSampler:
    """Draws one of several samplers for every episode, which is that sampler's episode of the same index.

    Which one it is depends on the seed, the split and the index only, like the episodes themselves. Every index is drawn
    independently, so that of n episodes a set with probability p has n*p on average.

    Args:
        samplers: by name of the set; their tasks and problems are the same.
        weights: proportional to the probabilities, one for each sampler.
        split: name of the split.
        seed: any integer >= 0.
        offsets: added to the classes of each sampler's episodes, so that those of different sets have different numbers;
            None: the classes are unknown.
    """

    def __init__(
        self,
        samplers: Mapping[str, Sampler],
        weights: Sequence[float],
        split: str,
        seed: int,
        offsets: Sequence[int] | None = None,
    ) -> None:
        self.sets, self._samplers, self._offsets = list(samplers), list(samplers.values()), offsets
        self.task, self.problem = self._samplers[0].task, self._samplers[0].problem
        self._ends = np.cumsum(weights) / np.sum(weights)
        entropy = [seed, zlib.crc32(split.encode()), zlib.crc32(b"mixture")]
        self._key = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])

    def change_samplers(self, change: Callable[[Sampler], Sampler]) -> None:
        """Replace the sampler of each set by what ``change`` makes of it, which must have the same episodes."""
        self._samplers = [change(each) for each in self._samplers]

    def set_of(self, first: int, count: int) -> np.ndarray:
        """Number of the set of episodes ``first .. first+count-1``: int64 ``[count]``."""
        numbers = uniform(episode_seeds(self._key, first, count), (), "set").double().numpy()
        return np.minimum(np.searchsorted(self._ends, numbers, side="right"), len(self.sets) - 1)

    def batch(self, first: int, count: int) -> Episodes:
        """Episodes ``first .. first+count-1``."""
        chosen = self.set_of(first, count)
        starts = np.flatnonzero(np.diff(chosen, prepend=-1))  # of the runs of episodes of one set
        ends = [*starts[1:], count]
        runs = zip(starts, ends, strict=True)
        return joined([self._of_set(chosen[start], first + int(start), int(end - start)) for start, end in runs])

    def digest(self, count: int) -> str:
        """SHA-256 of the sets of the first ``count`` episodes and of the digests of their samplers."""
        digest = hashlib.sha256("\n".join(self.sets).encode())
        digest.update(self.set_of(0, count).astype("<i8").tobytes())
        for sampler in self._samplers:
            digest.update(sampler.digest(count).encode())
        return digest.hexdigest()

    def _of_set(self, number: int, first: int, count: int) -> Episodes:
        episodes = self._samplers[number].batch(first, count)
        unknown = torch.full_like(episodes.classes, -1)
        return replace(episodes, classes=unknown if self._offsets is None else episodes.classes + self._offsets[number])
