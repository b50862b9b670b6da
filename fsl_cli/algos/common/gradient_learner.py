"""What methods that meta-learn a network and adapt it to each task share: network, training task, query loss, step sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn
from typing_extensions import Unpack

from fsl_cli.algos.common.step_learner import DescentOptions, StepLearner, StepOptions
from fsl_cli.episodes import Episodes, Problem, Task
from fsl_cli.errors import FslError
from fsl_cli.inner.inner_loop import Classifier, mean_row
from fsl_cli.inner.step_sizes import StepSizes
from fsl_cli.settings.sizes import Count, Size


class MetaOptions(StepOptions, total=False):
    """`StepOptions`, and an option of every method whose classifier is meta-learned.

    Args:
        train_queries: query images per class of a training episode, >= 1, a number or a range; None (default): as in the
            tested task.
    """

    train_queries: Count | None


class GradientOptions(MetaOptions, DescentOptions, total=False):
    """`MetaOptions` and `DescentOptions`."""


class UnrolledOptions(GradientOptions, total=False):
    """`GradientOptions`, and options of methods that differentiate the outer loss through the inner steps.

    Args:
        adapt_batch_norm: whether the inner loop adapts the scale and shift of batch normalisation like any other weight
            (default); false: all tasks and steps use the meta-learned ones.
        checkpoint_inner: recompute the inner steps for the outer gradient instead of keeping all of them in memory;
            default: false.
    """

    adapt_batch_norm: bool
    checkpoint_inner: bool


class GradientLearner(StepLearner):
    """Meta-learns a network that an inner loop adapts to each task.

    Args:
        backbone: images ``[B, C, H, W]`` to features ``[B, features]``.
        features: width of the backbone's output.
        ways: width of the head: the classes of a training episode, or the outputs of another problem.
        inner_steps: number of steps in training.
        transductive: true: queries are normalised by the query batch; false: by the support set.
        zero_head: true: the head starts at zero; false: as PyTorch initialises it.
        train_queries: see `MetaOptions`.
        adapt_batch_norm: see `UnrolledOptions`.
        checkpoint_inner: see `UnrolledOptions`.
        options: see `DescentOptions`.

    Attributes:
        net: body and head.
        any_ways: whether nothing of the head is meta-learned, so that training episodes may differ in their ways.
    """

    problems = (Problem,)  # of any kind
    any_ways: ClassVar[bool] = False

    def __init__(
        self,
        backbone: nn.Module,
        features: int,
        ways: int,
        *,
        inner_steps: int,
        transductive: bool,
        zero_head: bool = True,
        train_queries: Size | None = None,
        adapt_batch_norm: bool = True,
        checkpoint_inner: bool = False,
        **options: Unpack[DescentOptions],
    ) -> None:
        super().__init__()
        self.net = Classifier(backbone, features, ways)
        if zero_head:
            nn.init.zeros_(self.net.head.weight)
            nn.init.zeros_(self.net.head.bias)
        self.inner_steps = inner_steps
        self.train_queries, self.adapt_batch_norm, self.checkpoint_inner = train_queries, adapt_batch_norm, checkpoint_inner
        self.set_steps(inner_steps, transductive=transductive, **options)

    def train_task(self, task: Task) -> Task:
        """The tested task with ``train_queries`` queries."""
        return task.with_sizes(queries=self.train_queries)

    def train_problems(self, task: Task) -> list[FslError]:
        """Ways that differ: the head that is meta-learned has as many outputs as a training episode has classes."""
        ways = task.sizes["ways"]
        if self.any_ways or isinstance(ways, int):
            return []
        what = f"{ways} ways, but the head that is meta-learned is for one number of classes"
        return [FslError(what, where="task.ways", hint=f"train with task.ways={task.ways}, or algo=proto_maml; test with any")]

    def query_losses(self, episodes: Episodes, outputs: Tensor) -> Tensor:
        """The loss of the problem, ``[T]``, for query outputs ``[T, B, O]``."""
        return episodes.problem.loss(outputs, episodes.query.y, episodes.query.mask)


def mean_step_size(sizes: StepSizes) -> dict[str, Tensor]:
    """The metric ``inner_lr``, the mean of the step sizes; empty if they are not learned."""
    mean = sizes.mean()
    return {} if mean is None else {"inner_lr": mean}


def for_ways(
    step_sizes: Sequence[Mapping[str, Tensor | float]], net: Classifier, ways: int
) -> Sequence[Mapping[str, Tensor | float]]:
    """Step sizes for ``net.with_ways(ways)``: as for the head itself, every row gets the mean over the rows."""
    if ways == net.head.out_features:
        return step_sizes
    shapes = {f"head.{name}": theta.shape for name, theta in net.head.named_parameters()}

    def of(name: str, alpha: Tensor | float) -> Tensor | float:
        return mean_row(alpha, ways) if isinstance(alpha, Tensor) and shapes.get(name) == alpha.shape else alpha

    return [{name: of(name, alpha) for name, alpha in each.items()} for each in step_sizes]
