"""What methods share that meta-learn a classifier and adapt it to each task: the network, the training task, the step sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from annotated_types import Ge
from torch import Tensor, nn
from typing_extensions import Unpack

from fsl_cli.algos.common.step_learner import DescentOptions, StepLearner, StepOptions
from fsl_cli.episodes import Problem, Task
from fsl_cli.inner.inner_loop import Classifier, mean_row
from fsl_cli.inner.step_sizes import StepSizes


class MetaOptions(StepOptions, total=False):
    """`StepOptions`, and that of every method whose classifier is meta-learned.

    Args:
        train_queries: query images per class of a training episode, >= 1; None (default): as in the tested task.
    """

    train_queries: Annotated[int, Ge(1)] | None


class GradientOptions(MetaOptions, DescentOptions, total=False):
    """`MetaOptions` and `DescentOptions`."""


class UnrolledOptions(GradientOptions, total=False):
    """`GradientOptions`, and that of methods that differentiate the outer loss through the inner steps.

    Args:
        checkpoint_inner: run the inner steps again for the outer gradient instead of keeping all of them in memory;
            default: false.
    """

    checkpoint_inner: bool


class GradientLearner(StepLearner):
    """Meta-learns a classifier, whose inner loop adapts it to a task.

    Args:
        backbone: images ``[B, C, H, W]`` to features ``[B, features]``.
        features: width of the backbone's output.
        ways: classes of a training episode; the width of the head.
        inner_steps: steps while training.
        transductive: queries are normalised by the query batch, else by the support set.
        zero_head: the head starts at zero, else as PyTorch initialises it.
        train_queries: see `MetaOptions`.
        checkpoint_inner: see `UnrolledOptions`.
        options: see `DescentOptions`.

    Attributes:
        net: the classifier.
    """

    problems = (Problem,)  # of any kind

    def __init__(
        self,
        backbone: nn.Module,
        features: int,
        ways: int,
        *,
        inner_steps: int,
        transductive: bool,
        zero_head: bool = True,
        train_queries: int | None = None,
        checkpoint_inner: bool = False,
        **options: Unpack[DescentOptions],
    ) -> None:
        super().__init__()
        self.net = Classifier(backbone, features, ways)
        if zero_head:
            nn.init.zeros_(self.net.head.weight)
            nn.init.zeros_(self.net.head.bias)
        self.inner_steps = inner_steps
        self.train_queries, self.checkpoint_inner = train_queries, checkpoint_inner
        self.set_steps(inner_steps, transductive=transductive, **options)

    def train_task(self, task: Task) -> Task:
        """The tested task with ``train_queries`` queries."""
        return Task(task.ways, task.shots, self.train_queries or task.queries)


def mean_step_size(sizes: StepSizes) -> dict[str, Tensor]:
    """``inner_lr`` to log: the mean of the step sizes when they are learned."""
    mean = sizes.mean()
    return {} if mean is None else {"inner_lr": mean}


def for_ways(
    step_sizes: Sequence[Mapping[str, Tensor | float]], net: Classifier, ways: int
) -> Sequence[Mapping[str, Tensor | float]]:
    """Step sizes of ``net`` for `Classifier.with_ways`: those of the rows of the head become their mean."""
    if ways == net.head.out_features:
        return step_sizes
    shapes = {f"head.{name}": theta.shape for name, theta in net.head.named_parameters()}

    def of(name: str, alpha: Tensor | float) -> Tensor | float:
        return mean_row(alpha, ways) if isinstance(alpha, Tensor) and shapes.get(name) == alpha.shape else alpha

    return [{name: of(name, alpha) for name, alpha in each.items()} for each in step_sizes]
