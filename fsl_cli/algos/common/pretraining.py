"""Supervised pre-training: a network learns to classify into all classes of the training split.

A training episode is a mini-batch: the images of ``train_ways`` classes, two of each class, with their classes in the split
as labels. Where a data set has no classes, one network is trained on the examples of all tasks. Each method then uses the
network in its own way in tests.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsl_cli.algos.common.algorithm import Algorithm, Step
from fsl_cli.algos.common.embedding_learner import each_alone
from fsl_cli.algos.common.full_precision import full_precision
from fsl_cli.backbones.batch_norm import statistics_from
from fsl_cli.episodes import Classification, Episodes, Task


class Pretrained(Algorithm):
    """A network with a head over all classes of the training split, trained by cross-entropy.

    Where a data set has no classes, the head has the outputs of the problem, and one network is trained on the examples of
    all tasks together, which have different targets for the same input (Finn et al. 2017, section 5.1).

    Batch normalisation: while training by the mini-batch; embeddings use the running averages of training.

    Args:
        backbone: examples ``[B, ...]`` to features ``[B, D]``.
        head: features to logits ``[B, classes]``, or to the outputs of the problem.
        train_ways: classes of a mini-batch, two images each; None: there are no classes.
    """

    masks = uneven = True
    transductive = False
    embeds = True
    labels_classes = True

    def __init__(self, backbone: nn.Module, head: ClassHead, train_ways: int | None) -> None:
        super().__init__()
        self.backbone, self.head, self.train_ways = backbone, head, train_ways

    def train_task(self, task: Task) -> Task:
        """A mini-batch of classes, whatever task is tested; without classes, a mini-batch of the examples of a task."""
        return task if self.train_ways is None else Task(self.train_ways, 1, 1)

    def loss(self, episodes: Episodes) -> Step:
        """Cross-entropy over all classes, or the loss of the problem; updates the running averages of batch normalisation.

        Returns:
            Outputs for all examples, support and queries, with their targets.
        """
        examples, problem = episodes.support.followed_by(episodes.query), episodes.problem
        outputs = each_alone(self._outputs, examples)  # each mini-batch is normalised separately
        targets = examples.y
        if self.train_ways is not None:
            targets, problem = episodes.classes.gather(1, targets), Classification(outputs.shape[-1])
        loss = problem.loss(outputs, targets, examples.mask).mean()
        return Step(loss, outputs.detach(), targets=targets, mask=examples.mask)

    def _outputs(self, examples: Tensor) -> Tensor:
        with statistics_from(self.backbone, "tracked_batch"):
            features = self.backbone(examples)
        self.seen(features.detach())
        return self.head(features)

    def seen(self, features: Tensor) -> None:
        """Called with the features ``[B, D]`` of every training mini-batch; here it does nothing."""

    @torch.no_grad()
    def predict(self, episodes: Episodes) -> Tensor:
        """Query logits ``[T, N*Q, N]``."""
        return super().predict(episodes)

    def embed(self, images: Tensor) -> Tensor:
        """Features ``[B, D]``, normalised by the running averages."""
        with statistics_from(self.backbone, "running"):
            return self.backbone(images)


class ClassHead(nn.Module):
    """A head over the classes of a training split, which loads saved weights of any number of classes.

    Args:
        features: D.
        classes: of the training split.
        bias: whether each class has a bias.
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
        """Load as many classes as were saved: a test on another data set knows only the classes of its own training split."""
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
