"""Pre-trained features that are centred and scaled to unit length before a test compares them (Wang et al. 2019, section 2)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from fsl_cli.algos.common.full_precision import full_precision
from fsl_cli.algos.common.pretraining import LinearHead, Pretrained
from fsl_cli.compute.running_averages import RunningMean

Transform = Literal["un", "l2n", "cl2n"]


class TransformedFeatures(Pretrained):
    """A pre-trained network whose features ``z = t(f(x))`` are transformed in tests.

    The mean feature is a running average over the mini-batches of training, with the momentum of batch normalisation.

    Args:
        backbone: images ``[B, C, H, W]`` to features ``[B, features]``.
        features: width of the backbone's output.
        classes: of the training split.
        transform: ``un`` leaves features as they are; ``l2n`` divides each by its length; ``cl2n`` first subtracts the mean
            feature of the training split, then divides by the length.
        train_ways: classes of a training mini-batch, two images each, >= 2.
    """

    def __init__(self, backbone: nn.Module, features: int, classes: int, transform: Transform, train_ways: int) -> None:
        super().__init__(backbone, LinearHead(features, classes), train_ways)
        self.transform = transform
        self.center = RunningMean(features)

    def seen(self, features: Tensor) -> None:
        """Update the mean feature."""
        self.center.move(features)

    def transformed(self, features: Tensor) -> Tensor:
        """Features ``[..., D]`` after ``transform``."""
        with full_precision(features) as (features,):
            if self.transform == "cl2n":
                features = features - self.center.mean
            return features if self.transform == "un" else F.normalize(features, dim=-1)
