"""Prototypical networks (Snell, Swersky & Zemel 2017).

A class is represented by its prototype, the mean of its embedded support images (eq. 1), c_n = mean_k f(x_nk). A query is
classified by a softmax over negative distances to the prototypes (eq. 2), p(y = n | x) = softmax_n(-d(f(x), c_n)). Training
minimises the cross-entropy of the queries. Training with more ways than the test has improves results (section 2.6), hence
``train_ways``.

``distance=sqeuclidean`` is the squared Euclidean distance of the paper; ``cosine`` is 1 - cosine similarity, which the
paper finds worse: its logits lie between -2 and 0, so set ``scale`` to about 10 with it.

Batch normalisation: while training by the images of the episode, as in the authors' code. In tests ``inductive``
normalises by the running averages of training (``model.eval()`` there), ``transductive`` by the images of the episode.
``normalize_separately`` normalises support and queries as two sets, as the prototypical networks in the code of IMP do.

Deviations from the paper: training uses the 4,112 classes of the training split, while the paper's final models also use
the 688 of validation. Unless an experiment file sets the paper's values, the network is conv4 with strides and a mean over
positions instead of max-pooling, and the schedule is shorter.

Logged: ``loss`` and ``accuracy`` on the queries of the training episodes, which have ``train_ways`` ways.

Measured on Omniglot, 5-way 1-shot, after ten minutes on one CPU core (3,205 iterations): 97.62 ± 0.24 % (inductive; 95% t
interval over 1,000 test episodes). The paper: 98.8 %. ``scripts/leaderboard.sh --jobs 2 methods=protonet``

    fsl train algo=protonet dataset=omniglot
"""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Gt
from torch import Tensor, nn
from typing_extensions import Unpack

from fsl_cli.algos.common.embedding_learner import EmbeddingLearner, EmbeddingOptions
from fsl_cli.algos.common.prototypes import class_means, cosine_distance, squared_euclidean
from fsl_cli.episodes import Episodes
from fsl_cli.settings.sizes import Ways

Distance = Literal["sqeuclidean", "cosine"]


class ProtoNet(EmbeddingLearner):
    """Meta-learns an embedding in which the images of a class lie around their mean.

    Args:
        backbone: images ``[B, C, H, W]`` to embeddings ``[B, D]``.
        distance: ``sqeuclidean`` or ``cosine``, see the module's docstring.
        scale: factor of the logits, > 0.
        train_ways: ways of a training episode, >= 2, a number or a range; None: as in the tested task.
        normalize_separately: in batch normalisation by the episode, normalise support and query images apart from each other.
        options: see `EmbeddingOptions`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        distance: Distance = "sqeuclidean",
        scale: Annotated[float, Gt(0)] = 1.0,
        train_ways: Ways | None = 60,
        normalize_separately: bool = False,
        **options: Unpack[EmbeddingOptions],
    ) -> None:
        super().__init__(backbone, train_ways, normalize_separately=normalize_separately, **options)
        self.distance, self.scale = distance, scale

    def classify(self, episodes: Episodes) -> Tensor:
        """Scaled negative distances of the queries to the prototypes."""
        support = episodes.support
        means = class_means(support.x, support.y, episodes.ways, support.mask)
        return -self.scale * _DISTANCES[self.distance](episodes.query.x, means)


_DISTANCES = {"sqeuclidean": squared_euclidean, "cosine": cosine_distance}
