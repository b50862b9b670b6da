"""MAML: model-agnostic meta-learning (Finn, Abbeel & Levine 2017), and its configurations FOMAML, ANIL, BOIL and Meta-SGD.

For each task, K gradient steps on the support loss from the meta-learned initialisation theta (section 2.2):

    theta' = theta - alpha * grad L_support(theta)

and the outer loss is L_query(theta') averaged over tasks, differentiated through the steps (eq. 1).

With theta = (body, head), what the other four do instead:

- FOMAML (``algo=fomaml``, section 5.2): the inner gradient is a constant, so that theta moves by grad L_query(theta').
- ANIL (``algo=anil``, Raghu et al. 2020): the inner loop moves the head alone, head' = head - alpha * grad_head L_support.
- BOIL (``algo=boil``, Oh et al. 2021): it moves the body alone, body' = body - alpha * grad_body L_support; the head stays
  as meta-learned, so that the representation itself must change. It cannot serve other ways than it was trained for.
- Meta-SGD (``algo=metasgd``, Li et al. 2017, eq. 2): theta' = theta - alpha o grad L_support(theta) in one step, where
  alpha has a learned number, its sign included, for every weight.

Options: ``inner_steps`` is K in training; ``test_inner_steps`` may be a list, like ``[0,1,3,5,10]``: then the report has
the accuracy after each number of steps, and the largest gives the result. ``inner_lr`` is alpha, or where it starts if
``inner_lr_learning`` learns it (``per_layer``, ``per_layer_per_step``, ``per_parameter``). ``inner_optimizer`` and
``inner_weight_decay`` say what a step makes of the gradient. ``first_order`` is FOMAML's, ``adapt`` ANIL's and BOIL's.
``augment_support`` adds ``augment_copies`` changed copies of each support image, see `fsl_cli.episodes.augmentation`.
``train_queries`` per class. ``checkpoint_inner`` runs the steps again for the outer gradient instead of keeping them in
memory.

Batch normalisation: ``transductive`` normalises a query by its query batch, as in the authors' code; ``inductive`` by the
support set (MetaBN, Bronskill et al. 2020). Tested with other ways than trained, all rows of the head start at their mean.

Deviations from the paper: schedules are shorter unless an experiment file pins the paper's; batch normalisation has
epsilon 1e-5 (TensorFlow's was 1e-3); the head starts at zero, not at a random normal, which trains faster and makes the
initialisation blind to the order of the labels (BOIL's starts as PyTorch's do, without which no gradient would reach
the body). ANIL, BOIL and Meta-SGD have MAML's defaults; BOIL's paper has no such task, ANIL's has 20 ways.
Meta-SGD's alpha starts at one number for all weights, not at random ones.

Logged: ``loss`` and ``accuracy`` on the queries after adaptation; ``inner_lr`` mean of the step sizes when learned.

Measured on Omniglot, 5-way 1-shot, after ten minutes on one CPU core (transductive; 95% t interval over 1,000 test
episodes): maml 93.67 ± 0.36 % (1,156 iterations), fomaml 88.55 ± 0.50 % (1,330 iterations), anil 92.76 ± 0.43 % (1,286
iterations), boil 93.21 ± 0.36 % (1,034 iterations), metasgd 92.98 ± 0.39 % (1,005 iterations). The papers: MAML 98.7 ± 0.4
% by 60,000 iterations, FOMAML 98.3 % (in Reptile's), Meta-SGD 99.53 ± 0.26 %. ``scripts/leaderboard.sh --jobs 2
methods=maml,fomaml,anil,boil,metasgd``

    fsl train algo=maml dataset=omniglot                    # or algo=fomaml, anil, boil, metasgd
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from annotated_types import Ge, Gt
from torch import Tensor, nn

from fsl_cli.algos.common.algorithm import BatchNormMode, Step
from fsl_cli.algos.common.step_learner import StepLearner, TestSteps, steps_in_test
from fsl_cli.episodes import Episodes, Task
from fsl_cli.episodes.augmentation import Augmentation, with_augmented_support
from fsl_cli.errors import FslError
from fsl_cli.inner.engines import ENGINES, EngineName
from fsl_cli.inner.inner_loop import Adapt, Classifier, InnerLoop, adapted_names, mean_row
from fsl_cli.inner.step_sizes import Learning, StepSizes
from fsl_cli.inner.update_rules import InnerOptimizer, update_rule
from fsl_cli.statistics import classification as metrics


class MAML(StepLearner):
    """Meta-learns an initialisation from which a few gradient steps solve a task.

    Args:
        backbone: images ``[B, C, H, W]`` to features ``[B, features]``.
        features: width of the backbone's output.
        ways: classes of a training episode; the width of the head.
        engine: how tasks are run, see `fsl_cli.inner.engines`.
        inner_steps: K while training.
        test_inner_steps: K in `predict`, the largest of a list; None: as while training.
        inner_lr: alpha, or where learned step sizes start.
        inner_lr_learning: see `StepSizes`.
        inner_optimizer: see `fsl_cli.inner.update_rules`.
        inner_weight_decay: times theta, added to the inner gradient.
        first_order: ignore second derivatives (FOMAML).
        adapt: what the inner loop moves: all, the head (ANIL) or the body (BOIL).
        batch_norm: see above.
        train_queries: query images per class of a training episode; None: as in the tested task.
        augment_support: see `fsl_cli.episodes.augmentation`.
        augment_copies: changed copies of each support image.
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
        test_inner_steps: TestSteps = None,
        inner_lr: Annotated[float, Gt(0)] = 0.4,
        inner_lr_learning: Learning = "none",
        inner_optimizer: InnerOptimizer = "sgd",
        inner_weight_decay: Annotated[float, Ge(0)] = 0.0,
        first_order: bool = False,
        adapt: Adapt = "all",
        batch_norm: BatchNormMode = "transductive",
        train_queries: Annotated[int, Ge(1)] | None = None,
        augment_support: Augmentation = "none",
        augment_copies: Annotated[int, Ge(1)] = 1,
        checkpoint_inner: bool = False,
    ) -> None:
        super().__init__()
        self.net = Classifier(backbone, features, ways)
        if adapt != "body":  # a head of zeros would pass no gradient to the body
            nn.init.zeros_(self.net.head.weight)
            nn.init.zeros_(self.net.head.bias)
        named = dict(self.net.named_parameters())
        adapted = {name: named[name] for name in adapted_names(self.net, adapt)}
        self.step_sizes = StepSizes(adapted, inner_lr, inner_lr_learning, inner_steps)
        self.inner_steps = inner_steps
        self.test_steps = steps_in_test(test_inner_steps, inner_steps)
        self.rule = update_rule(inner_optimizer, inner_weight_decay)
        self.first_order = first_order
        self.adapt = adapt
        self.transductive = batch_norm == "transductive"
        self.train_queries = train_queries
        self.augmentation = augment_support, augment_copies
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
        """Query loss after adaptation (the loss in eq. 1)."""
        logits = self.logits_after(episodes, [self.inner_steps])[-1]
        alpha = self.step_sizes.mean()
        logged = {} if alpha is None else {"inner_lr": alpha}
        return Step(metrics.cross_entropy(logits, episodes.query_y).mean(), logits.detach(), logged)

    def logits_after(self, episodes: Episodes, steps: Sequence[int]) -> Tensor:
        """Query logits after each number of steps."""
        episodes = with_augmented_support(episodes, *self.augmentation)
        return self._engine.run(self._inner_loop(episodes.ways), episodes, steps)

    def _inner_loop(self, ways: int) -> InnerLoop:
        return InnerLoop(
            self.net.with_ways(ways),
            self.adapt,
            for_ways(self.step_sizes(), self.net, ways),
            self.first_order,
            self.transductive,
            self.checkpoint_inner,
            self.rule,
        )


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
