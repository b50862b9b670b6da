"""What training and evaluation ask of every algorithm."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from fsl_cli.episodes import Episodes, Task
from fsl_cli.errors import FslError

BatchNormMode = Literal["transductive", "inductive"]


@dataclass(frozen=True)
class Step:
    """What one batch of episodes gives the outer loop.

    Attributes:
        loss: scalar, the mean over the episodes of the batch.
        logits: query logits ``[T, N*Q, N]``.
        metrics: further scalars to log, by name.
    """

    loss: Tensor
    logits: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Algorithm(nn.Module, ABC):
    """A few-shot learner: its module state is everything that is meta-learned.

    Attributes:
        transductive: whether the prediction of a query may depend on the other queries of its episode.
    """

    transductive: bool

    def train_task(self, task: Task) -> Task:
        """Shape of the training episodes, given the shape that is tested."""
        return task

    def task_problems(self, task: Task) -> list[FslError]:
        """What keeps this algorithm from being tested on ``task``; empty when nothing does."""
        return []

    @abstractmethod
    def loss(self, episodes: Episodes) -> Step:
        """Outer loss of a batch of training episodes, with a graph to every parameter."""

    @abstractmethod
    def predict(self, episodes: Episodes) -> Tensor:
        """Query logits ``[T, N*Q, N]`` of any number of ways; changes nothing in the algorithm."""
