"""One split of a data set: examples grouped by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class ClassImages:
    """The images, or the feature vectors, of one split, sorted by class.

    Attributes:
        images: uint8 ``[M, C, H, W]``, of which episodes scale pixel 255 to 1.0; or float32 ``[M, D]``. May be memory-mapped.
        counts: int64 ``[classes]``, images per class; ``counts.sum() == M``.
        names: one name per class, in the order of ``counts``.
    """

    images: Tensor
    counts: np.ndarray
    names: Sequence[str]

    def __post_init__(self) -> None:
        if (self.images.dtype, self.images.ndim) not in ((torch.uint8, 4), (torch.float32, 2)):
            found = f"{self.images.dtype} {list(self.images.shape)}"
            raise ValueError(f"images must be uint8 [M, C, H, W], or features float32 [M, D], got {found}")
        if len(self.counts) != len(self.names) or int(self.counts.sum()) != len(self.images):
            raise ValueError(f"{len(self.images)} images, {len(self.names)} names and {self.counts.sum()} counted images")

    def __len__(self) -> int:
        """Number of classes."""
        return len(self.counts)

    @property
    def example_shape(self) -> tuple[int, ...]:
        """``(C, H, W)`` of every image, or ``(D,)``."""
        return tuple(self.images.shape[1:])

    @property
    def offsets(self) -> np.ndarray:
        """int64 ``[classes]``, index of the first image of each class."""
        return np.concatenate([[0], np.cumsum(self.counts)[:-1]]).astype(np.int64)

    def with_rotations(self) -> ClassImages:
        """Four classes from every class, rotated by 0, 90, 180 and 270 degrees (Santoro et al. 2016), 0 first.

        Raises:
            ValueError: if the images are not square.
        """
        if self.images.shape[-1] != self.images.shape[-2]:
            raise ValueError("only square images can be rotated into new classes")
        turned = [torch.rot90(self.images, quarter, dims=(-2, -1)) for quarter in range(4)]
        names = [f"{name}@{90 * quarter}" for quarter in range(4) for name in self.names]
        return ClassImages(torch.cat(turned), np.tile(self.counts, 4), names)
