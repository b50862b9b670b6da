"""Reptile (Nichol, Achiam & Schulman 2018, "On first-order meta-learning algorithms").

For each task, k steps of SGD or Adam on mini-batches of its training shots lead from theta to theta'. Then (algorithm 2)

    theta <- theta + b * mean_i(theta_i' - theta)

No query image and no second derivative is needed: theta moves towards the weights that training on the task ends at. With
``train.meta_batch=1`` this is the serial version (algorithm 1). The outer step is made by ``train.optimizer``, whose
gradient is theta - mean_i theta_i': ``torch.optim.SGD`` with ``lr`` = b is the paper's; the paper suggests Adam too.

Options: as in the authors' code a training task has more shots (``train_shots``) than are tested, ``inner_optimizer=adam``
has beta1 = 0, and the steps of a task, ``inner_steps`` in training and ``test_inner_steps`` in tests, look at mini-batches
(``inner_batch``, ``test_inner_batch``) that are drawn without replacement, epoch by epoch. Training on whole support sets
teaches next to nothing: what the paper's analysis finds in the update is that the gradients of different mini-batches come
to agree. ``test_inner_steps`` may be a list, like ``[0,5,50]``: then the report has the accuracy after each number of
steps, and the largest gives the result. ``inner_lr`` is their size, ``inner_weight_decay`` times the weight is added to the
gradient. ``train_queries`` per class are for the log alone. ``augment_support`` adds ``augment_copies`` changed copies of
each support image, see `fsl_cli.episodes.augmentation`.

``symmetric_head`` averages the update over all orders in which a task's classes could have been labelled. While the rows of
the head are equal, which they are at the start, that leaves theta' of the body as it is and gives every row of the head the
mean of the rows: the same expected update with less noise, since labels are drawn at random in every episode.

Batch normalisation: by the mini-batch in a step. ``transductive`` normalises a query by its query batch, the "with
transduction" of the paper; ``inductive`` by the support set (MetaBN, Bronskill et al. 2020). Tested with other ways than
trained, all rows of the head start at their mean.

Deviations from the paper: ``symmetric_head``, which false turns off. By default the inner optimizer is SGD, tests take ten
steps on the whole support set, and the schedule is much shorter and its step size constant; the authors' code has
``inner_optimizer=adam``, ``inner_lr=0.001``, ``inner_steps=5``, ``test_inner_steps=50``, ``test_inner_batch=5``,
``train.meta_batch=5`` and ``train.schedule=linear``. Adam's moments start at zero in every task, while that code carries
them from task to task, so that here the first steps are about ``inner_lr`` long in every weight. "Without transduction" the
authors normalise a query by the support set and that query, here by the support set alone; their query batch has one image
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
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from fsl_cli.algos.common.algorithm import BatchNormMode, Step
from fsl_cli.algos.common.step_learner import StepLearner, TestSteps, steps_in_test
from fsl_cli.episodes import Episodes, Task
from fsl_cli.episodes.augmentation import Augmentation, with_augmented_support
from fsl_cli.inner.engines import EngineName, tasks_engine
from fsl_cli.inner.inner_loop import Classifier, InnerLoop, mean_row
from fsl_cli.inner.mini_batches import mini_batches
from fsl_cli.inner.tasks import Tasks
from fsl_cli.inner.update_rules import Adam, InnerOptimizer, Parameters, parameters_in, update_rule
from fsl_cli.statistics import classification as metrics


class Reptile(StepLearner):
    """Meta-learns an initialisation by moving it towards the weights that tasks are solved with.

    Args:
        backbone: images ``[B, C, H, W]`` to features ``[B, features]``.
        features: width of the backbone's output.
        ways: classes of a training episode; the width of the head.
        engine: how tasks are run, see `fsl_cli.inner.engines`; all but learn2learn.
        inner_steps: k while training.
        test_inner_steps: k in `predict`, the largest of a list; None: as while training.
        inner_batch: images of a step while training; None: the whole support set.
        test_inner_batch: images of a step in `predict`; None: the whole support set.
        inner_lr: step size of the inner optimizer.
        inner_optimizer: see `fsl_cli.inner.update_rules`; adam has beta1 = 0 here.
        inner_weight_decay: times theta, added to the inner gradient.
        symmetric_head: see above.
        batch_norm: see above.
        train_shots: shots of a training episode; None: as in the tested task.
        train_queries: query images per class of a training episode, for the log; None: as in the tested task.
        augment_support: see `fsl_cli.episodes.augmentation`.
        augment_copies: changed copies of each support image.

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
        inner_steps: Annotated[int, Ge(1)] = 8,
        test_inner_steps: TestSteps = 10,
        inner_batch: Annotated[int, Ge(1)] | None = 10,
        test_inner_batch: Annotated[int, Ge(1)] | None = None,
        inner_lr: Annotated[float, Gt(0)] = 0.5,
        inner_optimizer: InnerOptimizer = "sgd",
        inner_weight_decay: Annotated[float, Ge(0)] = 0.0,
        symmetric_head: bool = True,
        batch_norm: BatchNormMode = "transductive",
        train_shots: Annotated[int, Ge(1)] | None = 10,
        train_queries: Annotated[int, Ge(1)] | None = 1,
        augment_support: Augmentation = "none",
        augment_copies: Annotated[int, Ge(1)] = 1,
    ) -> None:
        super().__init__()
        self.net = Classifier(backbone, features, ways)
        nn.init.zeros_(self.net.head.weight)
        nn.init.zeros_(self.net.head.bias)
        self.inner_steps, self.test_steps = inner_steps, steps_in_test(test_inner_steps, inner_steps)
        self.inner_batch, self.test_inner_batch = inner_batch, test_inner_batch
        self.inner_lr = inner_lr
        adam = inner_optimizer == "adam"
        self.rule = Adam(inner_weight_decay, beta1=0.0) if adam else update_rule(inner_optimizer, inner_weight_decay)
        self.symmetric_head = symmetric_head
        self.transductive = batch_norm == "transductive"
        self.train_shots, self.train_queries = train_shots, train_queries
        self.augmentation = augment_support, augment_copies
        self._tasks_of = tasks_engine(engine, self._inner_loop(ways))

    def train_task(self, task: Task) -> Task:
        """The tested task with ``train_shots`` shots and ``train_queries`` queries."""
        return Task(task.ways, self.train_shots or task.shots, self.train_queries or task.queries)

    def loss(self, episodes: Episodes) -> Step:
        """A surrogate: its value is the query loss after adaptation, its gradient theta - mean_i theta_i'."""
        tasks = self._tasks(episodes, self.inner_batch, self.inner_steps)
        with torch.no_grad():
            adapted = parameters_in(tasks.adapted(self.rule.begin(tasks.start), range(self.inner_steps)))
            logits = tasks.query_logits(adapted, self.inner_steps - 1)
            value = metrics.cross_entropy(logits, episodes.query_y).mean()
        pull = self._pull(tasks.start, adapted)
        return Step(value + (pull - pull.detach()), logits, {"distance": _distance(tasks.start, adapted)})

    def _pull(self, theta: Parameters, adapted: Parameters) -> Tensor:
        """A scalar whose gradient by the parameters of the net is theta - mean_i theta_i'.

        Args:
            theta: by name, shared by the tasks.
            adapted: theta', by name, with an axis of tasks in front.
        """
        gaps = [(each * (each - adapted[name].mean(0)).detach()).sum() for name, each in theta.items()]
        if not self.symmetric_head:
            return torch.stack(gaps).sum()
        named = dict(self.net.named_parameters())
        found = torch.autograd.grad(torch.stack(gaps).sum(), list(named.values()), allow_unused=True)
        parts = []
        for (name, parameter), gap in zip(named.items(), found, strict=True):
            if gap is not None:
                parts.append((parameter * (mean_row(gap, len(gap)) if name.startswith("head.") else gap)).sum())
        return torch.stack(parts).sum()

    def logits_after(self, episodes: Episodes, steps: Sequence[int]) -> Tensor:
        """Query logits after each number of steps on mini-batches of the support set."""
        return self._tasks(episodes, self.test_inner_batch, steps[-1]).logits_after(steps)

    def _tasks(self, episodes: Episodes, batch: int | None, steps: int) -> Tasks:
        episodes = with_augmented_support(episodes, *self.augmentation)
        rows = episodes.support_y.shape[1]
        batches = mini_batches(episodes.seeds, rows, batch, steps) if batch and steps else None
        return self._tasks_of(self._inner_loop(episodes.ways), episodes, batches)

    def _inner_loop(self, ways: int) -> InnerLoop:
        net = self.net.with_ways(ways)
        sizes = [dict.fromkeys((name for name, _ in net.named_parameters()), self.inner_lr)]
        return InnerLoop(net, "all", sizes, first_order=True, transductive=self.transductive, rule=self.rule)


@torch.no_grad()
def _distance(theta: Parameters, adapted: Parameters) -> Tensor:
    """Mean over tasks of ``|theta' - theta|``; arguments as in `Reptile._pull`."""
    squares = [(adapted[name] - each).square().flatten(1).sum(1) for name, each in theta.items()]
    return torch.stack(squares).sum(0).sqrt().mean()
