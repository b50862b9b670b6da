"""Piecewise linear layers without weights."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fsl_cli.inner.fast.layers import PiecewiseLinear, Saved, Weights

_CACHED_NUMBERS = 2**20


class Windows(PiecewiseLinear):
    """The input windows of a convolution (im2col): ``[T, B, H, W, C]`` to ``[T, B, H', W', k*k*C]``, padded with zeros.

    Args:
        kernel: height and width of a window.
        stride: vertical and horizontal distance between windows.
        padding: number of zero rows above and below, and of zero columns left and right.
    """

    def __init__(self, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]) -> None:
        self.kernel, self.stride, self.padding = kernel, stride, padding

    def forward(self, w: Weights, x: Tensor, saved: Saved) -> Tensor:
        """Copy every window."""
        saved["size"] = x.shape[2:4]
        return self.linear(x, saved)

    def linear(self, x: Tensor, saved: Saved) -> Tensor:
        """Copy every window."""
        tasks, images, *size, channels = x.shape
        outputs = [(size[i] + 2 * self.padding[i] - self.kernel[i]) // self.stride[i] + 1 for i in (0, 1)]
        y = x.new_empty(tasks, images, *outputs, *self.kernel, channels)
        count = self._tasks_in_cache(x)
        for there, here in zip(y.split(count), x.split(count), strict=True):
            there.copy_(self._windows(here, there.shape))
        return y.flatten(4)

    def adjoint(self, dy: Tensor, saved: Saved) -> Tensor:
        """Add every window to its position in the image (col2im)."""
        dx = dy.new_zeros(*dy.shape[:2], *saved["size"], dy.shape[-1] // math.prod(self.kernel))
        count = self._tasks_in_cache(dx)
        for here, there in zip(dx.split(count), dy.unflatten(-1, (*self.kernel, -1)).split(count), strict=True):
            self._add_windows(here, there)
        return dx

    def _windows(self, x: Tensor, shape: torch.Size) -> Tensor:
        """The windows as a view of a padded copy of the images."""
        (top, left), (down, right) = self.padding, self.stride
        padded = F.pad(x, (0, 0, left, left, top, top)).contiguous()
        task, image, row, column, channel = padded.stride()
        return padded.as_strided(shape, (task, image, down * row, right * column, row, column, channel))

    def _add_windows(self, dx: Tensor, windows: Tensor) -> None:
        for i in range(self.kernel[0]):
            there, here = _overlap(i - self.padding[0], self.stride[0], windows.shape[2], dx.shape[2])
            for j in range(self.kernel[1]):
                right, left = _overlap(j - self.padding[1], self.stride[1], windows.shape[3], dx.shape[3])
                dx[:, :, here, left] += windows[:, :, there, right, i, j]

    @staticmethod
    def _tasks_in_cache(images: Tensor) -> int:
        """Number of tasks to process at a time: on a CPU, their images should fit into its cache."""
        tasks = images.shape[0]
        return tasks if images.device.type != "cpu" else max(1, _CACHED_NUMBERS // images[0].numel())


def _overlap(offset: int, stride: int, windows: int, size: int) -> tuple[slice, slice]:
    """The windows whose pixel at ``offset`` lies inside the image, and the positions of these pixels."""
    first = -(-max(0, -offset) // stride)
    last = min(windows - 1, (size - 1 - offset) // stride)
    return slice(first, last + 1), slice(first * stride + offset, last * stride + offset + 1, stride)


class Flatten(PiecewiseLinear):
    """``[T, B, H, W, C]`` to ``[T, B, C*H*W]``, in the order of `torch.nn.Flatten`."""

    def forward(self, w: Weights, x: Tensor, saved: Saved) -> Tensor:
        """Flatten all axes of an image."""
        saved["size"] = x.shape[2:4]
        return self.linear(x, saved)

    def linear(self, x: Tensor, saved: Saved) -> Tensor:
        """Flatten all axes of an image."""
        return x.movedim(-1, 2).flatten(2)

    def adjoint(self, dy: Tensor, saved: Saved) -> Tensor:
        """Restore the axes."""
        height, width = saved["size"]
        return dy.unflatten(-1, (-1, height, width)).movedim(2, -1)


class MeanOverPositions(PiecewiseLinear):
    """``[T, B, H, W, C]`` to ``[T, B, 1, 1, C]``."""

    def forward(self, w: Weights, x: Tensor, saved: Saved) -> Tensor:
        """Mean over height and width."""
        saved["size"] = x.shape[2:4]
        return self.linear(x, saved)

    def linear(self, x: Tensor, saved: Saved) -> Tensor:
        """Mean over height and width."""
        return x.mean((2, 3), keepdim=True)

    def adjoint(self, dy: Tensor, saved: Saved) -> Tensor:
        """Distribute the derivative equally over the positions."""
        height, width = saved["size"]
        return (dy / (height * width)).expand(-1, -1, height, width, -1)


class ReLU(PiecewiseLinear):
    """``x`` where it is positive, else ``slope * x``.

    Args:
        slope: for negative inputs; 0: the ordinary ReLU.
    """

    def __init__(self, slope: float = 0.0) -> None:
        self.slope = slope

    def forward(self, w: Weights, x: Tensor, saved: Saved) -> Tensor:
        """``x`` or ``slope * x``."""
        positive = x > 0
        saved["factor"] = positive.to(x.dtype).masked_fill_(~positive, self.slope) if self.slope else positive
        return x * saved["factor"]

    def linear(self, x: Tensor, saved: Saved) -> Tensor:
        """``x`` where the input was positive, else ``slope * x``."""
        return x * saved["factor"]

    def adjoint(self, dy: Tensor, saved: Saved) -> Tensor:
        """``dy`` where the input was positive, else ``slope * dy``."""
        return dy * saved["factor"]


class MaxPool(PiecewiseLinear):
    """Largest value of every ``k x k`` window of ``[T, B, H, W, C]``.

    Args:
        kernel, stride, padding: as for `torch.nn.MaxPool2d`.
    """

    def __init__(self, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]) -> None:
        self.kernel, self.stride, self.padding = kernel, stride, padding

    def forward(self, w: Weights, x: Tensor, saved: Saved) -> Tensor:
        """Largest values; stores their positions in ``saved``."""
        images = x.flatten(0, 1).permute(0, 3, 1, 2)
        y, where = F.max_pool2d(images, self.kernel, self.stride, self.padding, return_indices=True)
        saved["where"] = where.permute(0, 2, 3, 1).flatten(1, 2)
        saved["size"], saved["outputs"] = x.shape[2:4], y.shape[2:]
        return y.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])

    def linear(self, x: Tensor, saved: Saved) -> Tensor:
        """The values at the positions of the maxima."""
        found = x.flatten(0, 1).flatten(1, 2).gather(1, saved["where"])
        return found.view(*x.shape[:2], *saved["outputs"], -1)

    def adjoint(self, dy: Tensor, saved: Saved) -> Tensor:
        """Add each derivative at the position of its maximum; 0 elsewhere."""
        height, width = saved["size"]
        dx = dy.new_zeros(dy.shape[0] * dy.shape[1], height * width, dy.shape[-1])
        dx.scatter_add_(1, saved["where"], dy.flatten(0, 1).flatten(1, 2))
        return dx.view(*dy.shape[:2], height, width, -1)
