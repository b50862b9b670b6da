"""Classes of an episode as sets of embeddings: their means, distances to them, and values sorted by class."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from fsl_cli.algos.common.full_precision import full_precision


def class_means(embedded: Tensor, labels: Tensor, ways: int, mask: Tensor | None = None) -> Tensor:
    """Mean embedding of each class (Snell et al. 2017, eq. 1).

    Args:
        embedded: ``[T, B, D]``.
        labels: int64 ``[T, B]``, every class at least once.
        ways: N.
        mask: bool ``[T, B]``, the rows that count; None: all.

    Returns:
        ``[T, N, D]``.
    """
    with full_precision(embedded) as (embedded,):
        members = class_members(labels, ways, mask).to(embedded.dtype)
        return (members / members.sum(1, keepdim=True)).transpose(1, 2) @ embedded


def class_members(labels: Tensor, ways: int, mask: Tensor | None = None) -> Tensor:
    """Which rows belong to which class: bool ``[T, B, N]``; arguments as in `class_means`."""
    members = F.one_hot(labels, ways).bool()
    return members if mask is None else members & mask.unsqueeze(-1)


def squared_euclidean(query: Tensor, prototypes: Tensor) -> Tensor:
    """``|q - c|^2``: ``[T, B, D]`` and ``[T, N, D]`` to ``[T, B, N]``."""
    with full_precision(query, prototypes) as (query, prototypes):
        return (query.unsqueeze(2) - prototypes.unsqueeze(1)).square().sum(-1)


def cosine_distance(query: Tensor, prototypes: Tensor) -> Tensor:
    """``1 - cos(q, c)``: ``[T, B, D]`` and ``[T, N, D]`` to ``[T, B, N]``."""
    with full_precision(query, prototypes) as (query, prototypes):
        return 1 - F.normalize(query, dim=-1) @ F.normalize(prototypes, dim=-1).transpose(1, 2)


def of_each_class(values: Tensor, labels: Tensor, ways: int, mask: Tensor | None = None) -> Tensor:
    """Values for each support image, sorted by the classes of these images.

    Args:
        values: ``[T, B, S]``.
        labels: int64 ``[T, S]``, every class at least once.
        ways: N.
        mask: bool ``[T, S]``, the support images that count; None: all.

    Returns:
        ``[T, B, N, S]``, -inf where a support image belongs to another class.
    """
    members = class_members(labels, ways, mask).transpose(1, 2)
    return values.unsqueeze(2).masked_fill(~members.unsqueeze(1), -math.inf)
