"""SimpleShot: nearest centroid on transformed features of a pre-trained network (Wang, Chao, Weinberger & van der Maaten 2019).

The network is trained to classify images into all classes of the training split (`fsl_cli.algos.common.pretraining`). In a
test, features are transformed, z = t(f(x)), a class is represented by the mean of its support features (section 2), and a
query is assigned to the nearest mean in squared Euclidean distance:

    c_n = mean_k z_nk,    logits_n = -|z - c_n|^2

``transform``: ``un`` leaves features as they are; ``l2n`` divides each by its length; ``cl2n`` first subtracts the mean
feature of the training split, then divides by the length.

Batch normalisation: while training by the mini-batch, in tests by the running averages.

Deviations: the mean feature is a running average over the mini-batches of training, with the momentum of batch
normalisation, instead of a pass over the training split at its end. The logits are distances without a temperature, so the
test loss says little about ``l2n`` and ``cl2n``, whose distances are at most 4. Mini-batches contain two images of each of
``train_ways`` classes, and images are augmented only on request (``train.augment``). Schedules are shorter.

Logged: ``loss`` and ``accuracy`` over all classes of the training split.

Measured on Omniglot, 5-way 1-shot, after ten minutes on one CPU core (8,118 iterations): 95.09 ± 0.34 % (inductive; 95% t
interval over 1,000 test episodes). ``scripts/leaderboard.sh --jobs 2 methods=simpleshot``

    fsl train algo=simpleshot dataset=omniglot
"""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge
from torch import Tensor, nn

from fsl_cli.algos.common.prototypes import class_means, squared_euclidean
from fsl_cli.algos.common.transformed_features import Transform, TransformedFeatures
from fsl_cli.episodes import Episodes


class SimpleShot(TransformedFeatures):
    """Classifies by the nearest centroid of pre-trained features.

    Args:
        backbone: images ``[B, C, H, W]`` to features ``[B, features]``.
        features: width of the backbone's output.
        classes: of the training split.
        transform: ``un``, ``l2n`` or ``cl2n``, see the module's docstring.
        train_ways: classes of a training mini-batch, two images each, >= 2.
    """

    def __init__(
        self,
        backbone: nn.Module,
        features: int,
        classes: int,
        *,
        transform: Transform = "cl2n",
        train_ways: Annotated[int, Ge(2)] = 64,
    ) -> None:
        super().__init__(backbone, features, classes, transform, train_ways)

    def classify(self, episodes: Episodes) -> Tensor:
        """Negative squared distances to the centroids."""
        support, query = self.transformed(episodes.support.x), self.transformed(episodes.query.x)
        return -squared_euclidean(query, class_means(support, episodes.support.y, episodes.ways, episodes.support.mask))
