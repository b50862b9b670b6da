"""One split of a data set: examples grouped by class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor


def _no_memory_map(_read: int) -> None:
    """The `ClassImages.on_read` of images in memory."""


@dataclass(frozen=True)
class ClassImages:
    """The images, the feature vectors or the texts of one split, sorted by class.

    An example is known by its index, 0 to ``size - 1``. Read examples with `gather`, which also applies rotations: ``images``
    may be larger than memory.

    Attributes:
        images: uint8 ``[M, C, H, W]``, of which episodes scale pixel 255 to 1.0; or float32 ``[M, D]``; or
            int32 ``[M, L]``, the numbers of words. May be memory-mapped.
        counts: int64 ``[classes]``, examples per class; ``counts.sum() == size``.
        names: one name per class, in the order of ``counts``.
        rotations: 1; or 4: index ``quarter * M + row`` is image ``row`` rotated by ``90 * quarter`` degrees.
        on_read: called with the number of bytes that `gather` has read, so that a memory map can release its pages.
    """

    images: Tensor
    counts: np.ndarray
    names: Sequence[str]
    rotations: int = 1
    on_read: Callable[[int], object] = _no_memory_map

    def __post_init__(self) -> None:
        if (self.images.dtype, self.images.ndim) not in ((torch.uint8, 4), (torch.float32, 2), (torch.int32, 2)):
            found = f"{self.images.dtype} {list(self.images.shape)}"
            raise ValueError(f"images must be uint8 [M, C, H, W], features float32 [M, D], words int32 [M, L], got {found}")
        if len(self.counts) != len(self.names) or int(self.counts.sum()) != self.size:
            raise ValueError(f"{self.size} images, {len(self.names)} names and {self.counts.sum()} counted images")

    def __len__(self) -> int:
        """Number of classes."""
        return len(self.counts)

    @property
    def size(self) -> int:
        """Number of examples, rotated ones included."""
        return len(self.images) * self.rotations

    @property
    def example_shape(self) -> tuple[int, ...]:
        """``(C, H, W)`` of every image, ``(D,)`` or ``(L,)``."""
        return tuple(self.images.shape[1:])

    @property
    def offsets(self) -> np.ndarray:
        """int64 ``[classes]``, index of the first example of each class."""
        return np.concatenate([[0], np.cumsum(self.counts)[:-1]]).astype(np.int64)

    def gather(self, indices: Tensor, images: Tensor | None = None) -> Tensor:
        """The examples at some indices, in the type of ``images``; only these are read.

        Args:
            indices: int64 ``[B]``.
            images: a copy of `images` on another device, to read from instead.

        Returns:
            ``[B, ...]`` on the device of the images.
        """
        stored = self.images if images is None else images
        found = stored.index_select(0, indices.to(stored.device)) if self.rotations == 1 else _rotated(stored, indices)
        self.on_read(found.nbytes)
        return found

    def with_rotations(self) -> ClassImages:
        """Four classes from every class, rotated by 0, 90, 180 and 270 degrees (Santoro et al. 2016), 0 first.

        The images are not copied: `gather` rotates those that it reads.

        Raises:
            ValueError: if the images are not square.
        """
        if self.images.shape[-1] != self.images.shape[-2]:
            raise ValueError("only square images can be rotated into new classes")
        names = [f"{name}@{90 * quarter}" for quarter in range(4) for name in self.names]
        return replace(self, counts=np.tile(self.counts, 4), names=names, rotations=4)


def _rotated(stored: Tensor, indices: Tensor) -> Tensor:
    indices = indices.to("cpu")  # where the selection of each angle needs no synchronisation with a GPU
    rows, quarters = indices % len(stored), indices // len(stored)
    found = stored.new_empty(len(indices), *stored.shape[1:])
    for quarter in range(4):
        places = (quarters == quarter).nonzero().squeeze(1)
        if len(places):
            upright = stored.index_select(0, rows[places].to(stored.device))
            found[places.to(stored.device)] = torch.rot90(upright, quarter, dims=(-2, -1))
    return found
