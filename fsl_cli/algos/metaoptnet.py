"""MetaOptNet: a linear support vector machine on a learned embedding (Lee, Maji, Ravichandran & Soatto 2019).

A multi-class support vector machine (Crammer & Singer 2001) without offsets is fitted to the support embeddings x_i with
labels y_i (eq. 4),

    min_w  1/2 sum_k |w_k|^2 + C sum_i xi_i     such that  w_{y_i} x_i - w_k x_i >= 1 - [k = y_i] - xi_i  for all k,

through its dual (eq. 10), and a query embedding x has the logits gamma w_k x with a learned scale gamma (eq. 12). The
smoothed cross-entropy of the queries is differentiated through the solution by the implicit function theorem: with a
``label_smoothing`` of e the target is 1 - e for the right class and e / (N-1) for each other class. The network and gamma
are meta-learned.

The paper trains with more shots than it tests (15 on miniImageNet with ResNet-12, 5 with four layers), 5 ways and 6
queries: ``algo.train_ways=5 algo.train_shots=14 algo.train_queries=6``, since Omniglot has 20 images per class. The default
has the tested shots and more ways instead.

Batch normalisation: while training by the images of the episode. In tests ``inductive`` normalises by the running averages
of training (``model.eval()`` there), ``transductive`` by the images of the episode.

Deviations: the dual is solved by the interior-point method of `fsl_cli.algos.common.crammer_singer` in double precision,
not by qpth, and until convergence, where the paper stops after three iterations; ``ridge`` on the diagonal of the kernel
makes it strictly convex; the paper's problem has none, the authors' code adds 1 (``algo.ridge=1``). Gamma starts at 10,
theirs at 1. The network is the configured backbone without DropBlock, images are augmented only in the experiments,
the optimizer is Adam and schedules are shorter.

Logged: ``loss`` and ``accuracy`` on the queries of the training episodes, which have ``train_ways`` ways; ``scale``, gamma.

Measured on Omniglot, 5-way 1-shot, after ten minutes on one CPU core (2,641 iterations): 96.71 ± 0.29 % (inductive; 95% t
interval over 1,000 test episodes). ``scripts/leaderboard.sh --jobs 2 methods=metaoptnet``

    fsl train algo=metaoptnet dataset=omniglot
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn
from typing_extensions import Unpack

from fsl_cli.algos.common.crammer_singer import dual_variables
from fsl_cli.algos.common.embedding_learner import EmbeddingLearner, EmbeddingOptions
from fsl_cli.algos.common.full_precision import full_precision
from fsl_cli.episodes import Episodes, Examples
from fsl_cli.settings.sizes import Ways


class MetaOptNet(EmbeddingLearner):
    """Meta-learns an embedding in which a support vector machine classifies the queries.

    Args:
        backbone: images ``[B, C, H, W]`` to embeddings ``[B, D]``.
        penalty: C, > 0.
        ridge: added to the diagonal of the kernel matrix, > 0.
        init_scale: initial value of gamma, > 0.
        label_smoothing: e, in 0..1, less than 1.
        train_ways: ways of a training episode, >= 2, a number or a range; None: as in the tested task.
        options: see `EmbeddingOptions`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        penalty: Annotated[float, Gt(0)] = 0.1,
        ridge: Annotated[float, Gt(0)] = 0.001,
        init_scale: Annotated[float, Gt(0)] = 10.0,
        label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.1,
        train_ways: Ways | None = 16,
        **options: Unpack[EmbeddingOptions],
    ) -> None:
        super().__init__(backbone, train_ways, **options)
        self.masks = False  # every row is a constraint of the support vector machine
        self.penalty, self.ridge, self.label_smoothing = penalty, ridge, label_smoothing
        self.scale = nn.Parameter(torch.tensor(float(init_scale)))

    def query_loss(self, logits: Tensor, query: Examples) -> Tensor:
        """Cross-entropy with the target 1 - e for the right class and e / (N-1) for each other class."""
        log_p = logits.log_softmax(-1)
        right = log_p.gather(-1, query.y.unsqueeze(-1)).squeeze(-1)
        e = self.label_smoothing
        return -((1 - e) * right + e / (logits.shape[-1] - 1) * (log_p.sum(-1) - right)).mean()

    def learned(self) -> dict[str, Tensor]:
        """``scale``, gamma."""
        return {"scale": self.scale.detach()}

    def classify(self, episodes: Episodes) -> Tensor:
        """``gamma w_k x`` (eq. 12)."""
        with full_precision(episodes.support.x, episodes.query.x) as (support, query):
            kernel = support @ support.mT
            kernel = kernel + self.ridge * torch.eye(kernel.shape[-1], dtype=kernel.dtype, device=kernel.device)
            weights = dual_variables(kernel, episodes.support.y, episodes.ways, self.penalty).mT @ support
            return self.scale * (query @ weights.mT)
