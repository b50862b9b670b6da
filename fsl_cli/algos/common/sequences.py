"""Few-shot learning as a sequence: images one after the other, each label one step late (Santoro et al. 2016, section 2).

At time t the network sees the image x_t and the label of the image before, y_(t-1), and says what it takes x_t for. So it
has to bind an image to the label that arrives a step later, and find both again when an image of the same class comes
along. To bind them it sees the image before again, with its label: (x_t, x_(t-1), y_(t-1)), which the papers do not have.

In an episode the sequence is the support set in random order, then one query, which comes with the label of the last
support image. The state after the support set is computed once, and every query goes on from a copy of it: no query
sees another, except through transductive batch normalisation. In a sequence of all images of an episode every image is
a query first and support afterwards.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsl_cli.algos.common.algorithm import Algorithm, BatchNormMode, Step, exact_scores
from fsl_cli.backbones.batch_norm import Source, statistics_from
from fsl_cli.episodes import Episodes, Task
from fsl_cli.episodes.randomness import permutations
from fsl_cli.errors import FslError
from fsl_cli.statistics.classification import cross_entropy

Training = Literal["sequence", "episode", "both"]
State = tuple[Tensor, ...]  # each ``[B, ...]``

INSTANCES = 10  # of a class in a sequence whose accuracy is reported, as in Santoro et al. 2016, table 1


class Cell(nn.Module, ABC):
    """One step of a network with a memory."""

    @abstractmethod
    def start(self, count: int) -> State:
        """State ``[count, ...]`` before the first step."""

    @abstractmethod
    def forward(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """From inputs ``[B, I]`` and the state before: what it says ``[B, ways]`` and the state after."""


class Labelled(NamedTuple):
    """Images in the order in which they are seen: features ``[T, S, D]`` and labels, int64 ``[T, S]``."""

    features: Tensor
    labels: Tensor

    def followed_by(self, other: Labelled) -> Labelled:
        """These images, then others."""
        return Labelled(torch.cat([self.features, other.features], 1), torch.cat([self.labels, other.labels], 1))

    def ordered(self, order: Tensor) -> Labelled:
        """With positions, int64 ``[T, S]``, in the order in which they are to be seen."""
        features = self.features.gather(1, order.unsqueeze(-1).expand(-1, -1, self.features.shape[-1]))
        return Labelled(features, self.labels.gather(1, order))


class SequenceLearner(Algorithm):
    """Meta-learns a backbone and a cell that together learn from a sequence; see above.

    Args:
        backbone: images ``[B, C, H, W]`` to features ``[B, D]``.
        cell: its inputs are features of an image, of the image before and its label, ``2 D + ways``; outputs ``ways`` logits.
        ways: of the trained task, the width of a label.
        training: ``sequence``: a loss at every step of all images of an episode in random order; ``episode``: the loss of
            the queries; ``both``: the mean of the two.
        train_queries: query images per class of a training episode; None: as in the tested task.
        batch_norm: see `Embedding`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        features: int,
        cell: Cell,
        ways: int,
        training: Training,
        train_queries: int | None,
        batch_norm: BatchNormMode,
    ) -> None:
        super().__init__()
        self.embedding = Embedding(backbone, features, batch_norm)
        self.transductive = batch_norm == "transductive"
        self.cell = cell
        self.ways, self.form, self.train_queries = ways, training, train_queries

    def train_task(self, task: Task) -> Task:
        """The tested task with the training queries."""
        return Task(task.ways, task.shots, self.train_queries or task.queries)

    def task_problems(self, task: Task) -> list[FslError]:
        """More ways than a label is wide."""
        return too_many_ways(task, self.ways)

    def loss(self, episodes: Episodes) -> Step:
        """Cross-entropy of the queries, of the steps of a sequence, or of both."""
        support, query = self.embedding(episodes)
        losses, metrics = [], {}
        logits, labels = query.features.new_zeros(0), query.labels
        if self.form != "episode":
            images = support.followed_by(query)
            images = images.ordered(permutations(episodes.seeds, images.labels.shape[1], "sequence"))
            logits, labels = self.follow(images), images.labels
            losses.append(cross_entropy(logits, labels).mean())
            first, second, *_ = by_instance(logits, labels, 2).mean(0)
            metrics = {"accuracy_first": first, "accuracy_second": second}
        if self.form != "sequence":
            logits, labels = self.answer(support, query.features, episodes.seeds), query.labels
            losses.append(cross_entropy(logits, labels).mean())
        return Step(torch.stack(losses).mean(), logits.detach()[..., : episodes.ways], metrics, labels)

    @torch.no_grad()
    def predict(self, episodes: Episodes) -> Tensor:
        """Query logits ``[T, N*Q, N]``, of at most as many ways as were trained."""
        support, query = self.embedding(episodes)
        return self.answer(support, query.features, episodes.seeds)[..., : episodes.ways]

    def curve_points(self, task: Task) -> dict[str, Sequence[int]]:
        """The how-manieth image of its class an image of a sequence is."""
        return {"instance": range(1, min(INSTANCES, task.shots + task.queries) + 1)}

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
        """Logits ``[T, Q, ways]`` of queries ``[T, Q, D]``, each of which follows on the support set in random order."""
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
        """``[T, S, D + D + ways]``: at each step the image, the image before and its label; zeros before the first."""
        before = torch.cat([images.features, one_hot(images.labels, self.ways, images.features.dtype)], -1)
        return torch.cat([images.features, F.pad(before[:, :-1], (0, 0, 1, 0))], -1)


