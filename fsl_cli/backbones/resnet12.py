"""ResNet-12 of MetaOptNet (Lee et al. 2019), in learn2learn's implementation.

Deviations: learn2learn's final pooling supports 84x84 images only; here it is the mean over all positions, which gives the
same result for these and supports images of 16x16 or more. Batch normalisation is `BatchNorm`, with an explicit choice of
statistics. DropBlock is off by default, since it is meant for 84x84 images and long training; its rate is constant,
whereas MetaOptNet's grows over the first 40,000 forward passes, a count that is not part of the checkpointed state.

    fsl train algo=protonet backbone=resnet12
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Lt
from torch import Tensor, nn

from fsl_cli.backbones.batch_norm import convert_batch_norm
from fsl_cli.errors import FslError
from fsl_cli.optional import learn2learn


class ResNet12(nn.Module):
    """Maps images ``[B, C, H, W]`` to features ``[B, 640]`` (``wider``) or ``[B, 512]``.

    Args:
        image_shape: ``(C, H, W)``, at least 16x16; at least 80x80 with DropBlock.
        wider: 64-160-320-640 filters as in MetaOptNet; false: 64-128-256-512 as in TADAM.
        dropblock: drop rate of the residual blocks during training (MetaOptNet: 0.1), 0 = off.

    Raises:
        FslError: learn2learn is missing, or the image is too small.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        wider: bool = True,
        dropblock: Annotated[float, Ge(0), Lt(1)] = 0.0,
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        least = 80 if dropblock else 16
        if min(height, width) < least:
            raise FslError(
                f"images are {height}x{width}, resnet12 needs at least {least}x{least}",
                where="backbone=resnet12",
                hint="set dataset.size, or backbone.dropblock=0 for images below 80x80",
            )
        models = learn2learn("vision.models.resnet12", needed_for="backbone=resnet12")
        net = models.ResNet12Backbone(avg_pool=False, wider=wider, dropblock_dropout=dropblock, channels=channels)
        self.stages = convert_batch_norm(nn.Sequential(net.layer1, net.layer2, net.layer3, net.layer4))
        for stage in self.stages.children():
            for block in stage.children():
                block.register_forward_pre_hook(_full_drop_rate)
                block.DropBlock = DropBlock(block.block_size)  # type: ignore[arg-type]
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        """Features of a batch of images."""
        return self.pool(self.stages(x)).flatten(1)


class DropBlock(nn.Module):
    """Zeroes random squares of the feature maps during training (Ghiasi, Lin & Le 2018, algorithm 1).

    Equivalent to learn2learn's, but tensor shapes do not depend on the random numbers, as `torch.func` requires.

    Args:
        block_size: side length of a square.
    """

    def __init__(self, block_size: int) -> None:
        super().__init__()
        self.block_size = block_size

    def forward(self, x: Tensor, gamma: float) -> Tensor:
        """Apply to feature maps ``[B, C, H, W]``; each position is the corner of a square with probability ``gamma``."""
        if not self.training:
            return x
        height, width = (side - self.block_size + 1 for side in x.shape[-2:])
        kept = 1 - squares((torch.rand(*x.shape[:2], height, width, device=x.device) < gamma).to(x.dtype), self.block_size)
        return x * kept * (kept.numel() / kept.sum().clamp(min=1))


def squares(corners: Tensor, side: int) -> Tensor:
    """1 inside the squares with the upper left corners ``corners``, else 0.

    Args:
        corners: 0 or 1, ``[B, C, H - side + 1, W - side + 1]``.
        side: side length of a square.

    Returns:
        ``[B, C, H, W]``.
    """
    return F.max_pool2d(F.pad(corners, [side - 1] * 4), side, stride=1)


def _full_drop_rate(block: nn.Module, inputs: object) -> None:
    """Set learn2learn's count of forward passes to the end of its schedule, so that the drop rate is constant."""
    block.num_batches_tracked = 40_000  # type: ignore[assignment]
