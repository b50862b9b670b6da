"""Fitting a new head to the frozen support features of each task, all tasks at once."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Annotated, TypedDict

from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from fsl_cli.algos.common.full_precision import full_precision
from fsl_cli.algos.common.pretraining import ClassHead, Pretrained
from fsl_cli.episodes import Episodes, Examples
from fsl_cli.inner.adaptation import adapt, autograd_gradient
from fsl_cli.inner.update_rules import Momentum, Parameters, UpdateRule, parameters_in
from fsl_cli.statistics.classification import cross_entropy

Logits = Callable[[Parameters, Tensor], Tensor]


class FittingOptions(TypedDict, total=False):
    """Options of methods that pre-train a network and fit a new head to each task.

    Args:
        train_ways: classes of a training mini-batch, two images each, >= 2, default 64.
        test_steps: gradient steps of the new head on the support set, >= 1, default 100.
        test_lr: their step size, > 0, default 0.01.
        test_momentum: in 0..1, default 0.9.
        test_dampening: of the momentum, in 0..1, default 0.9.
        test_weight_decay: of the new head, >= 0, default 0.001.
    """

    train_ways: Annotated[int, Ge(2)]
    test_steps: Annotated[int, Ge(1)]
    test_lr: Annotated[float, Gt(0)]
    test_momentum: Annotated[float, Ge(0), Le(1)]
    test_dampening: Annotated[float, Ge(0), Le(1)]
    test_weight_decay: Annotated[float, Ge(0)]


class FittedHead(Pretrained):
    """Classifies by a new head that is fitted to the pre-trained features of each task.

    Args:
        backbone: images ``[B, C, H, W]`` to features ``[B, D]``.
        head: of pre-training.
        train_ways: see `FittingOptions`.
        test_steps: see `FittingOptions`.
        test_lr: see `FittingOptions`.
        test_momentum: see `FittingOptions`.
        test_dampening: see `FittingOptions`.
        test_weight_decay: see `FittingOptions`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: ClassHead,
        *,
        train_ways: int = 64,
        test_steps: int = 100,
        test_lr: float = 0.01,
        test_momentum: float = 0.9,
        test_dampening: float = 0.9,
        test_weight_decay: float = 0.001,
    ) -> None:
        super().__init__(backbone, head, train_ways)
        self.test_steps, self.test_lr = test_steps, test_lr
        self.rule = Momentum(test_weight_decay, test_momentum, test_dampening)

    @abstractmethod
    def new_head(self, support: Tensor, ways: int, mask: Tensor | None) -> Parameters:
        """The head before the first step, ``[T, ...]`` each, from support features ``[T, N*K, D]`` and their mask."""

    @abstractmethod
    def logits(self, head: Parameters, features: Tensor) -> Tensor:
        """Logits ``[T, B, N]`` of features ``[T, B, D]``, each task's from its own head."""

    def classify(self, episodes: Episodes) -> Tensor:
        """Query logits ``[T, N*Q, N]`` after fitting."""
        with full_precision(episodes.support.x, episodes.query.x) as (support, query):
            start, rule = self.new_head(support, episodes.ways, episodes.support.mask), self.rule
            head = fitted(self.logits, start, support, episodes.support, rule=rule, lr=self.test_lr, steps=self.test_steps)
            return self.logits(head, query)


def fitted(
    logits: Logits, start: Parameters, features: Tensor, support: Examples, *, rule: UpdateRule, lr: float, steps: int
) -> Parameters:
    """Full-batch gradient descent on the cross-entropy of each task's own images.

    Args:
        logits: parameters and features to logits ``[T, B, N]``, each task's from its own.
        start: parameters before the first step, ``[T, ...]`` each.
        features: ``[T, B, D]``.
        support: the examples that the features are of.
        rule: how a step uses a gradient.
        lr: step size, > 0.
        steps: how many, >= 0.

    Returns:
        The parameters after the last step; their gradients are constants.
    """

    def loss(parameters: Parameters) -> Tensor:
        return cross_entropy(logits(parameters, features.detach()), support.y, support.mask).sum()  # of independent tasks

    def gradient(parameters: Parameters, step: int) -> Parameters:
        return autograd_gradient(loss, parameters, first_order=True)

    sizes = dict.fromkeys(start, lr)
    return parameters_in(adapt(gradient, rule, rule.begin(start), [sizes], range(steps)))
