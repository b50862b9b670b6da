"""How many shots and queries each class of an episode has, where they differ: functions of uniform random numbers."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import gammaincinv

from fsl_cli.episodes.task import SUPPORT_SIZE


def in_range(uniform: np.ndarray, low: int, high: int) -> np.ndarray:
    """Whole numbers ``low .. high``, all equally likely, from uniform numbers in [0, 1): int64 of the same shape."""
    return low + (uniform * (high - low + 1)).astype(np.int64)


def dirichlet_sizes(uniform: np.ndarray, concentration: float, total: int) -> np.ndarray:
    """Share a number of queries among the classes in proportions from a symmetric Dirichlet distribution.

    The proportions are Gamma variables divided by their sum. The whole numbers are those of the largest remainders, as in the
    code of Veilleux et al. 2021, "Realistic evaluation of transductive few-shot learning", which has the concentration 2.

    Args:
        uniform: float64 ``[T, N]`` in [0, 1).
        concentration: of the distribution, > 0; the larger, the more even.
        total: number of queries of an episode, >= 1.

    Returns:
        int64 ``[T, N]`` >= 0, whose rows sum to ``total``.
    """
    gamma = np.maximum(gammaincinv(concentration, uniform), np.finfo(np.float64).tiny)
    exact = total * gamma / gamma.sum(-1, keepdims=True)
    sizes = np.floor(exact).astype(np.int64)
    left = total - sizes.sum(-1, keepdims=True)
    rank = np.argsort(np.argsort(sizes - exact, axis=-1, kind="stable"), axis=-1)  # the largest remainder has rank 0
    return np.asarray(sizes + (rank < left))


def meta_dataset_sizes(
    beta: np.ndarray, alpha: np.ndarray, counts: np.ndarray, shots: int, queries: int
) -> tuple[np.ndarray, np.ndarray]:
    """Shots and queries of the classes as in Meta-Dataset (Triantafillou et al. 2020, section 3.2).

    With n_c images of class c there are q = min(queries, min_c floor(n_c / 2)) queries of each class, and a support set of

        |S| = min(500, sum_c ceil(beta min(shots, n_c - q)))                     beta uniform in (0, 1]

    images, of which class c has a share that is a noisy version of its share of all images:

        R_c = exp(alpha_c) n_c / sum_c' exp(alpha_c') n_c'                       alpha_c uniform in log 1/2 .. log 2
        K_c = min(floor(R_c (|S| - N)) + 1, n_c - q)

    Args:
        beta: float64 ``[T]`` in [0, 1); ceil(beta x) for beta in (0, 1] is floor(beta x) + 1 for beta in [0, 1).
        alpha: float64 ``[T, N]`` in [0, 1), mapped to the range above; N is at most 500.
        counts: int64 ``[T, N]``, images of the classes, >= 2.
        shots: the most that a class adds to the size of the support set, 100 in the paper; a class may have more.
        queries: the most queries of a class, 10 in the paper.

    Returns:
        Shots and queries, int64 ``[T, N]`` each, >= 1.
    """
    asked = np.minimum(queries, counts.min(-1, keepdims=True) // 2)
    left = counts - asked
    size = (np.floor(beta[:, None] * np.minimum(shots, left)) + 1).sum(-1, keepdims=True)
    weights = counts * np.exp((2 * alpha - 1) * math.log(2))
    share = weights / weights.sum(-1, keepdims=True)
    further = np.floor(share * (np.minimum(size, SUPPORT_SIZE) - counts.shape[-1])).astype(np.int64)
    return np.minimum(further + 1, left), np.broadcast_to(asked, counts.shape)
