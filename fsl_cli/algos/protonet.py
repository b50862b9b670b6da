"""Prototypical networks (Snell, Swersky & Zemel 2017).

A class is the mean of its embedded support images (eq. 1), c_n = mean_k f(x_nk), and a query is classified by a softmax
over negative distances to the prototypes (eq. 2), p(y = n | x) = softmax_n(-d(f(x), c_n)). Training minimises the
cross-entropy of the queries; it pays to train with more ways than are tested (section 2.6), hence ``train_ways``.

``distance=sqeuclidean`` is the squared Euclidean distance of the paper; ``cosine`` is 1 - cosine similarity, which the
paper finds worse: its logits lie between -2 and 0, so give it a ``scale`` around 10.

Batch normalisation: while training by the images of the episode, as in the authors' code. In tests ``inductive``
normalises by the running averages of training (``model.eval()`` there), ``transductive`` by the images of the episode.

Deviations from the paper: schedules are shorter unless an experiment file pins the paper's.

Logged: ``loss`` and ``accuracy`` on the queries of the training episodes, which have ``train_ways`` ways.

    fsl train algo=protonet dataset=omniglot
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor, nn

from fsl_cli.algos.algorithm import Algorithm, BatchNormMode, Step
from fsl_cli.backbones.batch_norm import Source, statistics_from
from fsl_cli.episodes import Episodes, Task
from fsl_cli.metrics import cross_entropy

Distance = Literal["sqeuclidean", "cosine"]


class ProtoNet(Algorithm):
    """Meta-learns an embedding in which classes lie around their mean.

    Args:
        backbone: images ``[B, C, H, W]`` to embeddings ``[B, D]``.
        distance: see above.
        scale: factor of the logits, > 0.
        batch_norm: see above.
        train_ways: ways of a training episode; None: as in the tested task.
        train_shots: shots of a training episode; None: as in the tested task.
        train_queries: query images per class of a training episode; None: as in the tested task.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        distance: Distance = "sqeuclidean",
        scale: Annotated[float, Gt(0)] = 1.0,
        batch_norm: BatchNormMode = "inductive",
        train_ways: Annotated[int, Ge(2)] | None = 60,
        train_shots: Annotated[int, Ge(1)] | None = None,
        train_queries: Annotated[int, Ge(1)] | None = 5,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.distance, self.scale = distance, scale
        self.transductive = batch_norm == "transductive"
        self.embeds = not self.transductive
        self.train_ways, self.train_shots, self.train_queries = train_ways, train_shots, train_queries

    def train_task(self, task: Task) -> Task:
        """The tested task with the training ways, shots and queries."""
        return Task(self.train_ways or task.ways, self.train_shots or task.shots, self.train_queries or task.queries)

    def loss(self, episodes: Episodes) -> Step:
        """Cross-entropy of the queries; moves the running averages of batch normalisation."""
        logits = self._logits_one_by_one(episodes, "tracked_batch")
        return Step(cross_entropy(logits, episodes.query_y).mean(), logits.detach())

    @torch.no_grad()
    def predict(self, episodes: Episodes) -> Tensor:
        """Query logits ``[T, N*Q, N]``."""
        if self.transductive:  # an episode is a batch of its own
            return self._logits_one_by_one(episodes, "batch")
        return super().predict(episodes)

    def embed(self, images: Tensor) -> Tensor:
        """Embeddings ``[B, D]``, normalised by the running averages."""
        with statistics_from(self.backbone, "running"):
            return self.backbone(images)

    def classify(self, support: Tensor, support_y: Tensor, query: Tensor, ways: int) -> Tensor:
        """Scaled negative distances of the queries to the prototypes."""
        return -self.scale * _DISTANCES[self.distance](query, class_means(support, support_y, ways))

    def _logits_one_by_one(self, episodes: Episodes, source: Source) -> Tensor:
        shots = episodes.support_x.shape[1]
        with statistics_from(self.backbone, source):
            both = torch.cat([episodes.support_x, episodes.query_x], dim=1)
            embedded = torch.stack([self.backbone(images) for images in both])
        return self.classify(embedded[:, :shots], episodes.support_y, embedded[:, shots:], episodes.ways)


def class_means(embedded: Tensor, labels: Tensor, ways: int) -> Tensor:
    """Mean embedding of each class (eq. 1).

    Args:
        embedded: ``[T, B, D]``.
        labels: int64 ``[T, B]``, every class at least once.
        ways: N.

    Returns:
        ``[T, N, D]``.
    """
    members = F.one_hot(labels, ways).to(embedded.dtype)
    return (members / members.sum(1, keepdim=True)).transpose(1, 2) @ embedded


def squared_euclidean(query: Tensor, prototypes: Tensor) -> Tensor:
    """``|q - c|^2``: ``[T, B, D]`` and ``[T, N, D]`` to ``[T, B, N]``."""
    return (query.unsqueeze(2) - prototypes.unsqueeze(1)).square().sum(-1)


def cosine_distance(query: Tensor, prototypes: Tensor) -> Tensor:
    """``1 - cos(q, c)``: ``[T, B, D]`` and ``[T, N, D]`` to ``[T, B, N]``."""
    return 1 - F.normalize(query, dim=-1) @ F.normalize(prototypes, dim=-1).transpose(1, 2)


_DISTANCES = {"sqeuclidean": squared_euclidean, "cosine": cosine_distance}
