"""Augmented copies of the support images, so that an inner loop uses more than K shots ("shot", Ni et al. 2021)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fsl_cli.episodes import Episodes, Examples
from fsl_cli.episodes.randomness import uniform

Augmentation = Literal["none", "shift", "affine", "flip"]

_SHIFT = 0.1  # of the width and of the height, at most
_ANGLE = math.radians(15)
_SCALE = 0.1


def with_augmented_support(episodes: Episodes, kind: Augmentation, copies: int) -> Episodes:
    """The same episodes, with ``copies`` augmented copies of every support image appended to the support set.

    The random transformations depend on `Episodes.seeds` only.

    Args:
        episodes: episodes of K shots.
        kind: ``none``: the episodes unchanged; ``shift``: by up to 10% of the image; ``affine``: shift, rotation by up to
            15 degrees and scaling by up to 10%; ``flip``: horizontal flip with probability 0.5.
        copies: augmented copies per image, >= 1.

    Returns:
        Episodes of K * (1 + copies) shots.
    """
    if kind == "none":
        return episodes
    support = episodes.support
    images = support.x.repeat(1, copies, 1, 1, 1)
    count = images.shape[1]
    maps = _maps(uniform(episodes.seeds, (count, 4), "augmentation").to(images.dtype), kind)
    flat = images.flatten(0, 1)
    grid = F.affine_grid(maps.flatten(0, 1), list(flat.shape), align_corners=False)
    changed = F.grid_sample(flat, grid, padding_mode="zeros", align_corners=False).view(images.shape)
    return replace(
        episodes,
        support=Examples(
            torch.cat([support.x, changed], dim=1),
            support.y.repeat(1, 1 + copies),
            None if support.mask is None else support.mask.repeat(1, 1 + copies),
        ),
    )


def _maps(drawn: Tensor, kind: Augmentation) -> Tensor:
    """Affine maps ``[T, B, 2, 3]`` from the new image to the old, in coordinates from -1 to 1 across the image."""
    signed = 2 * drawn - 1
    zero, one = torch.zeros_like(drawn[..., 0]), torch.ones_like(drawn[..., 0])
    if kind == "flip":
        across = torch.where(drawn[..., 0] < 0.5, -one, one)
        rows = [across, zero, zero, zero, one, zero]
    else:
        shift_x, shift_y = 2 * _SHIFT * signed[..., 0], 2 * _SHIFT * signed[..., 1]
        angle, scale = (_ANGLE * signed[..., 2], 1 + _SCALE * signed[..., 3]) if kind == "affine" else (zero, one)
        cos, sin = scale * angle.cos(), scale * angle.sin()
        rows = [cos, -sin, shift_x, sin, cos, shift_y]
    return torch.stack(rows, dim=-1).unflatten(-1, (2, 3))
