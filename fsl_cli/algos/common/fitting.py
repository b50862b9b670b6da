"""Fitting a new head to the frozen support features of each task, all tasks at once."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, TypedDict

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from fsl_cli.algos.common.full_precision import full_precision
from fsl_cli.algos.common.pretraining import ClassHead, Pretrained
from fsl_cli.episodes import Episodes, Examples
from fsl_cli.inner.adaptation import autograd_gradient
from fsl_cli.inner.mini_batches import passes
from fsl_cli.inner.update_rules import Momentum, Parameters, UpdateRule, parameters_in
from fsl_cli.statistics.classification import cross_entropy

Logits = Callable[[Parameters, Tensor], Tensor]


class FittingOptions(TypedDict, total=False):
    """Options of methods that pre-train a network and fit a new head to each task.

    Args:
        train_ways: classes of a training mini-batch, two images each, >= 2, default 64.
        test_epochs: passes over the support set that fit the new head, >= 1, default 100.
        test_batch: support images of a gradient step, >= 1, default 4; the last step of a pass has those that are left.
        test_steps: so many steps, each on the whole support set, instead of passes by the mini-batch; None (default): passes.
        test_lr: step size, > 0, default 0.01.
        test_momentum: in 0..1, default 0.9.
        test_dampening: of the momentum, in 0..1, default 0.9.
        test_weight_decay: of the new head, >= 0, default 0.001.
    """

    train_ways: Annotated[int, Ge(2)]
    test_epochs: Annotated[int, Ge(1)]
    test_batch: Annotated[int, Ge(1)]
    test_steps: Annotated[int, Ge(1)] | None
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
        test_epochs: see `FittingOptions`.
        test_batch: see `FittingOptions`.
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
        test_epochs: int = 100,
        test_batch: int = 4,
        test_steps: int | None = None,
        test_lr: float = 0.01,
        test_momentum: float = 0.9,
        test_dampening: float = 0.9,
        test_weight_decay: float = 0.001,
    ) -> None:
        super().__init__(backbone, head, train_ways)
        self.test_epochs, self.test_batch, self.test_steps, self.test_lr = test_epochs, test_batch, test_steps, test_lr
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
            start = self.new_head(support, episodes.ways, episodes.support.mask)
            batches = self.batches(episodes.with_embeddings(support.detach(), query))
            return self.logits(fitted(self.logits, start, batches, self.rule, self.test_lr), query)

    def batches(self, episodes: Episodes) -> Iterator[Examples]:
        """The support features of each step."""
        support = episodes.support
        if self.test_steps is not None:
            yield from [support] * self.test_steps
            return
        rows, real = passes(episodes.seeds, support.real, self.test_batch, self.test_epochs)
        for step in range(rows.shape[1]):
            yield Examples(*_at(rows[:, step], support), real[:, step])


def fitted(logits: Logits, start: Parameters, batches: Iterable[Examples], rule: UpdateRule, lr: float) -> Parameters:
    """Gradient descent on the cross-entropy of each task's own images.

    Args:
        logits: parameters and features to logits ``[T, B, N]``, each task's from its own.
        start: parameters before the first step, ``[T, ...]`` each.
        batches: features ``[T, B, D]`` and labels of each step. A task without any takes no step; all have some in the first.
        rule: how a step uses a gradient.
        lr: step size, > 0.

    Returns:
        The parameters after the last step; their gradients are constants.
    """
    state, sizes = rule.begin(start), dict.fromkeys(start, lr)
    for number, batch in enumerate(batches):
        takes_step = batch.real.any(1)
        every = bool(takes_step.all())
        mask = batch.mask if every else batch.real | ~takes_step.unsqueeze(1)

        def loss(parameters: Parameters, batch: Examples = batch, mask: Tensor | None = mask) -> Tensor:
            return cross_entropy(logits(parameters, batch.x), batch.y, mask).sum()  # of independent tasks

        gradient = autograd_gradient(loss, parameters_in(state), first_order=True)
        after = rule.step(state, gradient, sizes, number)
        state = after if every else {name: _where(takes_step, new, state[name]) for name, new in after.items()}
    return parameters_in(state)


def _at(rows: Tensor, support: Examples) -> tuple[Tensor, Tensor]:
    """Features ``[T, B, D]`` and labels ``[T, B]`` of rows ``[T, B]``."""
    return support.x.gather(1, rows.unsqueeze(2).expand(-1, -1, support.x.shape[2])), support.y.gather(1, rows)


def _where(tasks: Tensor, one: Tensor, other: Tensor) -> Tensor:
    return torch.where(tasks.view(-1, *[1] * (one.ndim - 1)), one, other)
