"""Conv4: four blocks of 3x3 convolution, batch normalisation and ReLU, the network of most few-shot papers.

``downsample=stride``: convolutions with stride 2, then the mean over positions, as in MAML's Omniglot code (Finn et al.
2017, section 5.2), Xavier initialisation. ``downsample=max_pool``: stride 1, 2x2 max-pooling and flattening, as in Vinyals
et al. 2016 and ProtoNet (Snell et al. 2017), PyTorch's initialisation. On 28x28 images both give ``filters`` features.

    fsl train backbone=conv4 backbone.downsample=max_pool
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Annotated, Literal

from annotated_types import Ge
from torch import nn

from fsl_cli.backbones.batch_norm import BatchNorm
from fsl_cli.errors import FslError


class Conv4(nn.Sequential):
    """Maps images ``[B, C, H, W]`` to features ``[B, filters]`` (stride) or ``[B, filters * H//16 * W//16]`` (max_pool).

    Args:
        image_shape: ``(C, H, W)``.
        filters: output channels of every block.
        downsample: how a block halves the image, see above.

    Raises:
        FslError: the image is smaller than 16 pixels and ``downsample`` is ``max_pool``.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        filters: Annotated[int, Ge(1)] = 64,
        downsample: Literal["stride", "max_pool"] = "stride",
    ) -> None:
        channels, height, width = image_shape
        if downsample == "max_pool" and min(height, width) < 16:
            raise FslError(
                f"{height}x{width} images are too small for max_pool, which halves them four times",
                where="backbone.downsample",
                hint="use images of at least 16x16, or downsample=stride",
            )
        inputs = [channels, filters, filters, filters]
        blocks = nn.Sequential(*(_block(each, filters, downsample) for each in inputs))
        pool = nn.AdaptiveAvgPool2d(1) if downsample == "stride" else nn.Identity()
        super().__init__(OrderedDict(blocks=blocks, pool=pool, flatten=nn.Flatten()))
        if downsample == "stride":
            for layer in self.modules():
                if isinstance(layer, nn.Conv2d):
                    nn.init.xavier_uniform_(layer.weight)
                    if layer.bias is not None:
                        nn.init.zeros_(layer.bias)


def _block(inputs: int, filters: int, downsample: str) -> nn.Sequential:
    stride = 2 if downsample == "stride" else 1
    layers = [nn.Conv2d(inputs, filters, 3, stride=stride, padding=1), BatchNorm(filters), nn.ReLU()]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if downsample == "max_pool" else []))
