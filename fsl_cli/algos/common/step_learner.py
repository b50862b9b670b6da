"""What methods that adapt to a task in steps share: options, engine, predictions, and scores after each number of steps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, TypedDict

import torch
from annotated_types import Ge, Len
from torch import Tensor
from typing_extensions import Unpack

from fsl_cli.algos.common.algorithm import Algorithm, exact_scores
from fsl_cli.episodes import Episodes, Task
from fsl_cli.episodes.augmentation import Augmentation, with_augmented_support
from fsl_cli.errors import FslError
from fsl_cli.inner.engines import ENGINES, EngineName, tasks_engine
from fsl_cli.inner.inner_loop import Classifier, InnerLoop
from fsl_cli.inner.tasks import TaskBatch
from fsl_cli.inner.update_rules import InnerOptimizer, UpdateRule, update_rule

StepCount = Annotated[int, Ge(0)]
TestSteps = StepCount | Annotated[list[StepCount], Len(1)] | None


class StepOptions(TypedDict, total=False):
    """Options of every method that adapts to a task in steps.

    Args:
        test_inner_steps: steps in `predict`; of a list, the largest gives the prediction; None (default): as in training.
        augment_support: ``none`` (default), ``shift``, ``affine`` or ``flip``, see `fsl_cli.episodes.augmentation`.
        augment_copies: changed copies of each support image, >= 1, default 1.
    """

    test_inner_steps: TestSteps
    augment_support: Augmentation
    augment_copies: Annotated[int, Ge(1)]


class DescentOptions(StepOptions, total=False):
    """`StepOptions`, and those of methods whose steps follow an update rule.

    Args:
        inner_optimizer: ``sgd`` (default), ``momentum`` or ``adam``, see `fsl_cli.inner.update_rules`.
        inner_weight_decay: times the weights, added to the inner gradient, >= 0, default 0.
    """

    inner_optimizer: InnerOptimizer
    inner_weight_decay: Annotated[float, Ge(0)]


class StepLearner(Algorithm):
    """An algorithm whose prediction depends on how many steps it adapts.

    The constructor of a method calls `set_steps`, and `set_engine` as its last statement.

    Attributes:
        test_steps: numbers of steps in tests, ascending; the last one gives the prediction.
        rule: the update rule of the steps.
        augmentation: kind and number of changed copies of the support images.
        learn2learn: whether learn2learn can run the inner loop of this method.
    """

    masks = uneven = True
    test_steps: list[int]
    rule: UpdateRule
    augmentation: tuple[Augmentation, int]
    learn2learn: bool = False

    def set_steps(self, steps: int, *, transductive: bool, **options: Unpack[DescentOptions]) -> None:
        """Store the options; ``steps`` is the number of steps in tests if ``test_inner_steps`` is None."""
        self.test_steps = steps_in_test(options.get("test_inner_steps"), steps)
        self.rule = update_rule(options.get("inner_optimizer", "sgd"), options.get("inner_weight_decay", 0.0))
        self.augmentation = options.get("augment_support", "none"), options.get("augment_copies", 1)
        self.transductive = transductive

    def set_engine(self, engine: EngineName, ways: int) -> None:
        """Choose the engine that runs the tasks.

        Raises:
            FslError: the engine cannot run this inner loop.
        """
        inner = self.inner_loop(ways)
        self._engine = ENGINES[engine]
        if self.learn2learn:
            self._engine.check(inner)
        else:
            self._tasks_of = tasks_engine(engine, inner)

    def example_problems(self, shape: tuple[int, ...]) -> list[FslError]:
        """An augmentation of examples that are not images."""
        kind, _ = self.augmentation
        if kind == "none" or len(shape) == 3:
            return []
        return [FslError(f"{kind} is not valid: the examples are no images", where="algo.augment_support", hint="use none")]

    @abstractmethod
    def inner_loop(self, ways: int) -> InnerLoop:
        """The inner loop of a task of ``ways`` classes, or of as many outputs."""

    def descent(self, net: Classifier, lr: float) -> InnerLoop:
        """An inner loop that adapts all weights of ``net`` with one step size; inner gradients are constants."""
        sizes = [dict.fromkeys((name for name, _ in net.named_parameters()), lr)]
        return InnerLoop(net, "all", sizes, first_order=True, transductive=self.transductive, rule=self.rule)

    def tasks(self, episodes: Episodes) -> TaskBatch:
        """The tasks of the augmented episodes, before the first step."""
        return self._tasks_of(self.inner_loop(episodes.problem.outputs), self.augmented(episodes))

    def augmented(self, episodes: Episodes) -> Episodes:
        """The episodes with the changed copies of their support images that the options ask for."""
        return with_augmented_support(episodes, *self.augmentation)

    def outputs_after(self, episodes: Episodes, steps: Sequence[int]) -> Tensor:
        """Query outputs ``[len(steps), T, B, O]`` after each number of steps, ascending, as in tests."""
        return self._engine.run(self.inner_loop(episodes.problem.outputs), self.augmented(episodes), steps)

    @torch.no_grad()
    def predict(self, episodes: Episodes) -> Tensor:
        """Query outputs after the last of `test_steps`."""
        return self.outputs_after(episodes, self.test_steps[-1:])[-1]

    def curve_points(self, task: Task) -> dict[str, Sequence[int]]:
        """``inner_steps``: the numbers of steps, if there are several."""
        return {"inner_steps": self.test_steps} if len(self.test_steps) > 1 else {}

    @torch.no_grad()
    def score(self, episodes: Episodes, *, curves: bool = False) -> dict[str, Tensor]:
        """The scores of `predict`, and with ``curves`` the headline score after each number of steps, if there are several."""
        if not curves or len(self.test_steps) == 1:
            return super().score(episodes)
        scores = [exact_scores(episodes, each) for each in self.outputs_after(episodes, self.test_steps)]
        headline = episodes.problem.headline.name
        return {**scores[-1], "inner_steps": torch.stack([each[headline] for each in scores], dim=1)}


def steps_in_test(test_inner_steps: int | list[int] | None, inner_steps: int) -> list[int]:
    """Numbers of steps in tests, ascending and without repetition; ``inner_steps`` where the option is None."""
    if test_inner_steps is None:
        return [inner_steps]
    return sorted(set(test_inner_steps)) if isinstance(test_inner_steps, list) else [test_inner_steps]
