"""The network of R2D2 (Bertinetto et al. 2019, section 5): four convolutions, features of the last two of them.

Each block is a 3x3 convolution, batch normalisation, 2x2 max-pooling and a leaky ReLU of slope 0.1; the last block pools with
stride 1. The features are the outputs of the third block, pooled once more with stride 1, and those of the fourth, one after
the other: 3,584 numbers for 28x28 images. The authors' Omniglot runs have no dropout, their others 0.1 in the last two blocks.

    fsl train algo=r2d2 backbone=r2d2net
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn

from fsl_cli.backbones.batch_norm import BatchNorm
from fsl_cli.errors import FslError


class R2D2Net(nn.Module):
    """Maps images ``[B, C, H, W]`` to features ``[B, D]``, D the sizes of the last two blocks' outputs.

    Args:
        image_shape: ``(C, H, W)``, at least 16x16.
        wider: 96, 192, 384 and 512 filters; false: 64 in every block, the smaller network of the paper.
        dropout: drop rate after the third and the fourth block during training.

    Raises:
        FslError: the image is too small.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        wider: bool = True,
        dropout: Annotated[float, Ge(0), Lt(1)] = 0.0,
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        if min(height, width) < 16:
            what = f"images are {height}x{width}, r2d2net needs at least 16x16"
            raise FslError(what, where="backbone=r2d2net", hint="set dataset.size")
        one, two, three, four = (96, 192, 384, 512) if wider else (64, 64, 64, 64)
        self.first = nn.Sequential(_block(channels, one), _block(one, two))
        self.third = nn.Sequential(_block(two, three), nn.Dropout(dropout))
        self.fourth = nn.Sequential(_block(three, four, stride=1), nn.Dropout(dropout))
        self.pool = nn.MaxPool2d(2, stride=1)

    def forward(self, x: Tensor) -> Tensor:
        """Features of a batch of images."""
        third = self.third(self.first(x))
        return torch.cat([self.pool(third).flatten(1), self.fourth(third).flatten(1)], 1)


def _block(inputs: int, outputs: int, stride: int = 2) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
    return nn.Sequential(convolution, BatchNorm(outputs), nn.MaxPool2d(2, stride=stride), nn.LeakyReLU(0.1))
