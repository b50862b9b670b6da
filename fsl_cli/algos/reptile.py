"""Reptile (Nichol, Achiam & Schulman 2018, "On first-order meta-learning algorithms").

For each task, k steps of SGD or Adam on mini-batches of its support images lead from theta to theta'. Then (algorithm 2)

    theta <- theta + b * mean_i(theta_i' - theta)

Neither queries nor second derivatives are needed: theta moves towards the weights that training on the task arrives at.
With ``train.meta_batch=1`` this is the serial version (algorithm 1). The outer step is taken by ``train.optimizer``, which
receives theta - mean_i theta_i' as its gradient: ``torch.optim.SGD`` with ``lr`` = b is the paper's; the paper suggests
Adam as well.

As in the authors' code, a training task has more shots (``train_shots``) than the test, Adam in the inner loop has
beta1 = 0, and the steps on a task use mini-batches (``inner_batch``, ``test_inner_batch``) drawn without replacement, epoch
by epoch. Training on whole support sets teaches almost nothing: according to the paper's analysis, the update makes the
gradients of different mini-batches agree. The ``train_queries`` are used for logging only.

``symmetric_head`` averages the update over all orders in which a task's classes could have been labelled. As long as the
rows of the head are equal, as they are at the start, this leaves theta' of the body unchanged and gives every row of the
head the mean of the rows: the same expected update with less noise, since labels are drawn at random in every episode.

Batch normalisation: by the mini-batch in a step. ``transductive`` normalises a query by its query batch, the "with
transduction" of the paper; ``inductive`` by the support set (MetaBN, Bronskill et al. 2020). Its scale and shift
are adapted like any other weight, as in the authors' code. When the test has another
number of ways than training, all rows of the head start at the mean of the trained rows.

Deviations from the paper: ``symmetric_head``, which can be switched off. By default the inner optimizer is SGD, tests take
ten steps on the whole support set, and the schedule is much shorter, with a constant step size; the authors' code has
``inner_optimizer=adam``, ``inner_lr=0.001``, ``inner_steps=5``, ``test_inner_steps=50``, ``test_inner_batch=5``,
``train.meta_batch=5`` and ``train.schedule=linear``, and its network ``backbone.pool=flatten``. By default Adam's second
moments start at zero in every task, and the first steps change every weight by about ``inner_lr``; with
``carry_moments=true`` they go on from task to task and into the tests, as in that code, where the tasks of an iteration
follow one another, while here all of them start from the moments of the iteration before. "Without transduction", the
authors normalise a query by the support set and that query, here by the support set alone. Their query batch has one image
per class, here ``task.queries``. Batch normalisation has epsilon 1e-5 (TensorFlow's was 1e-3); the head starts at zero.

Logged: ``loss`` and ``accuracy`` on ``train_queries`` queries after adaptation, which are not used for the update;
``distance``: the mean over tasks of the Euclidean distance between theta' and theta.

Measured on Omniglot, 5-way 1-shot, after ten minutes on one CPU core (4,186 iterations): 92.45 ± 0.40 % (transductive; 95%
t interval over 1,000 test episodes). The paper, by 100,000 iterations: 97.68 % with transduction. ``scripts/leaderboard.sh
--jobs 2 methods=reptile``

    fsl train algo=reptile dataset=omniglot
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from typing_extensions import Unpack

from fsl_cli.algos.common.algorithm import BatchNormMode, Step
from fsl_cli.algos.common.carried_moments import CarriedMoments
from fsl_cli.algos.common.gradient_learner import GradientLearner, GradientOptions
from fsl_cli.episodes import Episodes, Task
from fsl_cli.errors import FslError
from fsl_cli.inner.engines import EngineName
from fsl_cli.inner.inner_loop import InnerLoop, mean_row
from fsl_cli.inner.mini_batches import mini_batches
from fsl_cli.inner.tasks import TaskBatch
from fsl_cli.inner.update_rules import Adam, Parameters, parameters_in
from fsl_cli.settings.sizes import Count


class Reptile(GradientLearner):
    """Meta-learns an initialisation by moving it towards the weights that solve its tasks.

    Args:
        backbone: images ``[B, C, H, W]`` to features ``[B, features]``.
        features: width of the backbone's output.
        ways: width of the head: the classes of a training episode, or the outputs of another problem.
        engine: how tasks are run, see `fsl_cli.inner.engines`; all but learn2learn.
        inner_steps: k in training, >= 1.
        inner_batch: images per step in training, >= 1; None: the whole support set.
        test_inner_batch: images per step in `predict`, >= 1; None: the whole support set.
        inner_lr: step size of the inner optimizer, > 0.
        carry_moments: with adam, the second moments go on from task to task, see the module's docstring.
        symmetric_head: average the update over all orders of the labels, see the module's docstring.
        batch_norm: ``transductive`` or ``inductive``, see the module's docstring.
        train_shots: shots of a training episode, >= 1, a number or a range; None: as in the tested task.
        options: see `GradientOptions`; adam has beta1 = 0 here.

    Raises:
        FslError: the engine cannot run this inner loop, or there are no moments to carry.
    """

    def __init__(
        self,
        backbone: nn.Module,
        features: int,
        ways: int,
        engine: EngineName = "auto",
        *,
        inner_steps: Annotated[int, Ge(1)] = 8,
        inner_batch: Annotated[int, Ge(1)] | None = 10,
        test_inner_batch: Annotated[int, Ge(1)] | None = None,
        inner_lr: Annotated[float, Gt(0)] = 0.5,
        carry_moments: bool = False,
        symmetric_head: bool = True,
        batch_norm: BatchNormMode = "transductive",
        train_shots: Count | None = 10,
        **options: Unpack[GradientOptions],
    ) -> None:
        transductive = batch_norm == "transductive"
        super().__init__(backbone, features, ways, inner_steps=inner_steps, transductive=transductive, **options)
        self.moments: CarriedMoments | None = None
        if isinstance(self.rule, Adam):
            self.rule = replace(self.rule, beta1=0.0)
            self.moments = CarriedMoments(self.net, self.rule, inner_steps) if carry_moments else None
        elif carry_moments:
            raise FslError("is for Adam only", where="algo.carry_moments", hint="set algo.inner_optimizer=adam")
        self.inner_batch, self.test_inner_batch = inner_batch, test_inner_batch
        self.inner_lr, self.symmetric_head, self.train_shots = inner_lr, symmetric_head, train_shots
        self.masks = not (inner_batch or test_inner_batch)  # mini-batches are drawn from all rows
        self.set_engine(engine, ways)

    def train_task(self, task: Task) -> Task:
        """The tested task with ``train_shots`` shots and ``train_queries`` queries."""
        return task.with_sizes(shots=self.train_shots, queries=self.train_queries)

    def begin_iteration(self, iteration: int) -> None:
        """See `Algorithm`."""
        if self.moments is not None:
            self.moments.begin_iteration()

    def loss(self, episodes: Episodes) -> Step:
        """A surrogate: its value is the query loss after adaptation, its gradient theta - mean_i theta_i'."""
        tasks = self._batched(episodes, self.inner_batch, self.inner_steps, training=True)
        with torch.no_grad():
            state = tasks.adapted(tasks.inner.rule.begin(tasks.start), range(self.inner_steps))
            adapted = parameters_in(state)
            logits = tasks.query_outputs(adapted, self.inner_steps - 1)
            value = self.query_losses(episodes, logits).mean()
        if self.moments is not None:
            self.moments.move(tasks, state, dict(self.net.named_parameters()))
        pull = self._pull(tasks.start, adapted, symmetric_head=self.symmetric_head and episodes.problem.has_ways)
        return Step(value + (pull - pull.detach()), logits, {"distance": _distance(tasks.start, adapted)})

    def _pull(self, theta: Parameters, adapted: Parameters, *, symmetric_head: bool) -> Tensor:
        """A scalar whose gradient by the parameters of the net is theta - mean_i theta_i'.

        Args:
            theta: by name, shared by the tasks.
            adapted: theta', by name, with an axis of tasks in front.
            symmetric_head: whether all rows of the head move by the mean of the rows.
        """
        gaps = [(each * (each - adapted[name].mean(0)).detach()).sum() for name, each in theta.items()]
        if not symmetric_head:
            return torch.stack(gaps).sum()
        named = dict(self.net.named_parameters())
        found = torch.autograd.grad(torch.stack(gaps).sum(), list(named.values()), allow_unused=True)
        parts = []
        for (name, parameter), gap in zip(named.items(), found, strict=True):
            if gap is not None:
                parts.append((parameter * (mean_row(gap, len(gap)) if name.startswith("head.") else gap)).sum())
        return torch.stack(parts).sum()

    def outputs_after(self, episodes: Episodes, steps: Sequence[int]) -> Tensor:
        """See `StepLearner`; the steps use mini-batches of the support set."""
        return self._batched(episodes, self.test_inner_batch, steps[-1]).outputs_after(steps)

    def _batched(self, episodes: Episodes, batch: int | None, steps: int, *, training: bool = False) -> TaskBatch:
        """The tasks under adaptation, each step on ``batch`` of the augmented support images."""
        episodes = self.augmented(episodes)
        rows = episodes.support.y.shape[1]
        batches = mini_batches(episodes.seeds, rows, batch, steps) if batch and steps else None
        tasks = self._tasks_of(self.inner_loop(episodes.problem.outputs), episodes, batches)
        if self.moments is not None:
            rule = self.moments.rule_of(tasks.pack, episodes.problem.outputs, training=training)
            tasks.inner = replace(tasks.inner, rule=rule)
        return tasks

    def inner_loop(self, ways: int) -> InnerLoop:
        """See `StepLearner`."""
        return self.descent(self.net.with_ways(ways), self.inner_lr)


@torch.no_grad()
def _distance(theta: Parameters, adapted: Parameters) -> Tensor:
    """Mean over tasks of ``|theta' - theta|``; arguments as in `Reptile._pull`."""
    squares = [(adapted[name] - each).square().flatten(1).sum(1) for name, each in theta.items()]
    return torch.stack(squares).sum(0).sqrt().mean()
