"""What training and evaluation ask of every algorithm."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor, nn

from fsl_cli.episodes import Classification, Episodes, Problem, Task
from fsl_cli.errors import FslError

BatchNormMode = Literal["transductive", "inductive"]


@dataclass(frozen=True)
class Step:
    """What one batch of episodes gives the outer loop.

    Attributes:
        loss: scalar, the mean over the episodes of the batch.
        outputs: what the network says of the queries, ``[T, B, O]``, without a graph.
        metrics: further scalars to log, by name.
        targets: what ``outputs`` should be, when that is not the targets of the queries.
        mask: bool, which rows of ``outputs`` count, where there are ``targets``; None: all.
    """

    loss: Tensor
    outputs: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    targets: Tensor | None = None
    mask: Tensor | None = None


class Algorithm(nn.Module, ABC):
    """A few-shot learner: its module state is everything that is meta-learned.

    Attributes:
        problems: kinds of problems that it solves.
        masks: whether it leaves out the rows of `Examples` that are no examples, as it must where shots are uneven.
        transductive: whether the prediction of a query may depend on the other queries of its episode.
        embeds: whether `predict` sees the images only through `embed` of each image by itself, that is, whether it is
            the one below. Evaluation then embeds an image once, however many episodes it occurs in.
    """

    problems: ClassVar[tuple[type[Problem], ...]] = (Classification,)
    masks: bool = False
    transductive: bool
    embeds: bool = False

    def train_task(self, task: Task) -> Task:
        """Shape of the training episodes, given the shape that is tested."""
        return task

    def task_problems(self, task: Task) -> list[FslError]:
        """What keeps this algorithm from being tested on ``task``, of classification; empty when nothing does."""
        return []

    def example_problems(self, shape: tuple[int, ...]) -> list[FslError]:
        """What keeps this algorithm from working on examples of this shape; empty when nothing does."""
        return []

    def begin_iteration(self, iteration: int) -> None:
        """Prepare for outer step ``iteration`` (0, 1, ...); called before every step, also after resuming."""

    @abstractmethod
    def loss(self, episodes: Episodes) -> Step:
        """Outer loss of a batch of training episodes, with a graph to what is learned; without one, nothing moves."""

    @abstractmethod
    def predict(self, episodes: Episodes) -> Tensor:
        """Outputs ``[T, B, O]`` for the queries, such as logits of any number of ways; changes nothing in the algorithm.

        Here: `classify` of what `embed` makes of the images.
        """
        support, query = (self.embed(x.flatten(0, 1)).unflatten(0, x.shape[:2]) for x in (episodes.support.x, episodes.query.x))
        return self.classify(episodes.with_embeddings(support, query))

    def curve_points(self, task: Task) -> dict[str, Sequence[int]]:
        """What the test reports the headline score along, besides that of `predict`: the points of each curve, by its name."""
        return {}

    def score(self, episodes: Episodes, *, curves: bool = False) -> dict[str, Tensor]:
        """Every score of the problem, float64 ``[T]`` by name: those of `predict`. Not asked if ``embeds``.

        Args:
            episodes: what is predicted.
            curves: also the headline score along each of `curve_points`, ``[T, points]`` by the name of the curve.
        """
        return exact_scores(episodes, self.predict(episodes))

    def embed(self, images: Tensor) -> Tensor:
        """Embeddings ``[B, ...]`` of images ``[B, C, H, W]``, each independent of the others; changes nothing."""
        raise NotImplementedError(f"{type(self).__name__}.embed")

    def classify(self, episodes: Episodes) -> Tensor:
        """Query logits ``[T, N*Q, N]`` of episodes whose inputs are embeddings."""
        raise NotImplementedError(f"{type(self).__name__}.classify")


def exact_scores(episodes: Episodes, outputs: Tensor) -> dict[str, Tensor]:
    """The scores of outputs ``[T, B, O]`` for the queries, float64 ``[T]`` by name."""
    query = episodes.query.map(Tensor.cpu)
    targets = query.y.double() if query.y.is_floating_point() else query.y
    return episodes.problem.scores(outputs.cpu().double(), targets, query.mask)


def check_masks(algorithm: Algorithm, episodes: Episodes) -> None:
    """Raise `FslError` for episodes with rows that are no examples, where the algorithm would learn from them."""
    if episodes.masked and not algorithm.masks:
        what = f"{type(algorithm).__name__} cannot be given episodes of uneven shots"
        raise FslError(what, where="algo", hint="choose another algorithm, or episodes of even shots")
