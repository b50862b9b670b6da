"""Nearest: a baseline without learning, which shows what the methods in a table add.

A query x is assigned to the nearest class in squared Euclidean distance between features f. Its logits are

    -|f(x) - mean_k f(x_nk)|^2    (``compare=mean``)        -min_k |f(x) - f(x_nk)|^2    (``compare=image``)

that is, minus the distance to the mean of the support features of a class, or to the nearest of them. With ``space=pixels``
the features are the pixels of an image; with ``space=network`` they are the output of the untrained backbone, a random
network.

Batch normalisation (``space=network``): by running averages, which stay at mean 0 and variance 1, so it does nothing. The
statistics of the episode would make the test transductive, those of the training split would have to be learned.

There is no paper to deviate from. ``fsl train`` tests it; training changes nothing, hence one iteration.

Logged: ``loss`` and ``accuracy`` of the queries of a training episode.

Measured on Omniglot, 5-way 1-shot (inductive; 95% t interval over 1,000 test episodes): pixels 44.49 ± 0.57 %, a random
network 49.13 ± 0.64 %. ``scripts/leaderboard.sh
methods=nearest+train.iterations=1,nearest+algo.space=network+train.iterations=1``

    fsl train algo=nearest dataset=omniglot
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from fsl_cli.algos.common.algorithm import Algorithm, Step
from fsl_cli.algos.common.full_precision import full_precision
from fsl_cli.algos.common.prototypes import class_means, class_members
from fsl_cli.backbones.batch_norm import statistics_from
from fsl_cli.episodes import Episodes
from fsl_cli.statistics.classification import cross_entropy

Space = Literal["pixels", "network"]
Compare = Literal["mean", "image"]


class Nearest(Algorithm):
    """Classifies by distances between pixels or between features of an untrained network.

    Args:
        backbone: images ``[B, C, H, W]`` to features ``[B, D]``.
        space: where distances are measured: between ``pixels`` or features of the untrained ``network``.
        compare: with the ``mean`` of each class or with its nearest ``image``.
    """

    masks = uneven = True
    transductive = False
    embeds = True

    def __init__(self, backbone: nn.Module, *, space: Space = "pixels", compare: Compare = "mean") -> None:
        super().__init__()
        self.backbone, self.space, self.compare = backbone, space, compare
        self.compares_inputs = space == "pixels"

    def loss(self, episodes: Episodes) -> Step:
        """Cross-entropy of the queries, which needs no gradient: nothing is learned."""
        logits = self.predict(episodes)
        return Step(cross_entropy(logits, episodes.query.y, episodes.query.mask).mean(), logits)

    @torch.no_grad()
    def predict(self, episodes: Episodes) -> Tensor:
        """Query logits ``[T, N*Q, N]``."""
        return super().predict(episodes)

    def embed(self, images: Tensor) -> Tensor:
        """Pixels or features ``[B, D]``."""
        if self.space == "pixels":
            return images.flatten(1)
        with statistics_from(self.backbone, "running"):
            return self.backbone(images)

    def classify(self, episodes: Episodes) -> Tensor:
        """Minus the squared distance to the mean, or to the nearest image, of each class."""
        support, query = episodes.support, episodes.query.x
        if self.compare == "mean":
            return -_squared_distances(query, class_means(support.x, support.y, episodes.ways, support.mask))
        distances = _squared_distances(query, support.x).unsqueeze(-1)
        members = class_members(support.y, episodes.ways, support.mask)
        return -distances.where(members.unsqueeze(1), torch.inf).amin(2)


def _squared_distances(one: Tensor, other: Tensor) -> Tensor:
    """``[T, B, D]`` and ``[T, M, D]`` to ``[T, B, M]``, without storing the ``[T, B, M, D]`` differences."""
    with full_precision(one, other) as (one, other):
        return torch.cdist(one, other, compute_mode="donot_use_mm_for_euclid_dist").square()
