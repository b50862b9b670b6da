"""What methods share that embed the images of an episode and fit a closed-form or convex head to its support set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fsl_cli.algos.algorithm import Algorithm, BatchNormMode, Step
from fsl_cli.backbones.batch_norm import Source, statistics_from
from fsl_cli.episodes import Episodes, Task
from fsl_cli.metrics import cross_entropy


class EpisodicEmbedding(Algorithm):
    """Meta-learns the embedding under a head that `classify` fits to the support set.

    While training, batch normalisation uses the images of the episode. In tests ``inductive`` uses the running averages
    of training, ``transductive`` the images of the episode.

    Args:
        backbone: images ``[B, C, H, W]`` to embeddings ``[B, D]``.
        batch_norm: see above.
        train_ways: ways of a training episode; None: as in the tested task.
        train_shots: shots of a training episode; None: as in the tested task.
        train_queries: query images per class of a training episode; None: as in the tested task.
    """

    def __init__(
        self,
        backbone: nn.Module,
        batch_norm: BatchNormMode,
        train_ways: int | None,
        train_shots: int | None,
        train_queries: int | None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.transductive = batch_norm == "transductive"
        self.embeds = not self.transductive
        self.train_ways, self.train_shots, self.train_queries = train_ways, train_shots, train_queries

    def train_task(self, task: Task) -> Task:
        """The tested task with the training ways, shots and queries."""
        return Task(self.train_ways or task.ways, self.train_shots or task.shots, self.train_queries or task.queries)

    def loss(self, episodes: Episodes) -> Step:
        """`query_loss` of the queries; moves the running averages of batch normalisation."""
        logits = self._logits_one_by_one(episodes, "tracked_batch")
        return Step(self.query_loss(logits, episodes.query_y), logits.detach(), self.learned())

    def query_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean loss over queries ``[T, N*Q, N]`` with labels ``[T, N*Q]``; here the cross-entropy."""
        return cross_entropy(logits, labels).mean()

    def learned(self) -> dict[str, Tensor]:
        """Learned numbers of the head to log, by name."""
        return {}

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

    def _logits_one_by_one(self, episodes: Episodes, source: Source) -> Tensor:
        shots = episodes.support_x.shape[1]
        with statistics_from(self.backbone, source):
            both = torch.cat([episodes.support_x, episodes.query_x], dim=1)
            embedded = torch.stack([self.backbone(images) for images in both])
        return self.classify(embedded[:, :shots], episodes.support_y, embedded[:, shots:], episodes.ways)


@contextmanager
def full_precision(like: Tensor) -> Iterator[None]:
    """Keep mixed precision out of a ``with`` block: systems of equations need all digits.

    Args:
        like: a tensor on the device that is meant.
    """
    with torch.autocast(like.device.type, enabled=False):
        yield
