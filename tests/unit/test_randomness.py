"""Random numbers of an episode against SplitMix64 in Python integers; tests of uniformity."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from fsl_cli.episodes.randomness import episode_seeds, permutations, uniform

MASK = 2**64 - 1


def splitmix64(state: int) -> int:
    """One output for a state that has been advanced, as in the reference implementation."""
    state &= MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


def test_episode_seeds_are_the_published_outputs_of_splitmix64():
    """The reference values for seed 1234567 (Vigna's splitmix64.c)."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert [value % 2**64 for value in episode_seeds(1234567, 0, 5).tolist()] == published
    assert episode_seeds(1234567, 2, 3).tolist() == episode_seeds(1234567, 0, 5).tolist()[2:]


def test_uniform_matches_a_plain_python_loop():
    import zlib

    seeds = episode_seeds(2**63 + 5, 7, 3)
    values = uniform(seeds, (2, 3), "some purpose")
    for row, seed in enumerate(seeds.tolist()):
        start = splitmix64((seed % 2**64) ^ zlib.crc32(b"some purpose"))
        expected = [(splitmix64(start + i * 0x9E3779B97F4A7C15) >> 40) / 2**24 for i in range(1, 7)]
        assert values[row].flatten().tolist() == expected


def test_numbers_do_not_depend_on_the_batch_and_differ_by_purpose():
    seeds = episode_seeds(3, 0, 10)
    whole = uniform(seeds, (5,), "a")
    assert torch.equal(torch.cat([uniform(part, (5,), "a") for part in seeds.split(3)]), whole)
    assert not torch.isin(uniform(seeds, (5,), "b"), whole).any()


def test_numbers_are_uniform_and_uncorrelated():
    values = uniform(episode_seeds(0, 0, 20_000), (4,), "x").double().numpy()
    assert values.min() >= 0
    assert values.max() < 1
    for column in values.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-4
    assert np.abs(np.corrcoef(values.T) - np.eye(4)).max() < 0.03
    assert abs(np.corrcoef(values[:-1, 0], values[1:, 0])[0, 1]) < 0.03


@pytest.mark.parametrize("n", [1, 4])
def test_permutations_are_all_equally_likely(n):
    orders = permutations(episode_seeds(1, 0, 24_000), n, "order")
    assert torch.equal(orders.sort(1).values, torch.arange(n).expand(24_000, n))
    _, counts = np.unique(orders.numpy(), axis=0, return_counts=True)
    assert len(counts) == (24 if n == 4 else 1)
    if n == 4:
        assert stats.chisquare(counts).pvalue > 1e-4
