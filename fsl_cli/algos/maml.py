"""MAML: model-agnostic meta-learning (Finn, Abbeel & Levine 2017), and its configurations FOMAML and ANIL.

For each task, K gradient steps on the support loss from the meta-learned initialisation theta (eq. 1):

    theta' = theta - alpha * grad L_support(theta)

and the outer loss is L_query(theta') averaged over tasks, differentiated through the steps (eq. 4).

FOMAML (``algo=fomaml``) treats the inner gradient as a constant. ANIL (``algo=anil``, Raghu et al. 2020) adapts the head
alone. ``inner_lr_learning=per_parameter`` is Meta-SGD's step size (Li et al. 2017).

Batch normalisation: ``transductive`` normalises a query by its query batch, as in the authors' code; ``inductive`` by the
support set (MetaBN, Bronskill et al. 2020). Tested with other ways than trained, all rows of the head start at their mean.

Deviations from the paper: schedules are shorter unless an experiment file pins the paper's; batch normalisation has
epsilon 1e-5 (TensorFlow's was 1e-3); the head starts at zero, not at a random normal, which trains faster and makes the
initialisation blind to the order of the labels (with ``adapt=body``, BOIL of Oh et al. 2021, it starts as PyTorch's do).

Logged: ``loss`` and ``accuracy`` on the queries after adaptation; ``inner_lr`` mean of the step sizes when learned.

    fsl train algo=maml dataset=omniglot
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from fsl_cli.algos.algorithm import Algorithm, BatchNormMode, Step
from fsl_cli.episodes import Episodes, Task
from fsl_cli.errors import FslError
from fsl_cli.inner.engines import ENGINES, EngineName
from fsl_cli.inner.inner_loop import Adapt, Classifier, InnerLoop, adapted_names, mean_row
from fsl_cli.inner.step_sizes import Learning, StepSizes
from fsl_cli.metrics import cross_entropy


class MAML(Algorithm):
    """Meta-learns an initialisation from which a few gradient steps solve a task.

    Args:
        backbone: images ``[B, C, H, W]`` to features ``[B, features]``.
        features: width of the backbone's output.
        ways: classes of a training episode; the width of the head.
        engine: how tasks are run, see `fsl_cli.inner.engines`.
        inner_steps: K while training.
        test_inner_steps: K in `predict`; None: as while training.
        inner_lr: alpha, or where learned step sizes start.
        inner_lr_learning: see `StepSizes`.
        first_order: ignore second derivatives (FOMAML).
        adapt: what the inner loop moves: all, the head (ANIL) or the body (BOIL).
        batch_norm: see above.
        train_queries: query images per class of a training episode; None: as in the tested task.
        checkpoint_inner: run the inner steps again for the outer gradient instead of keeping all of them in memory.

    Raises:
        FslError: the engine cannot run this inner loop.
    """

    def __init__(
        self,
        backbone: nn.Module,
        features: int,
        ways: int,
        engine: EngineName = "auto",
        *,
        inner_steps: Annotated[int, Ge(1)] = 1,
        test_inner_steps: Annotated[int, Ge(0)] | None = None,
        inner_lr: Annotated[float, Gt(0)] = 0.4,
        inner_lr_learning: Learning = "none",
        first_order: bool = False,
        adapt: Adapt = "all",
        batch_norm: BatchNormMode = "transductive",
        train_queries: Annotated[int, Ge(1)] | None = None,
        checkpoint_inner: bool = False,
    ) -> None:
        super().__init__()
        self.net = Classifier(backbone, features, ways)
        if adapt != "body":  # a head of zeros would pass no gradient to the body
            nn.init.zeros_(self.net.head.weight)
            nn.init.zeros_(self.net.head.bias)
        named = dict(self.net.named_parameters())
        self.step_sizes = StepSizes({n: named[n] for n in adapted_names(self.net, adapt)}, inner_lr, inner_lr_learning)
        self.inner_steps = inner_steps
        self.test_inner_steps = inner_steps if test_inner_steps is None else test_inner_steps
        self.first_order = first_order
        self.adapt = adapt
        self.transductive = batch_norm == "transductive"
        self.train_queries = train_queries
        self.checkpoint_inner = checkpoint_inner
        self._engine = ENGINES[engine]
        self._engine.check(self._inner_loop(ways))

    def train_task(self, task: Task) -> Task:
        """The tested task with ``train_queries`` queries."""
        return Task(task.ways, task.shots, self.train_queries or task.queries)

    def task_problems(self, task: Task) -> list[FslError]:
        """With ``adapt=body`` the head is fixed, so that the ways cannot change."""
        trained = self.net.head.out_features
        if self.adapt != "body" or task.ways == trained:
            return []
        what = f"{task.ways} ways, but with algo.adapt=body the head stays as it was trained, for {trained} ways"
        return [FslError(what, where="task.ways", hint=f"use {trained}")]

    def loss(self, episodes: Episodes) -> Step:
        """Query loss after adaptation (eq. 4)."""
        logits = self._engine.run(self._inner_loop(episodes.ways), episodes, self.inner_steps)
        metrics = {}
        if self.step_sizes.values:
            metrics["inner_lr"] = torch.cat([alpha.detach().flatten() for alpha in self.step_sizes.values]).mean()
        return Step(cross_entropy(logits, episodes.query_y).mean(), logits.detach(), metrics)

    @torch.no_grad()
    def predict(self, episodes: Episodes) -> Tensor:
        """Query logits after ``test_inner_steps`` steps."""
        return self._engine.run(self._inner_loop(episodes.ways), episodes, self.test_inner_steps)

    def _inner_loop(self, ways: int) -> InnerLoop:
        step_sizes = self.step_sizes()
        if ways != self.net.head.out_features:
            step_sizes = {name: _for_ways(name, alpha, ways) for name, alpha in step_sizes.items()}
        return InnerLoop(
            self.net.with_ways(ways), self.adapt, step_sizes, self.first_order, self.transductive, self.checkpoint_inner
        )


def _for_ways(name: str, alpha: Tensor | float, ways: int) -> Tensor | float:
    per_row = name.startswith("head.") and isinstance(alpha, Tensor) and alpha.ndim > 0
    return mean_row(alpha, ways) if per_row and isinstance(alpha, Tensor) else alpha
