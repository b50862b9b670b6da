"""MLP: MAML's network without convolutions for Omniglot, 256-128-64-64 with batch normalisation (Finn et al. 2017).

fsl train backbone=mlp
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from fsl_cli.backbones.batch_norm import BatchNorm
from fsl_cli.errors import FslError


class MLP(nn.Sequential):
    """Images ``[B, C, H, W]`` to features ``[B, widths[-1]]``: linear, batch normalisation, ReLU for every width.

    Args:
        image_shape: ``(C, H, W)``.
        widths: units of each layer, at least one layer.

    Raises:
        FslError: ``widths`` is empty or holds a number below 1.
    """

    def __init__(self, image_shape: tuple[int, int, int], *, widths: Sequence[int] = (256, 128, 64, 64)) -> None:
        if not widths or min(widths) < 1:
            raise FslError(f"{list(widths)} is no list of layer widths", where="backbone.widths", hint="e.g. [256,64]")
        sizes = [math.prod(image_shape), *widths]
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in itertools.pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), BatchNorm(outputs), nn.ReLU()]
        super().__init__(OrderedDict(layers=nn.Sequential(*layers)))
