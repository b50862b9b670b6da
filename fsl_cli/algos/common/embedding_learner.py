"""What methods that compare embeddings share: the shape of training episodes, and batch normalisation.

While training, batch normalisation uses the images of the episode and updates its running averages. Each episode is normalised
separately, so that the loss does not depend on how a batch of episodes is chunked. In tests ``inductive`` normalises by the
running averages, ``transductive`` by the images of the episode. The images of an episode are normalised together or, in methods
that have the option ``normalize_separately``, the support images by themselves and the queries by themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict

import torch
from torch import Tensor, nn

from fsl_cli.algos.common.algorithm import Algorithm, BatchNormMode, Step
from fsl_cli.backbones.batch_norm import Source, statistics_from
from fsl_cli.episodes import Episodes, Examples, Task
from fsl_cli.episodes.episodes import spread
from fsl_cli.settings.sizes import Count, Size
from fsl_cli.statistics.classification import cross_entropy


class EmbeddingOptions(TypedDict, total=False):
    """Options of every method that compares embeddings.

    Args:
        batch_norm: in tests: ``inductive`` (default) by the running averages, ``transductive`` by the images of the episode.
        train_shots: shots of a training episode, >= 1, a number or a range; None (default): as in the tested task.
        train_queries: query images per class of a training episode, >= 1, a number or a range, default 5; None: as in the
            tested task.
    """

    batch_norm: BatchNormMode
    train_shots: Count | None
    train_queries: Count | None


class EmbeddingLearner(Algorithm):
    """An algorithm that embeds support and query images with one network, then compares them in `classify`.

    Args:
        backbone: images ``[B, C, H, W]`` to embeddings ``[B, ...]``.
        train_ways: ways of a training episode; None: as in the tested task.
        batch_norm: see `EmbeddingOptions`.
        train_shots: see `EmbeddingOptions`.
        train_queries: see `EmbeddingOptions`.
        normalize_separately: see above.
    """

    def __init__(
        self,
        backbone: nn.Module,
        train_ways: Size | None,
        *,
        batch_norm: BatchNormMode = "inductive",
        train_shots: Size | None = None,
        train_queries: Size | None = 5,
        normalize_separately: bool = False,
    ) -> None:
        super().__init__()
        self.masks = self.uneven = True
        self.backbone = backbone
        self.transductive = batch_norm == "transductive"
        self.embeds = not self.transductive
        self.normalize_separately = normalize_separately
        self.train_ways, self.train_shots, self.train_queries = train_ways, train_shots, train_queries

    def train_task(self, task: Task) -> Task:
        """The tested task with the training ways, shots and queries."""
        return task.with_sizes(self.train_ways, self.train_shots, self.train_queries)

    def loss(self, episodes: Episodes) -> Step:
        """`query_loss` of the queries; updates the running averages of batch normalisation."""
        logits = self.query_logits(episodes, "tracked_batch")
        return Step(self.query_loss(logits, episodes.query), logits.detach(), self.learned())

    def query_loss(self, logits: Tensor, query: Examples) -> Tensor:
        """Mean loss of query logits ``[T, N*Q, N]``; here the cross-entropy."""
        return cross_entropy(logits, query.y, query.mask).mean()

    def learned(self) -> dict[str, Tensor]:
        """Further metrics to log, by name, such as learned numbers; here none."""
        return {}

    @torch.no_grad()
    def predict(self, episodes: Episodes) -> Tensor:
        """Query logits ``[T, N*Q, N]``."""
        return self.query_logits(episodes, "batch" if self.transductive else "running")

    def embed(self, images: Tensor) -> Tensor:
        """Embeddings ``[B, ...]``, normalised by the running averages."""
        with statistics_from(self.backbone, "running"):
            return self.backbone(images)

    def query_logits(self, episodes: Episodes, source: Source) -> Tensor:
        """Query logits ``[T, N*Q, N]``; ``source``: the statistics of batch normalisation."""
        with statistics_from(self, source):
            return self.compare(episodes, *self.embed_episodes(episodes))

    def embed_episodes(self, episodes: Episodes) -> tuple[Tensor, Tensor]:
        """Support ``[T, N*K, ...]`` and query embeddings ``[T, N*Q, ...]``, one episode after the other."""
        if self.normalize_separately:
            return each_alone(self.backbone, episodes.support), each_alone(self.backbone, episodes.query)
        both, shots = episodes.support.followed_by(episodes.query), episodes.support.x.shape[1]
        embedded = each_alone(self.backbone, both)
        return embedded[:, :shots], embedded[:, shots:]

    def compare(self, episodes: Episodes, support: Tensor, query: Tensor) -> Tensor:
        """Query logits ``[T, N*Q, N]`` from the embeddings of the episodes' images; here: `classify`."""
        return self.classify(episodes.with_embeddings(support, query))


def each_alone(net: Callable[[Tensor], Tensor], examples: Examples) -> Tensor:
    """Apply a network to the examples of each episode separately: ``[T, B, ...]``, zeros in the masked rows."""
    if examples.mask is None:
        return torch.stack([net(x) for x in examples.x])
    return torch.stack([spread(net(x[mask]), mask) for x, mask in zip(examples.x, examples.mask, strict=True)])
