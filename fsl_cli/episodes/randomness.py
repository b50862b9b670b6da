"""Random numbers of an episode: a pure function of its seed, so that they do not depend on the batch it is computed in.

Whatever an algorithm draws for an episode (the order of its support set, an augmentation, mini-batches) comes from here;
then the same seed gives the same numbers whatever the chunk, the device or the number of processes.
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
        shape: shape of one episode's numbers.
        purpose: what they are for; other purposes get other numbers.

    Returns:
        float32 ``[T, *shape]`` in [0, 1), multiples of 2^-24, on the device of ``seeds``.
    """
    start = mixed(seeds ^ zlib.crc32(purpose.encode()))
    counter = torch.arange(1, math.prod(shape) + 1, device=seeds.device)
    bits = mixed(start.unsqueeze(1) + counter * _signed(_GAMMA))
    return (_shifted(bits, 40).float() * 2.0**-24).view(len(seeds), *shape)


def permutations(seeds: Tensor, n: int, purpose: str) -> Tensor:
    """A random order of ``range(n)`` for each episode: int64 ``[T, n]``; arguments as in `uniform`."""
    return uniform(seeds, (n,), purpose).argsort(dim=1, stable=True)


def mixed(state: Tensor) -> Tensor:
    """The output function of SplitMix64 (Steele, Lea & Flood 2014), a bijection of 64-bit numbers that looks random."""
    state = (state ^ _shifted(state, 30)) * _signed(0xBF58476D1CE4E5B9)
    state = (state ^ _shifted(state, 27)) * _signed(0x94D049BB133111EB)
    return state ^ _shifted(state, 31)


def episode_seeds(key: int, first: int, count: int) -> Tensor:
    """Seeds of episodes ``first .. first+count-1`` of a stream: int64 ``[count]``; ``key`` is any integer."""
    return mixed(torch.arange(first + 1, first + count + 1) * _signed(_GAMMA) + _signed(key))


def _shifted(value: Tensor, by: int) -> Tensor:
    """Shift to the right, filling with zeros: int64 is signed, the algorithm is not."""
    return (value >> by) & ((1 << (64 - by)) - 1)


def _signed(value: int) -> int:
    """The int64 with the same low 64 bits."""
    value %= 1 << 64
    return value - (1 << 64) if value >= 1 << 63 else value
