"""Conv4: four blocks of 3x3 convolution, batch normalisation and ReLU, the network of most few-shot papers.

``downsample=stride``: convolutions with stride 2, Xavier initialisation; ``downsample=max_pool``: stride 1 and 2x2
max-pooling, PyTorch's initialisation; ``downsample=max_pool_twice``: the same, with max-pooling in the first two blocks only,
whose convolutions are not padded. ``pool`` makes features of the last maps: their ``mean`` over positions, or all of their
values, one after the other (``flatten``). On 28x28 images the last maps are 2x2 with strides, 1x1 with ``max_pool`` and 5x5
with ``max_pool_twice``.

With strides and the mean, the default, it is the network of MAML's Omniglot code (Finn et al. 2017, section 5.2); with strides
and ``flatten`` that of the code of Reptile (Nichol et al. 2018) and iMAML (Rajeswaran et al. 2019), 256 features; with
max-pooling that of Vinyals et al. 2016 and ProtoNet (Snell et al. 2017), 64 features; with a ``negative_slope`` of 0.01 as
well, that of MAML++ (Antoniou et al. 2019); with two max-poolings the embedding of RelationNet (Sung et al. 2018).

Convolutions are padded on all sides; TensorFlow, in MAML's and Reptile's code, pads images of even size on the right and at
the bottom only, which moves the windows by one pixel.

    fsl train backbone=conv4 backbone.downsample=max_pool
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Annotated, Literal

from annotated_types import Ge, Lt
from torch import nn

from fsl_cli.backbones.batch_norm import BatchNorm
from fsl_cli.errors import FslError

Downsample = Literal["stride", "max_pool", "max_pool_twice"]
_LEAST: dict[Downsample, int] = {"stride": 1, "max_pool": 16, "max_pool_twice": 10}  # pixels that leave a map


class Conv4(nn.Sequential):
    """Maps images ``[B, C, H, W]`` to features: ``[B, filters]`` by the mean, else ``[B, filters * h * w]`` for maps of h x w.

    A stride halves a side and rounds up, max-pooling rounds down.

    Args:
        image_shape: ``(C, H, W)``.
        filters: output channels of every block.
        downsample: how a block halves the image, see above.
        pool: ``mean`` or ``flatten``, see above; None: ``mean`` with strides, ``flatten`` with max-pooling.
        negative_slope: of the ReLUs for negative inputs, >= 0, less than 1.

    Raises:
        FslError: the image is smaller than 16 pixels with ``max_pool``, or than 10 with ``max_pool_twice``.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        filters: Annotated[int, Ge(1)] = 64,
        downsample: Downsample = "stride",
        pool: Literal["mean", "flatten"] | None = None,
        negative_slope: Annotated[float, Ge(0), Lt(1)] = 0.0,
    ) -> None:
        channels, height, width = image_shape
        least = _LEAST[downsample]
        if min(height, width) < least:
            times = "two" if downsample == "max_pool_twice" else "four"
            raise FslError(
                f"{height}x{width} images are too small for {downsample}, which halves them {times} times",
                where="backbone.downsample",
                hint=f"use images of at least {least}x{least}, or downsample=stride",
            )
        inputs = [channels, filters, filters, filters]
        blocks = nn.Sequential(*(_block(n, each, filters, downsample, negative_slope) for n, each in enumerate(inputs)))
        mean = pool == "mean" or (pool is None and downsample == "stride")
        layers = {"blocks": blocks, "pool": nn.AdaptiveAvgPool2d(1) if mean else nn.Identity(), "flatten": nn.Flatten()}
        super().__init__(OrderedDict(layers))
        if downsample == "stride":
            for layer in self.modules():
                if isinstance(layer, nn.Conv2d):
                    nn.init.xavier_uniform_(layer.weight)
                    if layer.bias is not None:
                        nn.init.zeros_(layer.bias)


def _block(number: int, inputs: int, filters: int, downsample: Downsample, negative_slope: float) -> nn.Sequential:
    twice = downsample == "max_pool_twice"
    pools = number < 2 if twice else downsample == "max_pool"
    padding = 0 if twice and pools else 1
    relu = nn.LeakyReLU(negative_slope) if negative_slope else nn.ReLU()
    convolution = nn.Conv2d(inputs, filters, 3, stride=2 if downsample == "stride" else 1, padding=padding)
    return nn.Sequential(convolution, BatchNorm(filters), relu, *([nn.MaxPool2d(2)] if pools else []))
