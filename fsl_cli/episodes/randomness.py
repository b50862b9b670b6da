"""Random numbers for an episode: a pure function of its seed, independent of the batch in which it is computed.

All random choices of an algorithm for an episode (the order of its support set, augmentation, mini-batches) use this
module, so that the same seed gives the same numbers for any chunk size, device and number of processes.
"""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15


def uniform(seeds: Tensor, shape: tuple[int, ...], purpose: str) -> Tensor:
    """Uniform numbers for each episode.

    Args:
        seeds: int64 ``[T]``, `Episodes.seeds`.
        shape: shape of the numbers of one episode.
        purpose: name of the use; different names give independent numbers.

    Returns:
        float32 ``[T, *shape]`` in [0, 1), multiples of 2^-24, on the device of ``seeds``.
    """
    return (_shifted(_bits(seeds, shape, purpose), 40).float() * 2.0**-24).view(len(seeds), *shape)


def uniform64(seeds: Tensor, shape: tuple[int, ...], purpose: str) -> Tensor:
    """Like `uniform`, as float64 multiples of 2^-53."""
    return (_shifted(_bits(seeds, shape, purpose), 11).double() * 2.0**-53).view(len(seeds), *shape)


def permutations(seeds: Tensor, n: int, purpose: str) -> Tensor:
    """A random permutation of ``range(n)`` for each episode: int64 ``[T, n]``; arguments as in `uniform`."""
    return uniform(seeds, (n,), purpose).argsort(dim=1, stable=True)


def mixed(state: Tensor) -> Tensor:
    """The output function of SplitMix64 (Steele, Lea & Flood 2014): a pseudo-random bijection of 64-bit numbers."""
    state = (state ^ _shifted(state, 30)) * _signed(0xBF58476D1CE4E5B9)
    state = (state ^ _shifted(state, 27)) * _signed(0x94D049BB133111EB)
    return state ^ _shifted(state, 31)


def episode_seeds(key: int, first: int, count: int) -> Tensor:
    """Seeds of episodes ``first .. first+count-1`` of a stream: int64 ``[count]``; ``key`` is any integer."""
    return seeds_of(key, torch.arange(first, first + count))


def seeds_of(key: int, numbers: Tensor) -> Tensor:
    """Seeds of the episodes with these numbers, int64 ``[T]``, of a stream; ``key`` is any integer."""
    return mixed((numbers + 1) * _signed(_GAMMA) + _signed(key))


def _bits(seeds: Tensor, shape: tuple[int, ...], purpose: str) -> Tensor:
    """64 random bits for each number of `uniform`: int64 ``[T, n]``."""
    start = mixed(seeds ^ zlib.crc32(purpose.encode()))
    counter = torch.arange(1, math.prod(shape) + 1, device=seeds.device)
    return mixed(start.unsqueeze(1) + counter * _signed(_GAMMA))


def _shifted(value: Tensor, by: int) -> Tensor:
    """Logical right shift, which fills with zeros: the algorithm is defined for unsigned integers, int64 is signed."""
    return (value >> by) & ((1 << (64 - by)) - 1)


def _signed(value: int) -> int:
    """The int64 with the same lowest 64 bits."""
    value %= 1 << 64
    return value - (1 << 64) if value >= 1 << 63 else value
