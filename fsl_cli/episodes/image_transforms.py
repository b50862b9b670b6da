"""Transformations of a batch of images, each image with parameters of its own.

torchvision's functions change a whole batch alike and its transforms draw from the global generator; here the parameters are
tensors with one row per image, so that every image can be changed by random numbers of its episode. Images are float
``[B, C, H, W]`` in 0..1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_GREY = (0.2989, 0.587, 0.114)  # of red, green and blue, as in torchvision and Pillow
_ATTEMPTS = 10  # boxes drawn before the largest one is taken, as in torchvision
_RATIO = (3 / 4, 4 / 3)  # of width to height of a box


def flipped(images: Tensor, which: Tensor) -> Tensor:
    """Mirrored from left to right where ``which``, bool ``[B]``, is true."""
    return torch.where(which[:, None, None, None], images.flip(-1), images)


def rotated(images: Tensor, turns: Tensor) -> Tensor:
    """Square images, each rotated counter-clockwise by ``turns`` times 90 degrees; int64 ``[B]`` in 0..3."""
    for quarter in range(1, 4):
        images = torch.where((turns == quarter)[:, None, None, None], torch.rot90(images, quarter, (-2, -1)), images)
    return images


def cropped(images: Tensor, top: Tensor, left: Tensor) -> Tensor:
    """A window of the size of the image, whose upper left corner is at ``top``, ``left``; black outside of the image.

    Args:
        images: the images.
        top: int64 ``[B]``, may be negative.
        left: int64 ``[B]``, may be negative.
    """
    height, width = images.shape[-2:]
    rows, columns = (at[:, None] + torch.arange(size, device=at.device) for at, size in ((top, height), (left, width)))
    return _taken(_taken(images, rows, -2), columns, -1)


def resized_crops(images: Tensor, boxes: Tensor) -> Tensor:
    """A part of each image, resized to the size of the image by bilinear interpolation.

    Args:
        images: the images.
        boxes: int64 ``[B, 4]``: top, left, height and width of the parts, which lie inside of the images.
    """
    for dim, first, length in ((-2, boxes[:, 0], boxes[:, 2]), (-1, boxes[:, 1], boxes[:, 3])):
        size = images.shape[dim]
        centres = torch.arange(size, device=images.device) + 0.5
        at = (centres * (length / size)[:, None] - 0.5).clamp(min=0).minimum(length[:, None] - 1.0)
        low = at.floor().long()
        high = (low + 1).minimum(length[:, None] - 1)
        weight = _along((at - low).to(images.dtype), dim)
        below, above = (_taken(images, first[:, None] + each, dim) for each in (low, high))
        images = torch.lerp(below, above, weight.expand_as(below))
    return images


def random_boxes(numbers: Tensor, height: int, width: int, smallest: float) -> Tensor:
    """Boxes for `resized_crops`, with the distribution of torchvision's ``RandomResizedCrop`` (Szegedy et al. 2015).

    A box has ``smallest`` to 1 of the area of the image and sides in a ratio of 3/4 to 4/3. Of ten boxes the first one that
    is not larger than the image is taken; if there is none, the largest one in the middle that has such sides.

    Args:
        numbers: ``[B, BOX_NUMBERS]`` in [0, 1).
        height: of the images, in pixels.
        width: of the images, in pixels.
        smallest: fraction of the area, > 0, at most 1.

    Returns:
        int64 ``[B, 4]``: top, left, height and width.
    """
    area, ratio, place = numbers.split([_ATTEMPTS, _ATTEMPTS, 2], dim=1)
    area = height * width * (smallest + (1 - smallest) * area)
    low, high = (math.log(each) for each in _RATIO)
    ratio = (low + (high - low) * ratio).exp()
    widths, heights = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    middle = min(max(width / height, _RATIO[0]), _RATIO[1])
    largest = torch.tensor([min(height, round(width / middle)), min(width, round(height * middle))], device=numbers.device)
    first = fits.int().argmax(1, keepdim=True)
    drawn = torch.cat([heights.gather(1, first), widths.gather(1, first)], dim=1).long()
    some = fits.any(1, keepdim=True)
    sides = torch.where(some, drawn, largest)
    room = torch.tensor([height, width], device=numbers.device) - sides
    corners = torch.where(some, (place * (room + 1)).long(), room // 2)
    return torch.cat([corners, sides], dim=1)


BOX_NUMBERS = 2 * _ATTEMPTS + 2


def jittered(images: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Brightness, contrast and saturation changed, as by torchvision's functions ``adjust_*`` one after the other.

    Args:
        images: images of one or three channels.
        factors: ``[B, 3]``, >= 0: of brightness, contrast and saturation; 1 changes nothing.
        order: int64 ``[B, 3]``, a permutation of 0 (brightness), 1 (contrast) and 2 (saturation): what is changed first,
            second and third.
    """
    for place in order.unbind(1):
        grey = _grey(images)
        operation = place[:, None, None, None]
        other = torch.where(operation == 1, grey.mean((-2, -1), keepdim=True), grey)
        other = torch.where(operation == 0, torch.zeros_like(other), other)
        factor = factors.gather(1, place[:, None])[:, :, None, None].to(images.dtype)
        images = (factor * images + (1 - factor) * other).clamp(0, 1)
    return images


def _grey(images: Tensor) -> Tensor:
    """``[B, 1, H, W]``."""
    if images.shape[1] == 1:
        return images
    return (images * images.new_tensor(_GREY)[:, None, None]).sum(1, keepdim=True)


def _taken(images: Tensor, index: Tensor, dim: int) -> Tensor:
    """Rows (``dim`` -2) or columns (-1) of each image by index, int64 ``[B, n]``; zeros where it is outside of the image."""
    inside = (index >= 0) & (index < images.shape[dim])
    found = images.take_along_dim(_along(index.clamp(0, images.shape[dim] - 1), dim), dim)
    return found * _along(inside, dim)


def _along(values: Tensor, dim: int) -> Tensor:
    """``[B, n]`` as ``[B, 1, n, 1]`` for rows, ``[B, 1, 1, n]`` for columns."""
    return values[:, None, :, None] if dim == -2 else values[:, None, None, :]
