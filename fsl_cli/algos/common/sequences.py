"""Few-shot learning as a sequence of images (Santoro et al. 2016, section 2): what all such methods share.

An episode is read as the support set in random order, followed by one query. What the support set leaves behind is computed
once and is the same for all queries: no query sees another, except through transductive batch normalisation.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsl_cli.algos.common.algorithm import Algorithm, BatchNormMode
from fsl_cli.backbones.batch_norm import Source, statistics_from
from fsl_cli.episodes import Episodes, Task
from fsl_cli.errors import FslError
from fsl_cli.settings.sizes import Count, Size


class SequenceOptions(TypedDict, total=False):
    """Options of every method that reads an episode as a sequence.

    Args:
        train_queries: query images per class of a training episode, >= 1, a number or a range, default 3; None: as in the
            tested task.
        batch_norm: ``inductive`` (default) or ``transductive``, see `Embedding`.
    """

    train_queries: Count | None
    batch_norm: BatchNormMode


class Labelled(NamedTuple):
    """Images in the order in which they are seen: features ``[T, S, D]`` and labels, int64 ``[T, S]``."""

    features: Tensor
    labels: Tensor

    def followed_by(self, other: Labelled) -> Labelled:
        """These images, then others."""
        return Labelled(torch.cat([self.features, other.features], 1), torch.cat([self.labels, other.labels], 1))

    def ordered(self, order: Tensor) -> Labelled:
        """The images at positions ``order``, int64 ``[T, S]``."""
        features = self.features.gather(1, order.unsqueeze(-1).expand(-1, -1, self.features.shape[-1]))
        return Labelled(features, self.labels.gather(1, order))


class SequenceLearner(Algorithm):
    """Meta-learns a backbone and a network that reads the support set, then one query.

    Args:
        backbone: images ``[B, C, H, W]`` to features ``[B, D]``.
        features: D.
        ways: of the trained task, the width of a label; tests may have fewer.
        train_queries: see `SequenceOptions`.
        batch_norm: see `SequenceOptions`.
    """

    uneven = True

    def __init__(
        self,
        backbone: nn.Module,
        features: int,
        ways: int,
        *,
        train_queries: Size | None = 3,
        batch_norm: BatchNormMode = "inductive",
    ) -> None:
        super().__init__()
        self.embedding = Embedding(backbone, features, batch_norm)
        self.transductive = batch_norm == "transductive"
        self.ways, self.train_queries = ways, train_queries

    @abstractmethod
    def answer(self, support: Labelled, query: Tensor, seeds: Tensor) -> Tensor:
        """Logits ``[T, Q, ways]`` of queries ``[T, Q, D]``, each seen after the support set in random order."""

    def train_task(self, task: Task) -> Task:
        """The tested task with the training queries."""
        return task.with_sizes(queries=self.train_queries)

    def task_problems(self, task: Task) -> list[FslError]:
        """More ways than a label is wide."""
        if task.ways <= self.ways:
            return []
        return [
            FslError(
                f"{task.ways} ways, but the network has inputs and outputs for {self.ways} labels",
                where="task.ways",
                hint=f"test with at most {self.ways} ways, or train with task.ways={task.ways}",
            )
        ]

    @torch.no_grad()
    def predict(self, episodes: Episodes) -> Tensor:
        """Query logits ``[T, N*Q, N]``, of at most as many ways as were trained."""
        support, query = self.embedding(episodes)
        return self.answer(support, query.features, episodes.seeds)[..., : episodes.ways]


class Embedding(nn.Module):
    """A backbone with layer-normalised features, which are then about as large as the entries of a label.

    Training and tests do the same.

    Args:
        backbone: images ``[B, C, H, W]`` to features ``[B, D]``.
        features: D.
        batch_norm: what each episode is normalised by: ``inductive``: its support images; ``transductive``: all its images.
    """

    def __init__(self, backbone: nn.Module, features: int, batch_norm: BatchNormMode) -> None:
        super().__init__()
        self.backbone, self.norm = backbone, nn.LayerNorm(features)
        self.source: Source = "batch" if batch_norm == "transductive" else "first_rows"

    def forward(self, episodes: Episodes) -> tuple[Labelled, Labelled]:
        """Support and query images of the episodes."""
        images, shots = torch.cat([episodes.support.x, episodes.query.x], 1), episodes.support.x.shape[1]
        with statistics_from(self.backbone, self.source, shots):
            both = self.norm(torch.stack([self.backbone(each) for each in images]))
        return Labelled(both[:, :shots], episodes.support.y), Labelled(both[:, shots:], episodes.query.y)


def one_hot(labels: Tensor, ways: int, dtype: torch.dtype) -> Tensor:
    """Labels, int64 ``[...]``, as ``[..., ways]``."""
    return F.one_hot(labels, ways).to(dtype)
