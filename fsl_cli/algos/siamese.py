"""Siamese networks (Koch, Zemel & Salakhutdinov 2015): same or different class, then the most similar support image.

Two images pass through the same network, and a weighted distance of their embeddings gives the probability that they show
the same class (section 3.1), p = sigmoid(sum_j alpha_j |h1_j - h2_j| + b). Training is verification: the cross-entropy of p
on pairs of the same and pairs of different classes, each group with half of the weight. A query gets the class of the
support image with the highest p (section 4.3); with several shots that is the maximum over the images of each class.

The pairs are those of a training episode: any two of its images, support or query. Weighting the two groups equally gives
the expectation over balanced draws of such pairs, without their variance.

The logit of a class is log p / (1 - p) of its most similar image, the input of the sigmoid, so that large p that are rounded
to 1 are not ties.

Batch normalisation: while training by the images of the episode; in tests ``inductive`` normalises by the running
averages of training, ``transductive`` by the images of the episode.

Deviations from the paper: the pairs as described (the paper draws up to 150,000 pairs once); the offset b, which its
formula does not have; h is the output of the backbone, without the paper's layer of 4,096 sigmoid units; alpha starts at
the same negative number everywhere, so that similar images count as the same class from the start, and b such that p = 1/2
at usual distances; Adam instead of SGD with momenta and decays per layer; no affine distortions; shorter schedules.

Logged: ``loss`` (cross-entropy of the pairs); ``accuracy`` on the queries of the training episodes, which have
``train_ways`` ways; ``verification_accuracy``, of the pairs at p = 1/2, where pairs of the same and of different classes
each have half of the weight.

Measured on Omniglot, 5-way 1-shot, after ten minutes on one CPU core (7,503 iterations): 97.76 ± 0.25 % (inductive; 95% t
interval over 1,000 test episodes). MAML's paper: 97.3 %. ``scripts/leaderboard.sh --jobs 2 methods=siamese``

    fsl train algo=siamese dataset=omniglot
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack

from fsl_cli.algos.common.algorithm import Step
from fsl_cli.algos.common.embedding_learner import EmbeddingLearner, EmbeddingOptions
from fsl_cli.algos.common.full_precision import full_precision
from fsl_cli.algos.common.prototypes import of_each_class
from fsl_cli.backbones.batch_norm import statistics_from
from fsl_cli.episodes import Episodes
from fsl_cli.settings.sizes import Ways

_START = 30.0  # initial decrease of the log odds for a mean absolute difference of 1
_USUAL_DIFFERENCE = 0.3  # mean absolute difference of conv4's untrained features: there p is 1/2 at the start


class Siamese(EmbeddingLearner):
    """Meta-learns an embedding and a weighted distance that tells images of the same class from others.

    Args:
        backbone: images ``[B, C, H, W]`` to embeddings ``[B, features]``.
        features: width of the backbone's output.
        train_ways: ways of a training episode, >= 2, a number or a range; None: as in the tested task.
        options: see `EmbeddingOptions`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        features: int,
        *,
        train_ways: Ways | None = 20,
        **options: Unpack[EmbeddingOptions],
    ) -> None:
        super().__init__(backbone, train_ways, **options)
        self.alpha = nn.Parameter(torch.full((features,), -_START / features))
        self.bias = nn.Parameter(torch.tensor(_START * _USUAL_DIFFERENCE))

    def loss(self, episodes: Episodes) -> Step:
        """Balanced cross-entropy of the pairs; updates the running averages of batch normalisation."""
        with statistics_from(self, "tracked_batch"):
            support, query = self.embed_episodes(episodes)
        shots = support.shape[1]
        images, both = torch.cat([support, query], dim=1), episodes.support.followed_by(episodes.query)
        odds, same = self.log_odds(images, images), both.y.unsqueeze(2) == both.y.unsqueeze(1)
        pairs = ~torch.eye(both.y.shape[1], dtype=torch.bool, device=both.y.device)
        real = both.real.unsqueeze(2) & both.real.unsqueeze(1)
        losses = F.binary_cross_entropy_with_logits(odds, same.to(odds.dtype), reduction="none")
        loss = balanced_mean(losses, same & pairs & real, ~same & real)
        right = balanced_mean(((odds.detach() > 0) == same).to(odds.dtype), same & pairs & real, ~same & real)
        answers = odds.detach()[:, shots:, :shots]
        logits = of_each_class(answers, episodes.support.y, episodes.ways, episodes.support.mask).amax(-1)
        return Step(loss.mean(), logits, {"verification_accuracy": right.mean()})

    def classify(self, episodes: Episodes) -> Tensor:
        """Log odds of the most similar support image of each class."""
        odds = self.log_odds(episodes.support.x, episodes.query.x)
        return of_each_class(odds, episodes.support.y, episodes.ways, episodes.support.mask).amax(-1)

    def log_odds(self, support: Tensor, query: Tensor) -> Tensor:
        """Log p / (1 - p) of every query ``[T, B, D]`` with every support image ``[T, S, D]``: ``[T, B, S]``."""
        with full_precision(support, query) as (support, query):
            return (query.unsqueeze(2) - support.unsqueeze(1)).abs() @ self.alpha + self.bias


def balanced_mean(values: Tensor, same: Tensor, different: Tensor) -> Tensor:
    """Mean over the pairs of each episode, where same and different pairs each have half of the weight.

    Args:
        values: ``[T, B, S]``.
        same: bool ``[T, B, S]``, the pairs of one class, at least one in every episode.
        different: bool ``[T, B, S]``, the other pairs, at least one in every episode.

    Returns:
        ``[T]``.
    """
    of_same, of_different = ((values * kind).sum((1, 2)) / kind.sum((1, 2)) for kind in (same, different))
    return (of_same + of_different) / 2
