"""MLP: MAML's fully connected networks (Finn et al. 2017).

256-128-64-64 with batch normalisation for Omniglot, 40-40 without it for sinusoids.

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
    """Maps examples ``[B, ...]`` to features ``[B, widths[-1]]``: linear, batch normalisation, ReLU for every width.

    Args:
        example_shape: shape of one example, such as ``(C, H, W)``.
        widths: units of each layer, at least one layer; None: 256-128-64-64 for images, 40-40 for other examples.
        batch_norm: whether to use batch normalisation; None: for images only.

    Raises:
        FslError: ``widths`` is empty or contains a number below 1.
    """

    def __init__(
        self, example_shape: tuple[int, ...], *, widths: Sequence[int] | None = None, batch_norm: bool | None = None
    ) -> None:
        images = len(example_shape) == 3
        if widths is None:
            widths = (256, 128, 64, 64) if images else (40, 40)
        if not widths or min(widths) < 1:
            raise FslError(f"{list(widths)} is not a list of layer widths", where="backbone.widths", hint="e.g. [256,64]")
        sizes = [math.prod(example_shape), *widths]
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in itertools.pairwise(sizes):
            norm = [BatchNorm(outputs)] if (images if batch_norm is None else batch_norm) else []
            layers += [nn.Linear(inputs, outputs), *norm, nn.ReLU()]
        super().__init__(OrderedDict(layers=nn.Sequential(*layers)))
