"""Baseline: pre-train, then fit a linear classifier (Chen et al. 2019, "A closer look at few-shot classification").

The network is trained to classify images into all classes of the training split, with a linear head and cross-entropy
(`fsl_cli.algos.common.pretraining`). In a test the network is frozen, and a new linear classifier W, b is fitted to the
support features of each task by gradient descent with momentum on the cross-entropy,

    min_(W,b)  mean_i CE(W f(x_i) + b, y_i)                      a query has the logits W f(x) + b

in ``test_epochs`` passes over the support set, in random order, by mini-batches of ``test_batch`` images: 200 steps for five
images, 700 for 25. A step is v <- momentum v + (1 - dampening) (g + decay theta), theta <- theta - lr v, where g is the
gradient. As in PyTorch, dampening applies neither in the first step nor without momentum. The order of the images depends on
the episode alone.

Batch normalisation: while training by the mini-batch, in tests by the running averages.

Deviations: the classifier starts at zero, theirs at random values. Mini-batches of training contain two images of each of
``train_ways`` classes; theirs are 16 images drawn from all of them. Pre-training uses SGD with Nesterov momentum and a cosine
schedule, theirs Adam. Images are augmented only on request (``train.augment``). Schedules are shorter.

Logged: ``loss`` and ``accuracy`` over all classes of the training split.

Measured on Omniglot, 5-way 1-shot, after ten minutes on one CPU core (12,107 iterations): 94.61 ± 0.35 % (inductive; 95% t
interval over 1,000 test episodes).
``scripts/leaderboard.sh --jobs 2 methods=baseline``

    fsl train algo=baseline dataset=omniglot
"""

from __future__ import annotations

from torch import Tensor, nn
from typing_extensions import Unpack

from fsl_cli.algos.common.fitting import FittedHead, FittingOptions
from fsl_cli.algos.common.pretraining import LinearHead
from fsl_cli.inner.update_rules import Parameters


class Baseline(FittedHead):
    """Classifies by a linear classifier fitted to pre-trained features.

    Args:
        backbone: images ``[B, C, H, W]`` to features ``[B, features]``.
        features: width of the backbone's output.
        classes: of the training split.
        options: see `FittingOptions`.
    """

    def __init__(self, backbone: nn.Module, features: int, classes: int, **options: Unpack[FittingOptions]) -> None:
        super().__init__(backbone, LinearHead(features, classes), **options)

    def new_head(self, support: Tensor, ways: int, mask: Tensor | None) -> Parameters:
        """Zeros."""
        tasks, _, width = support.shape
        return {"weight": support.new_zeros(tasks, ways, width), "bias": support.new_zeros(tasks, ways)}

    def logits(self, head: Parameters, features: Tensor) -> Tensor:
        """``W x + b``: ``weight [T, N, D]``, ``bias [T, N]`` and features ``[T, B, D]`` to ``[T, B, N]``."""
        return features @ head["weight"].mT + head["bias"].unsqueeze(1)
