"""Logistic regression on the features of a pre-trained network (Tian, Wang, Krishnan, Tenenbaum & Isola 2020).

This is the baseline of "Rethinking few-shot image classification: a good embedding is all you need?". The network is trained
to classify images into all classes of the training split (`fsl_cli.algos.common.pretraining`). In a test the network is frozen,
features are transformed, z = t(f(x)), and a new linear classifier W, b is fitted to the support features of each task
(section 3.2), to the optimum:

    min_(W,b)  1/2 |W|^2 + C sum_i CE(W z_i + b, y_i)            a query has the logits W z + b

which is the objective of scikit-learn's ``LogisticRegression(C=C)``. `fsl_cli.algos.common.logistic_regression` fits many tasks
at once. ``transform``: ``l2n``, as in the authors' code, divides each feature by its length; ``cl2n`` first subtracts the mean
feature of the training split; ``un`` leaves features as they are.

Batch normalisation: while training by the mini-batch, in tests by the running averages.

Deviations: no self-distillation (section 3.3), images are not augmented, and the authors' test makes five augmented copies of
every support image. The mean feature of ``cl2n`` is a running average. Mini-batches contain two images of each of
``train_ways`` classes. With features of unit length and C = 1 the logits are small: accuracies are what they should be, while
probabilities are close to uniform and the test loss is high; ``penalty=10`` or more sharpens them.

Logged: ``loss`` and ``accuracy`` over all classes of the training split.

Measured on Omniglot, 5-way 1-shot, after a quarter of the default iterations: 92.20 ± 0.41 % (inductive; 95% t interval over
1,000 test episodes). ``fsl train algo=logistic dataset=omniglot train.iterations=2000``. The same for ten minutes, as the table
of the README has other methods, which has not been measured: ``scripts/leaderboard.sh --jobs 2 methods=logistic``

    fsl train algo=logistic dataset=omniglot
    fsl eval run=outputs/train/FOLDER algo.penalty=10
"""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt
from torch import Tensor, nn

from fsl_cli.algos.common.logistic_regression import fit
from fsl_cli.algos.common.transformed_features import Transform, TransformedFeatures
from fsl_cli.episodes import Episodes


class Logistic(TransformedFeatures):
    """Classifies by logistic regression on pre-trained features.

    Args:
        backbone: images ``[B, C, H, W]`` to features ``[B, features]``.
        features: width of the backbone's output.
        classes: of the training split.
        penalty: C, the weight of the errors against 1/2 |W|^2, > 0.
        transform: ``un``, ``l2n`` or ``cl2n``, see the module's docstring.
        train_ways: classes of a training mini-batch, two images each, >= 2.
    """

    def __init__(
        self,
        backbone: nn.Module,
        features: int,
        classes: int,
        *,
        penalty: Annotated[float, Gt(0)] = 1.0,
        transform: Transform = "l2n",
        train_ways: Annotated[int, Ge(2)] = 64,
    ) -> None:
        super().__init__(backbone, features, classes, transform, train_ways)
        self.penalty = penalty

    def classify(self, episodes: Episodes) -> Tensor:
        """``W z + b``, fitted to the support features."""
        support, query = self.transformed(episodes.support.x), self.transformed(episodes.query.x)
        weights, offsets = fit(support, episodes.support.y, episodes.ways, self.penalty, episodes.support.mask)
        return query @ weights.mT + offsets.unsqueeze(1)
