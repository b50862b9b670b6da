"""R2D2: meta-learning with differentiable ridge regression (Bertinetto, Henriques, Torr & Vedaldi 2019).

The support embeddings X ``[N*K, D]`` are regressed onto the one-hot labels Y ``[N*K, N]`` in closed form (eq. 4), by
Woodbury's identity with a system of N*K equations instead of D (eq. 5):

    W = (X^T X + lambda I)^-1 X^T Y = X^T (X X^T + lambda I)^-1 Y

A query embedding x has the logits alpha x W (eq. 6). The cross-entropy of the queries is differentiated through the
solution. The network, lambda and alpha are meta-learned; the logarithms of lambda and alpha are the parameters, so both stay
positive.

``learn_lambda=false`` keeps lambda at ``init_lambda``. ``lambda_per_image=true`` multiplies lambda by the support images of
an episode, N*K, so that it suits episodes of another size. Without that, the test uses the lambda of the training episodes,
however many ways and shots they have: a lambda of 3,000 (50 for each of 60 images) is far too much for a test with five.
The authors' code has ``learn_lambda=false``, ``lambda_per_image=true`` and ``init_lambda=50``: it divides X and Y by
sqrt(N*K), which is the same.

Batch normalisation: while training by the images of the episode, as in the authors' code. In tests ``inductive``
normalises by the running averages of training (``model.eval()`` there), ``transductive`` by the images of the episode.

Deviations: the offset beta of eq. 6 is left out, because one number added to all logits cancels in the softmax. By default
lambda is learned and does not depend on the size of an episode, and alpha is positive. Their code adds a constant feature. It
draws the shots of a training episode from 1..9 and takes what is left of a class's images as queries, 10 images on Omniglot:
``train_shots=1..9 train_images=10``, with 60 ways, as in the experiments; the default has the shots of the test. Their network
is ``backbone=r2d2net``; the default is the configured backbone. Schedules are shorter.

Logged: ``loss`` and ``accuracy`` on the queries of the training episodes, which have ``train_ways`` ways;
``lambda`` and ``alpha``.

Measured on Omniglot, 5-way 1-shot, after ten minutes on one CPU core (2,616 iterations): 96.95 ± 0.27 % (inductive; 95% t
interval over 1,000 test episodes). The paper, from memory: 98.9 %. ``scripts/leaderboard.sh --jobs 2 methods=r2d2``

    fsl train algo=r2d2 dataset=omniglot
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor, nn
from typing_extensions import Unpack

from fsl_cli.algos.common.embedding_learner import EmbeddingLearner, EmbeddingOptions
from fsl_cli.algos.common.full_precision import full_precision
from fsl_cli.episodes import Episodes, Task
from fsl_cli.errors import FslError
from fsl_cli.settings.sizes import Ways


class R2D2(EmbeddingLearner):
    """Meta-learns an embedding in which ridge regression on the support set classifies the queries.

    Args:
        backbone: images ``[B, C, H, W]`` to embeddings ``[B, D]``.
        init_lambda: initial value of lambda, > 0.
        learn_lambda: true: lambda is meta-learned; false: it stays at ``init_lambda``.
        lambda_per_image: multiply lambda by the number of support images of the episode.
        init_alpha: initial value of alpha, > 0.
        train_images: images of a class in a training episode: the queries are what the shots leave; more than ``train_shots``.
            None: ``train_queries`` queries.
        train_ways: ways of a training episode, >= 2, a number or a range; None: as in the tested task.
        options: see `EmbeddingOptions`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        init_lambda: Annotated[float, Gt(0)] = 1.0,
        learn_lambda: bool = True,
        lambda_per_image: bool = False,
        init_alpha: Annotated[float, Gt(0)] = 10.0,
        train_images: Annotated[int, Ge(2)] | None = None,
        train_ways: Ways | None = 16,
        **options: Unpack[EmbeddingOptions],
    ) -> None:
        super().__init__(backbone, train_ways, **options)
        self.log_lambda = nn.Parameter(torch.tensor(math.log(init_lambda)), requires_grad=learn_lambda)
        self.lambda_per_image = lambda_per_image
        self.log_alpha = nn.Parameter(torch.tensor(math.log(init_alpha)))
        self.train_images = train_images

    def train_task(self, task: Task) -> Task:
        """The tested task with the training ways and shots, and the queries that the images leave."""
        task = super().train_task(task)
        if self.train_images is None or task.shots >= self.train_images:  # refused when it is to be trained
            return task
        return task.with_images(self.train_images)

    def train_problems(self, task: Task) -> list[FslError]:
        """As many shots as images."""
        if self.train_images is None or task.shots < self.train_images:
            return []
        what = f"{task.sizes['shots']} shots of {self.train_images} images of a class leave no query"
        return [FslError(what, where="algo.train_images", hint=f"use at least {task.shots + 1}, or fewer algo.train_shots")]

    def learned(self) -> dict[str, Tensor]:
        """``lambda`` and ``alpha``."""
        return {"lambda": self.log_lambda.detach().exp(), "alpha": self.log_alpha.detach().exp()}

    def classify(self, episodes: Episodes) -> Tensor:
        """``alpha x W`` (eq. 6)."""
        with full_precision(episodes.support.x, episodes.query.x) as (support, query):
            targets = F.one_hot(episodes.support.y, episodes.ways).to(support.dtype)
            penalty = self.log_lambda.exp().to(support.dtype)
            if self.lambda_per_image:
                penalty = penalty * episodes.support.real.sum(1)[:, None, None]
            if episodes.support.mask is not None:  # rows of zeros take no part in the regression
                support, targets = (each * episodes.support.mask.unsqueeze(-1) for each in (support, targets))
            return self.log_alpha.exp() * (query @ ridge_regression(support, targets, penalty))


def ridge_regression(inputs: Tensor, targets: Tensor, penalty: Tensor | float) -> Tensor:
    """Weights W that minimise ``|X W - Y|^2 + lambda |W|^2``, by Woodbury's identity (eq. 5).

    Args:
        inputs: X, ``[..., B, D]``.
        targets: Y, ``[..., B, N]``.
        penalty: lambda, > 0, a number or ``[..., 1, 1]``.

    Returns:
        ``[..., D, N]``, differentiable.
    """
    gram = inputs @ inputs.mT
    factor = torch.linalg.cholesky(gram + penalty * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device))
    return inputs.mT @ torch.cholesky_solve(targets, factor)
