"""The interface of every algorithm, as training and evaluation use it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from fsl_cli.episodes import Classification, Episodes, Problem, Task
from fsl_cli.errors import FslError

BatchNormMode = Literal["transductive", "inductive"]


@dataclass(frozen=True)
class Step:
    """The result of one batch of training episodes.

    Attributes:
        loss: scalar, the mean over the episodes of the batch.
        outputs: of the network for the queries, ``[T, B, O]``, detached.
        metrics: further scalars to log, by name.
        targets: of ``outputs``, where they are not the targets of the queries.
        mask: bool, the rows of ``outputs`` that count, used together with ``targets``; None: all.
    """

    loss: Tensor
    outputs: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    targets: Tensor | None = None
    mask: Tensor | None = None


class Algorithm(nn.Module, ABC):
    """A few-shot learner: its module state is everything that is meta-learned.

    Attributes:
        problems: the kinds of problems that it can solve.
        masks: whether it ignores the rows of `Examples` that are masked out. Others get episodes of uneven classes one at a
            time, without padding rows, if they are ``uneven``.
        uneven: whether the classes of an episode may have different numbers of examples.
        transductive: whether the prediction of a query may depend on the other queries of its episode.
        embeds: whether `predict` depends on the images only through `embed` of each single image, as the method below
            does. Evaluation then embeds an image once, however many episodes it occurs in.
        compares_inputs: whether it compares examples as they are, which says nothing where they are numbers of words.
        labels_classes: whether it learns the classes of the training split themselves, from `Episodes.classes`.
    """

    problems: ClassVar[tuple[type[Problem], ...]] = (Classification,)
    masks: bool = False
    uneven: bool = False
    transductive: bool
    embeds: bool = False
    compares_inputs: bool = False
    labels_classes: bool = False

    def train_task(self, task: Task) -> Task:
        """Shape of the training episodes, given the shape of the test episodes."""
        return task

    def task_problems(self, task: Task) -> list[FslError]:
        """Reasons why this algorithm cannot be tested on a classification task of this shape; empty if it can."""
        return []

    def train_problems(self, task: Task) -> list[FslError]:
        """Reasons why this algorithm cannot be trained on classification tasks of this shape; empty if it can."""
        return []

    def example_problems(self, shape: tuple[int, ...]) -> list[FslError]:
        """Reasons why this algorithm cannot work on examples of this shape; empty if it can."""
        return []

    def begin_iteration(self, iteration: int) -> None:
        """Prepare for outer step ``iteration`` (0, 1, ...); called before every step, also after resuming."""

    def clipped_together(self) -> list[list[nn.Parameter]]:
        """The parameters, in groups whose gradients ``train.clip_grad_norm`` clips together; here one group."""
        return [list(self.parameters())]

    @abstractmethod
    def loss(self, episodes: Episodes) -> Step:
        """Outer loss of a batch of training episodes; if it needs no gradient, training changes nothing."""

    @abstractmethod
    def predict(self, episodes: Episodes) -> Tensor:
        """Outputs ``[T, B, O]`` for the queries, such as logits of any number of ways; does not change the algorithm.

        Here: `classify` applied to `embed` of the images.
        """
        support, query = (self.embed(x.flatten(0, 1)).unflatten(0, x.shape[:2]) for x in (episodes.support.x, episodes.query.x))
        return self.classify(episodes.with_embeddings(support, query))

    def curve_points(self, task: Task) -> dict[str, Sequence[int]]:
        """Curves of the headline score that the test reports besides the score of `predict`: name to points."""
        return {}

    def score(self, episodes: Episodes, *, curves: bool = False) -> dict[str, Tensor]:
        """The scores of `predict`, float64 ``[T]`` by name. Not called if ``embeds``.

        Args:
            episodes: the tasks.
            curves: also return the headline score at the points of each of `curve_points`, ``[T, points]`` by name.
        """
        return exact_scores(episodes, self.predict(episodes))

    def embed(self, images: Tensor) -> Tensor:
        """Embeddings ``[B, ...]`` of images ``[B, C, H, W]``, each independent of the others; does not change the algorithm."""
        raise NotImplementedError(f"{type(self).__name__}.embed")

    def classify(self, episodes: Episodes) -> Tensor:
        """Query logits ``[T, N*Q, N]`` of episodes whose inputs are embeddings."""
        raise NotImplementedError(f"{type(self).__name__}.classify")


def exact_scores(episodes: Episodes, outputs: Tensor) -> dict[str, Tensor]:
    """The scores of outputs ``[T, B, O]`` for the queries, float64 ``[T]`` by name.

    An episode with an output that is not finite has no scores: all are NaN.
    """
    query = episodes.query.map(Tensor.cpu)
    targets = query.y.double() if query.y.is_floating_point() else query.y
    scores = episodes.problem.scores(outputs.cpu().double(), targets, query.mask)
    predicted = scores[episodes.problem.headline.name].isfinite()
    return {name: torch.where(predicted, values, torch.nan) for name, values in scores.items()}


def portions(algorithm: Algorithm, episodes: Episodes, size: int) -> Iterator[Episodes]:
    """Yield the episodes in order, at most ``size`` at a time, as the algorithm takes them.

    Raises:
        FslError: there are masked rows, and the algorithm does not ignore them and cannot do without.
    """
    if not episodes.masked or algorithm.masks:
        yield from episodes.split(size)
        return
    if not algorithm.uneven:
        what = f"{type(algorithm).__name__} cannot be given episodes of uneven shots"
        raise FslError(what, where="algo", hint="choose another algorithm, or episodes of even shots")
    yield from (each.without_padding() for each in episodes.split(1))
