"""What goes into a pack: for every class, functions that read its images block by block."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

_IMAGES, _BYTES = 256, 1 << 25  # of a block, at most

Item = TypeVar("Item")
Place = tuple[str, str, int]  # split, class, and position among the images announced for the class


@dataclass(frozen=True)
class Block:
    """Images of one class that are read together.

    Attributes:
        images: uint8 ``[n, C, H, W]``.
        unusable: position in the block, and reason, of every image that is left out.
    """

    images: np.ndarray
    unusable: Sequence[tuple[int, str]] = ()


@dataclass(frozen=True)
class ClassSource:
    """The images of one class.

    Attributes:
        count: number of images, with those that will turn out to be unusable.
        blocks: functions that read the images, in order. They are called in several threads, and not called for blocks that
            an interrupted packing has already written.
    """

    count: int
    blocks: Sequence[Callable[[], Block]]


@dataclass(frozen=True)
class Packed:
    """What a data set may want to tell its user about a finished pack.

    Attributes:
        unusable: why images were left out.
        small: name and number of usable images of the classes that were left out for having too few.
        twice: pairs of places with the same image in two splits; of each image, its first place comes second.
    """

    unusable: Sequence[str]
    small: Sequence[tuple[str, int]]
    twice: Sequence[tuple[Place, Place]]


@dataclass(frozen=True)
class PackSource:
    """The content of a pack.

    Attributes:
        splits: for each split, its classes in order.
        image_shape: ``(C, H, W)``.
        unusable: called with the reasons of all unusable images so far whenever there are more of them; raises if there are too
            many. None: every image must be usable.
        min_images: classes with fewer usable images are left out, if ``unusable`` is given.
        report: called when all images are written; may raise.
    """

    splits: Mapping[str, Mapping[str, ClassSource]]
    image_shape: tuple[int, int, int]
    unusable: Callable[[list[str]], object] | None = None
    min_images: int = 1
    report: Callable[[Packed], object] = lambda packed: None


def from_items(
    items: Sequence[Item], read: Callable[[Item], np.ndarray | str], image_shape: tuple[int, int, int]
) -> ClassSource:
    """A class of which every image is read by itself: from its file, for example.

    Args:
        items: one for each image.
        read: returns the image, uint8 ``[C, H, W]``, or the reason why it cannot be used.
        image_shape: ``(C, H, W)``.
    """
    size = max(1, min(_IMAGES, _BYTES // int(np.prod(image_shape))))
    parts = [items[first : first + size] for first in range(0, len(items), size)]
    return ClassSource(len(items), [partial(_read, part, read, image_shape) for part in parts])


def from_array(count: int, read: Callable[[], np.ndarray]) -> ClassSource:
    """A class whose images ``[count, C, H, W]`` are read at once."""
    return ClassSource(count, [lambda: Block(read())])


def _read(items: Sequence[Item], read: Callable[[Item], np.ndarray | str], image_shape: tuple[int, int, int]) -> Block:
    found = [read(item) for item in items]
    usable = [each for each in found if not isinstance(each, str)]
    unusable = [(position, each) for position, each in enumerate(found) if isinstance(each, str)]
    return Block(np.stack(usable) if usable else np.empty((0, *image_shape), np.uint8), unusable)