class Embedding(nn.Module):
    """A backbone whose features come at the scale of a label, each episode normalised by its own images.

    Training and tests do the same.

    Args:
        backbone: images ``[B, C, H, W]`` to features ``[B, D]``.
        features: D.
        batch_norm: ``inductive``: by the support images; ``transductive``: by all images of the episode.
    """

    def __init__(self, backbone: nn.Module, features: int, batch_norm: BatchNormMode) -> None:
        super().__init__()
        self.backbone, self.norm = backbone, nn.LayerNorm(features)
        self.source: Source = "batch" if batch_norm == "transductive" else "first_rows"

    def forward(self, episodes: Episodes) -> tuple[Labelled, Labelled]:
        """Support and query images of the episodes."""
        images, shots = torch.cat([episodes.support.x, episodes.query.x], 1), episodes.support.x.shape[1]
        with statistics_from(self.backbone, self.source, shots):
            both = self.norm(torch.stack([self.backbone(each) for each in images]))
        return Labelled(both[:, :shots], episodes.support.y), Labelled(both[:, shots:], episodes.query.y)


def one_hot(labels: Tensor, ways: int, dtype: torch.dtype) -> Tensor:
    """Labels, int64 ``[...]``, as ``[..., ways]``."""
    return F.one_hot(labels, ways).to(dtype)


def instances(labels: Tensor) -> Tensor:
    """The how-manieth of its label each is, from 1: int64 ``[T, S]`` to the same."""
    same = labels.unsqueeze(1) == labels.unsqueeze(2)
    return same.tril().sum(-1)


def by_instance(logits: Tensor, labels: Tensor, points: int) -> Tensor:
    """Accuracy ``[T, points]`` on the 1st, 2nd, ... image of each label; logits ``[T, S, N]``, labels int64 ``[T, S]``."""
    number = instances(labels)
    right = (logits.argmax(-1) == labels).to(logits.dtype)
    chosen = [(number == point).to(logits.dtype) for point in range(1, points + 1)]
    return torch.stack([(right * each).sum(1) / each.sum(1) for each in chosen], 1).detach()


def too_many_ways(task: Task, ways: int) -> list[FslError]:
    """What keeps a network whose labels have a width from being tested on ``task``: more ways than that."""
    if task.ways <= ways:
        return []
    return [
        FslError(
            f"{task.ways} ways, but the network has inputs and outputs for {ways} labels",
            where="task.ways",
            hint=f"test with at most {ways} ways, or train with task.ways={task.ways}",
        )
    ]
