"""MAML: model-agnostic meta-learning (Finn, Abbeel & Levine 2017), and its configurations FOMAML, ANIL, BOIL and Meta-SGD.

For each task, K gradient steps on the support loss, starting from the meta-learned initialisation theta (section 2.2):

    theta' = theta - alpha * grad L_support(theta)

The outer loss is L_query(theta') averaged over tasks, differentiated through the steps (eq. 1).

The other four configurations differ as follows, with theta = (body, head):

- FOMAML (``algo=fomaml``, section 5.2): the inner gradient is treated as a constant, so theta moves along
  grad L_query(theta').
- ANIL (``algo=anil``, Raghu et al. 2020): the inner loop adapts the head only, head' = head - alpha * grad_head L_support.
- BOIL (``algo=boil``, Oh et al. 2021): the inner loop adapts the body only, body' = body - alpha * grad_body L_support. The
  head stays as meta-learned, so the representation itself has to change. A trained model works for its number of ways only.
- Meta-SGD (``algo=metasgd``, Li et al. 2017, eq. 2): theta' = theta - alpha o grad L_support(theta) in one step, where
  alpha has one learned value, including its sign, for every weight.

Batch normalisation: ``transductive`` normalises a query by its query batch, as in the authors' code; ``inductive`` by the
support set (MetaBN, Bronskill et al. 2020). By default its scale and shift are adapted like any other weight; with
``adapt_batch_norm=false`` all tasks and steps share the meta-learned ones, as in the authors' code, which has a shift but
no scale. ANIL adapts none of them, since they are not in the head; BOIL's code adapts both. Meta-SGD's authors have
published no code: its paper has a step size for every weight, so both are adapted. When the test has another number of
ways than training, all rows of the head start at the mean of the trained rows.

Deviations from the paper: schedules are shorter unless an experiment file sets the paper's. Batch normalisation has epsilon
1e-5 (TensorFlow's was 1e-3). The head starts at zero instead of a random normal: it trains faster, and the initialisation
does not depend on the order of the labels. (BOIL's head starts as PyTorch initialises it, because no gradient would reach
the body otherwise.) ANIL, BOIL and Meta-SGD use MAML's defaults; BOIL's paper does not test this task, ANIL's tests it with
20 ways. Meta-SGD's alpha starts at one value for all weights instead of random values.

Logged: ``loss`` and ``accuracy`` on the queries after adaptation; ``inner_lr``, the mean of the step sizes, if they are
learned.

Measured on Omniglot, 5-way 1-shot, after ten minutes on one CPU core (transductive; 95% t interval over 1,000 test
episodes): maml 93.67 ± 0.36 % (1,156 iterations), fomaml 88.55 ± 0.50 % (1,330 iterations), anil 92.76 ± 0.43 % (1,286
iterations), boil 93.21 ± 0.36 % (1,034 iterations), metasgd 92.98 ± 0.39 % (1,005 iterations). The papers: MAML 98.7 ± 0.4
% by 60,000 iterations, FOMAML 98.3 % (in Reptile's), Meta-SGD 99.53 ± 0.26 %. ``scripts/leaderboard.sh --jobs 2
methods=maml,fomaml,anil,boil,metasgd``

No effect of ``adapt_batch_norm`` was found: after 600 iterations of maml, one seed, 90.97 ± 0.43 % with it and 90.85 ± 0.44 %
without, difference on the same 1,000 episodes 0.11 ± 0.15. ``fsl train algo=maml dataset=omniglot
train.iterations=600 algo.adapt_batch_norm=false``

    fsl train algo=maml dataset=omniglot                    # or algo=fomaml, anil, boil, metasgd
"""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt
from torch import nn
from typing_extensions import Unpack

from fsl_cli.algos.common.algorithm import BatchNormMode, Step
from fsl_cli.algos.common.gradient_learner import GradientLearner, UnrolledOptions, for_ways, mean_step_size
from fsl_cli.episodes import Episodes, Task
from fsl_cli.errors import FslError
from fsl_cli.inner.engines import EngineName
from fsl_cli.inner.inner_loop import Adapt, InnerLoop, adapted_names
from fsl_cli.inner.step_sizes import Learning, StepSizes


class MAML(GradientLearner):
    """Meta-learns an initialisation from which a few gradient steps solve a task.

    Args:
        backbone: images ``[B, C, H, W]`` to features ``[B, features]``.
        features: width of the backbone's output.
        ways: width of the head: the classes of a training episode, or the outputs of another problem.
        engine: how tasks are run, see `fsl_cli.inner.engines`.
        inner_steps: K in training, >= 1.
        inner_lr: alpha, > 0; the initial value if step sizes are learned.
        inner_lr_learning: how step sizes are learned, see `fsl_cli.inner.step_sizes.StepSizes`.
        first_order: ignore second derivatives (FOMAML).
        adapt: what the inner loop adapts: ``all``, the ``head`` (ANIL) or the ``body`` (BOIL).
        batch_norm: ``transductive`` or ``inductive``, see the module's docstring.
        options: see `UnrolledOptions`.

    Raises:
        FslError: the engine cannot run this inner loop.
    """

    learn2learn = True

    def __init__(
        self,
        backbone: nn.Module,
        features: int,
        ways: int,
        engine: EngineName = "auto",
        *,
        inner_steps: Annotated[int, Ge(1)] = 1,
        inner_lr: Annotated[float, Gt(0)] = 0.4,
        inner_lr_learning: Learning = "none",
        first_order: bool = False,
        adapt: Adapt = "all",
        batch_norm: BatchNormMode = "transductive",
        **options: Unpack[UnrolledOptions],
    ) -> None:
        super().__init__(
            backbone,
            features,
            ways,
            inner_steps=inner_steps,
            transductive=batch_norm == "transductive",
            zero_head=adapt != "body",  # a head of zeros would pass no gradient to the body
            **options,
        )
        named = dict(self.net.named_parameters())
        adapted = {name: named[name] for name in adapted_names(self.net, adapt, batch_norm=self.adapt_batch_norm)}
        self.step_sizes = StepSizes(adapted, inner_lr, inner_lr_learning, inner_steps)
        self.first_order, self.adapt = first_order, adapt
        self.set_engine(engine, ways)

    def task_problems(self, task: Task) -> list[FslError]:
        """With ``adapt=body`` the head is never adapted, so a test needs the ways of training."""
        trained = self.net.head.out_features
        if self.adapt != "body" or task.sizes["ways"] == trained:
            return []
        what = f"{task.sizes['ways']} ways, but with algo.adapt=body the head stays as it was trained, for {trained} ways"
        return [FslError(what, where="task.ways", hint=f"use {trained}")]

    def loss(self, episodes: Episodes) -> Step:
        """Query loss after adaptation (the loss in eq. 1)."""
        logits = self.outputs_after(episodes, [self.inner_steps])[-1]
        return Step(self.query_losses(episodes, logits).mean(), logits.detach(), mean_step_size(self.step_sizes))

    def inner_loop(self, ways: int) -> InnerLoop:
        """See `StepLearner`."""
        return InnerLoop(
            self.net.with_ways(ways),
            self.adapt,
            for_ways(self.step_sizes(), self.net, ways),
            self.first_order,
            self.transductive,
            self.checkpoint_inner,
            self.rule,
        )
