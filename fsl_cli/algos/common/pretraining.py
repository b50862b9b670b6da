"""Supervised pre-training: a network learns to tell all classes of the training split apart, as in ordinary training.

A training episode is a mini-batch: the images of ``train_ways`` classes, two of each class, with their classes in the split
as labels. What a method then does with the network in a test is its own.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsl_cli.algos.common.algorithm import Algorithm, Step
from fsl_cli.algos.common.full_precision import full_precision
from fsl_cli.backbones.batch_norm import statistics_from
from fsl_cli.episodes import Episodes, Task


class Pretrained(Algorithm):
    """A network with a head over all classes of the training split, trained by cross-entropy.

    Batch normalisation: while training by the mini-batch; embeddings use the running averages of training.

    Args:
        backbone: images ``[B, C, H, W]`` to features ``[B, D]``.
        head: features to logits ``[B, classes]``.
        train_ways: classes of a mini-batch, two images each.
    """

    transductive = False
    embeds = True

    def __init__(self, backbone: nn.Module, head: ClassHead, train_ways: int) -> None:
        super().__init__()
        self.backbone, self.head, self.train_ways = backbone, head, train_ways

    def train_task(self, task: Task) -> Task:
        """A mini-batch; the tested task plays no part in it."""
        return Task(self.train_ways, 1, 1)

    def loss(self, episodes: Episodes) -> Step:
        """Cross-entropy over all classes; moves the running averages of batch normalisation.

        Returns:
            Logits ``[T, 2 * train_ways, classes]`` with their labels.
        """
        images = torch.cat([episodes.support.x, episodes.query.x], dim=1)
        labels = episodes.classes.gather(1, torch.cat([episodes.support.y, episodes.query.y], dim=1))
        logits = torch.stack([self._logits(batch) for batch in images])  # each mini-batch is normalised by itself
        return Step(F.cross_entropy(logits.flatten(0, 1), labels.flatten()), logits.detach(), targets=labels)

    def _logits(self, images: Tensor) -> Tensor:
        with statistics_from(self.backbone, "tracked_batch"):
            features = self.backbone(images)
        self.seen(features.detach())
        return self.head(features)

    def seen(self, features: Tensor) -> None:
        """Take note of the features ``[B, D]`` of a training mini-batch."""

    @torch.no_grad()
    def predict(self, episodes: Episodes) -> Tensor:
        """Query logits ``[T, N*Q, N]``."""
        return super().predict(episodes)

    def embed(self, images: Tensor) -> Tensor:
        """Features ``[B, D]``, normalised by the running averages."""
        with statistics_from(self.backbone, "running"):
            return self.backbone(images)


class ClassHead(nn.Module):
    """A head over the classes of a training split, which a test on any data set can be given without knowing their number.

    Args:
        features: D.
        classes: of the training split.
        bias: whether each class has one.
    """

    bias: nn.Parameter | None

    def __init__(self, features: int, classes: int, bias: bool) -> None:
        super().__init__()
        linear = nn.Linear(features, classes, bias=bias)
        self.weight = linear.weight
        self.register_parameter("bias", linear.bias)

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor:
        """Logits ``[B, classes]``."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Load as many classes as there are: a test on another data set knows only how many that one has."""
        for name, parameter in self.named_parameters():
            saved = state_dict.get(prefix + name)
            if isinstance(saved, Tensor) and saved.shape[1:] == parameter.shape[1:] and saved.shape != parameter.shape:
                setattr(self, name, nn.Parameter(parameter.new_empty(saved.shape)))
        super()._load_from_state_dict(state_dict, prefix, *rest)


class LinearHead(ClassHead):
    """Logits ``W x + b``."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes, bias=True)

    def forward(self, features: Tensor) -> Tensor:
        """``[B, D]`` to ``[B, classes]``."""
        return F.linear(features, self.weight, self.bias)


class CosineHead(ClassHead):
    """Logits ``scale * cos(w_k, x)``.

    Args:
        features: D.
        classes: of the training split.
        scale: > 0.
    """

    def __init__(self, features: int, classes: int, scale: float) -> None:
        super().__init__(features, classes, bias=False)
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        """``[B, D]`` to ``[B, classes]``."""
        with full_precision(features) as (features,):
            return self.scale * F.normalize(features, dim=-1) @ F.normalize(self.weight, dim=-1).T
