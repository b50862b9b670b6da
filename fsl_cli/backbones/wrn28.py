"""WRN-28-10, the wide residual network of Dhillon et al. 2020, in learn2learn's implementation.

Deviations: learn2learn's network supports only three channels and 84x84 images; here the first convolution has the image's
number of channels and the final pooling is the mean over all positions, which gives the same result for 84x84. Batch
normalisation is `BatchNorm`, with an explicit choice of statistics. 36 million parameters: a GPU is recommended.

    fsl train algo=protonet backbone=wrn28 hardware=gpu
"""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Lt
from torch import Tensor, nn

from fsl_cli.backbones.batch_norm import convert_batch_norm
from fsl_cli.optional import learn2learn


class WRN28(nn.Module):
    """Maps images ``[B, C, H, W]`` to features ``[B, 640]``.

    Args:
        image_shape: ``(C, H, W)``.
        dropout: drop rate inside the residual blocks during training.

    Raises:
        FslError: learn2learn is missing.
    """

    def __init__(self, image_shape: tuple[int, int, int], *, dropout: Annotated[float, Ge(0), Lt(1)] = 0.0) -> None:
        super().__init__()
        net = learn2learn("vision.models.wrn28", needed_for="backbone=wrn28").WRN28Backbone(dropout=dropout)
        first = nn.Conv2d(image_shape[0], net.conv1.out_channels, 3, padding=1)
        stages = nn.Sequential(first, net.layer1, net.layer2, net.layer3, net.bn1, nn.ReLU())
        self.stages = convert_batch_norm(stages)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        """Features of a batch of images."""
        return self.pool(self.stages(x)).flatten(1)
