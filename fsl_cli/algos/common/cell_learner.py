"""Recurrent networks with a memory that read an episode image by image (Santoro et al. 2016, section 2).

At time t the network sees the image x_t and the label of the previous image, y_(t-1), and outputs logits for x_t. So it has
to store an image together with the label that arrives one step later, and to find both when an image of the same class
follows. To make this easier it also sees the previous image again, next to its label: (x_t, x_(t-1), y_(t-1)). The papers
do not have that.

In an episode the query comes with the label of the last support image. The state after the support set is computed once, and
every query continues from a copy of it. In a sequence of all images of an episode every image is a query first and a support
image afterwards.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack

from fsl_cli.algos.common.algorithm import Step, exact_scores
from fsl_cli.algos.common.sequences import Labelled, SequenceLearner, SequenceOptions, one_hot
from fsl_cli.episodes import Episodes, Task
from fsl_cli.episodes.randomness import permutations
from fsl_cli.statistics.classification import accuracy, cross_entropy

LossOver = Literal["sequence", "episode", "both"]
State = tuple[Tensor, ...]  # each ``[B, ...]``

INSTANCES = 10  # images per class in the sequences whose accuracy is reported, as in Santoro et al. 2016, table 1


class CellOptions(SequenceOptions, total=False):
    """`SequenceOptions`, and that of networks that read images one after the other.

    Args:
        training: what the loss is computed over: ``sequence``: every step of all images of an episode in random order;
            ``episode``: the queries after the support set; ``both`` (default): the mean of the two.
    """

    training: LossOver


class Cell(nn.Module, ABC):
    """One step of a network with a memory."""

    @abstractmethod
    def start(self, count: int) -> State:
        """State ``[count, ...]`` before the first step."""

    @abstractmethod
    def forward(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """From inputs ``[B, I]`` and the state before the step: logits ``[B, ways]`` and the state after it."""


class CellLearner(SequenceLearner):
    """Meta-learns a backbone and a cell that together learn from a sequence; see the module's docstring.

    Args:
        backbone: images ``[B, C, H, W]`` to features ``[B, D]``.
        features: D.
        ways: of the trained task, the width of a label; tests may have fewer.
        cell: takes the features of an image, of the previous image and its label, ``2 D + ways``; outputs ``ways`` logits.
        training: see `CellOptions`.
        options: see `SequenceOptions`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        features: int,
        ways: int,
        cell: Cell,
        *,
        training: LossOver = "both",
        **options: Unpack[SequenceOptions],
    ) -> None:
        super().__init__(backbone, features, ways, **options)
        self.cell, self.loss_over = cell, training

    def loss(self, episodes: Episodes) -> Step:
        """Cross-entropy of the queries, of the steps of a sequence, or of both."""
        support, query = self.embedding(episodes)
        losses, metrics = [], {}
        logits, labels = query.features.new_zeros(0), query.labels
        if self.loss_over != "episode":
            images = support.followed_by(query)
            images = images.ordered(permutations(episodes.seeds, images.labels.shape[1], "sequence"))
            logits, labels = self.follow(images), images.labels
            losses.append(cross_entropy(logits, labels).mean())
            first, second, *_ = by_instance(logits, labels, 2).mean(0)
            metrics = {"accuracy_first": first, "accuracy_second": second}
        if self.loss_over != "sequence":
            logits, labels = self.answer(support, query.features, episodes.seeds), query.labels
            losses.append(cross_entropy(logits, labels).mean())
        return Step(torch.stack(losses).mean(), logits.detach()[..., : episodes.ways], metrics, labels)

    def curve_points(self, task: Task) -> dict[str, Sequence[int]]:
        """``instance``: 1 for the first image of each class in a sequence, 2 for the second, and so on; of even tasks only."""
        return {"instance": range(1, min(INSTANCES, task.shots + task.queries) + 1)} if task.drawing is None else {}

    @torch.no_grad()
    def score(self, episodes: Episodes, *, curves: bool = False) -> dict[str, Tensor]:
        """With ``curves`` also the accuracy on the 1st, 2nd, ... image of a class, in a sequence of each class's first ones."""
        if not curves:
            return super().score(episodes)
        support, query = self.embedding(episodes)
        answers = self.answer(support, query.features, episodes.seeds)[..., : episodes.ways]
        images = support.followed_by(query)
        points = min(INSTANCES, images.labels.shape[1] // episodes.ways)
        used = (instances(images.labels) <= points).nonzero()[:, 1].view(len(episodes), -1)
        images = images.ordered(used.gather(1, permutations(episodes.seeds, used.shape[1], "sequence")))
        logits = self.follow(images)[..., : episodes.ways].cpu().double()
        return {**exact_scores(episodes, answers), "instance": by_instance(logits, images.labels.cpu(), points)}

    def follow(self, images: Labelled) -> Tensor:
        """Logits ``[T, S, ways]`` at every step of a sequence, each before its label is seen."""
        state, logits = self.cell.start(len(images.labels)), []
        for inputs in self._inputs(images).unbind(1):
            output, state = self.cell(inputs, state)
            logits.append(output)
        return torch.stack(logits, 1)

    def answer(self, support: Labelled, query: Tensor, seeds: Tensor) -> Tensor:
        """See `SequenceLearner`."""
        support = support.ordered(permutations(seeds, support.labels.shape[1], "support"))
        state = self.cell.start(len(support.labels))
        for inputs in self._inputs(support).unbind(1):
            _, state = self.cell(inputs, state)
        branches = tuple(each.repeat_interleave(query.shape[1], 0) for each in state)
        before = torch.cat([support.features[:, -1:], one_hot(support.labels[:, -1:], self.ways, query.dtype)], -1)
        inputs = torch.cat([query, before.expand(-1, query.shape[1], -1)], -1)
        logits, _ = self.cell(inputs.flatten(0, 1), branches)
        return logits.view(*query.shape[:2], -1)

    def _inputs(self, images: Labelled) -> Tensor:
        """``[T, S, D + D + ways]``: at each step the image, the previous image and its label; zeros before the first."""
        before = torch.cat([images.features, one_hot(images.labels, self.ways, images.features.dtype)], -1)
        return torch.cat([images.features, F.pad(before[:, :-1], (0, 0, 1, 0))], -1)


def instances(labels: Tensor) -> Tensor:
    """The position of each image among the images of its class, from 1; labels int64 ``[T, S]`` to the same shape."""
    same = labels.unsqueeze(1) == labels.unsqueeze(2)
    return same.tril().sum(-1)


def by_instance(logits: Tensor, labels: Tensor, points: int) -> Tensor:
    """Accuracy ``[T, points]`` on the 1st, 2nd, ... image of each label; logits ``[T, S, N]``, labels int64 ``[T, S]``."""
    number = instances(labels)
    return torch.stack([accuracy(logits, labels, number == point) for point in range(1, points + 1)], 1).detach()
