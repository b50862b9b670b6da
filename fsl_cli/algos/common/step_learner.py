"""What methods share that adapt to a task in steps: predictions, and the accuracy after several numbers of steps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Ge, Len
from torch import Tensor

from fsl_cli.algos.common.algorithm import Algorithm
from fsl_cli.episodes import Episodes, Task
from fsl_cli.statistics import classification as metrics

StepCount = Annotated[int, Ge(0)]
TestSteps = StepCount | Annotated[list[StepCount], Len(1)] | None
"""An option ``test_inner_steps``: a number of steps, several, or None."""


class StepLearner(Algorithm):
    """An algorithm whose prediction depends on how many steps it adapts.

    Attributes:
        test_steps: numbers of steps in tests, ascending; the last one gives the prediction.
    """

    test_steps: list[int]

    @abstractmethod
    def logits_after(self, episodes: Episodes, steps: Sequence[int]) -> Tensor:
        """Query logits ``[len(steps), T, N*Q, N]`` after each number of steps, ascending, as in tests."""

    @torch.no_grad()
    def predict(self, episodes: Episodes) -> Tensor:
        """Query logits after the last of `test_steps`."""
        return self.logits_after(episodes, self.test_steps[-1:])[-1]

    def curve_points(self, task: Task) -> dict[str, Sequence[int]]:
        """``inner_steps``: the numbers of steps, if there are several."""
        return {"inner_steps": self.test_steps} if len(self.test_steps) > 1 else {}

    @torch.no_grad()
    def predict_along(self, episodes: Episodes) -> tuple[Tensor, dict[str, Tensor]]:
        """`predict`, and the accuracy, float64 ``[T, points]``, after each number of steps, if there are several."""
        logits, labels = self.logits_after(episodes, self.test_steps), episodes.query_y.cpu()
        if len(logits) == 1:
            return logits[0], {}
        accuracies = [metrics.accuracy(each, labels) for each in logits.cpu().double()]
        return logits[-1], {"inner_steps": torch.stack(accuracies, dim=1)}


def steps_in_test(test_inner_steps: int | list[int] | None, inner_steps: int) -> list[int]:
    """Numbers of steps in tests, ascending and without repetition; ``inner_steps`` where the option is None."""
    if test_inner_steps is None:
        return [inner_steps]
    return sorted(set(test_inner_steps)) if isinstance(test_inner_steps, list) else [test_inner_steps]
