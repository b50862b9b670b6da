"""MAML++: how to train your MAML (Antoniou, Edwards & Storkey 2019): MAML with improvements, each of which can be switched off.

- Step sizes (section 4, LSLR): ``inner_lr_learning=per_layer_per_step`` learns one for every tensor and every step.
- Multi-step loss (MSL, eq. 5): the outer loss is sum_i v_i L_query(theta_i) over the parameters after every step i of K.
  The weights v start at 1/K. Over ``multi_step_iterations`` outer steps the weights of the earlier steps fall to 0.03/K,
  and the weight of the last step grows by what they lose. After that only the last step counts, which is also faster to
  compute. With ``multi_step_iterations=0`` that is so from the start.
- Batch normalisation of every step (BNRS, BNWB): with ``per_step_batch_norm`` every step has its own scale and shift. They
  are meta-learned, never adapted, whatever ``adapt_batch_norm`` is (without ``per_step_batch_norm`` that decides); the
  queries after step i use those of step i. A step is normalised by its own batch or, in tests with ``batch_norm=running``,
  by running averages of its own.
- Derivative-order annealing (DA): the first ``first_order_iterations`` outer steps ignore second derivatives.
- Cosine annealing of the outer learning rate (CA): ``train.schedule=cosine``; the authors end at a hundredth of the initial
  rate, ``train.final_factor=0.01``.

Batch normalisation of a query: ``transductive`` by its query batch, as in the authors' code, which keeps running averages
for every step but never uses them; ``inductive`` by the support set; ``running``, what the paper describes: training is as
with ``transductive``, and in tests everything in a step, including the support images, is normalised by the running
averages of that step. These averages are collected in a second pass over the support and query batches, without gradients.
Most of what is learned is lost this way, since averages over tasks are not the statistics of five images: after two minutes
on one core (``train.max_minutes=2 algo.batch_norm=running``) 24.8 ± 1.2 %, and 55.9 ± 1.7 % when the same run is tested
with ``algo.batch_norm=transductive`` (Omniglot, n = 200). When a test takes more steps than training did, the additional
steps use the step size, scale, shift and averages of the last.

Deviations from the paper: annealing counts outer steps, not epochs. By default there are 3 steps (5 in the paper), 5
queries per class in training (1 in the authors' code), no derivative-order annealing (50 epochs in the paper, none in their
Omniglot configuration) and a shorter schedule. The network is the configured backbone, which uses strides and ReLUs where
theirs has max-pooling and leaky ReLUs (``backbone.downsample=max_pool backbone.negative_slope=0.01``) and Xavier's
initialisation. One model is tested; the paper's figures are means over three seeds, each an ensemble of the five best
epochs of one training. The initial head and other numbers of ways are treated as in `fsl_cli.algos.maml`.

Logged: ``loss``, the weighted sum; ``last_step_loss`` and ``accuracy`` on the queries after the last step; ``inner_lr``,
the mean of the step sizes, if they are learned; ``last_step_importance``, v_K.

Measured on Omniglot, 5-way 1-shot, after ten minutes on one CPU core (1,130 iterations): 91.78 ± 0.46 % (transductive; 95%
t interval over 1,000 test episodes). The paper, an ensemble of five epochs, mean of three seeds: 99.47 %.
``scripts/leaderboard.sh --jobs 2 methods=mamlpp``

    fsl train algo=mamlpp dataset=omniglot
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from typing_extensions import Unpack

from fsl_cli.algos.common.algorithm import Step
from fsl_cli.algos.common.full_precision import full_precision
from fsl_cli.algos.common.gradient_learner import GradientLearner, UnrolledOptions, for_ways, mean_step_size
from fsl_cli.algos.common.per_step_batch_norm import PerStepBatchNorm
from fsl_cli.backbones.batch_norm import statistics_from
from fsl_cli.episodes import Episodes
from fsl_cli.errors import FslError
from fsl_cli.inner.engines import EngineName
from fsl_cli.inner.inner_loop import InnerLoop, adapted_names
from fsl_cli.inner.step_sizes import Learning, StepSizes
from fsl_cli.inner.tasks import loop_tasks, vmap_tasks

_SMALLEST = 0.03  # times 1/K: the final weight of the earlier steps in multi-step annealing, as in the authors' code


class MAMLPlusPlus(GradientLearner):
    """MAML with step sizes, scales and shifts learned for every step, and an outer loss over all steps.

    Args:
        backbone: images ``[B, C, H, W]`` to features ``[B, features]``.
        features: width of the backbone's output.
        ways: width of the head: the classes of a training episode, or the outputs of another problem.
        engine: how tasks are run, see `fsl_cli.inner.engines`.
        inner_steps: K in training, >= 1.
        inner_lr: initial value of the learned step sizes, > 0.
        inner_lr_learning: how step sizes are learned, see `fsl_cli.inner.step_sizes.StepSizes`.
        multi_step_iterations: outer steps with the multi-step loss, at the start, >= 0.
        per_step_batch_norm: scale and shift of batch normalisation for every step; with ``running`` also averages.
        first_order_iterations: outer steps without second derivatives, at the start, >= 0.
        batch_norm: ``transductive``, ``inductive`` or ``running``, see the module's docstring.
        options: see `UnrolledOptions`.

    Raises:
        FslError: the engine cannot run this inner loop, or ``running`` has no batch normalisation to average.
    """

    learn2learn = True
    importance: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        features: int,
        ways: int,
        engine: EngineName = "auto",
        *,
        inner_steps: Annotated[int, Ge(1)] = 5,
        inner_lr: Annotated[float, Gt(0)] = 0.1,
        inner_lr_learning: Learning = "per_layer_per_step",
        multi_step_iterations: Annotated[int, Ge(0)] = 500,
        per_step_batch_norm: bool = True,
        first_order_iterations: Annotated[int, Ge(0)] = 0,
        batch_norm: Literal["transductive", "inductive", "running"] = "transductive",
        **options: Unpack[UnrolledOptions],
    ) -> None:
        transductive = batch_norm == "transductive"
        super().__init__(backbone, features, ways, inner_steps=inner_steps, transductive=transductive, **options)
        self.running = batch_norm == "running"
        if self.running and not per_step_batch_norm:
            what = "running averages are kept for every step, but algo.per_step_batch_norm=false"
            raise FslError(what, where="algo.batch_norm", hint="use inductive, or algo.per_step_batch_norm=true")
        self.batch_norms = PerStepBatchNorm(self.net, inner_steps if per_step_batch_norm else 0)
        if self.running and not list(self.batch_norms.parameters()):
            raise FslError("the backbone has no batch normalisation to average", where="algo.batch_norm", hint="use inductive")
        named = dict(self.net.named_parameters())
        names = adapted_names(self.net, "all", batch_norm=self.adapt_batch_norm)
        adapted = {name: named[name] for name in names if named[name].requires_grad}
        self.step_sizes = StepSizes(adapted, inner_lr, inner_lr_learning, inner_steps)
        self.multi_step_iterations, self.first_order_iterations = multi_step_iterations, first_order_iterations
        # A tensor, because torch.compile recompiles whenever a Python number of a module changes.
        self.register_buffer("importance", torch.ones(inner_steps), persistent=False)
        self.begin_iteration(0)
        self._running_tasks = loop_tasks if engine == "loop" else vmap_tasks
        self.set_engine(engine, ways)

    def begin_iteration(self, iteration: int) -> None:
        """Set the weights of the multi-step loss and the order of the derivatives for this outer step."""
        self._multi_step = iteration < self.multi_step_iterations
        self._first_order = iteration < self.first_order_iterations
        self.importance.copy_(importance_of_steps(self.inner_steps, iteration, self.multi_step_iterations))

    def loss(self, episodes: Episodes) -> Step:
        """Query loss after every step, weighted (eq. 5); with ``running``, updates the running averages of every step."""
        episodes = self.augmented(episodes)
        if self.running:
            self._track(episodes)
        steps = range(1, self.inner_steps + 1) if self._multi_step else [self.inner_steps]
        inner = self.inner_loop(episodes.problem.outputs, first_order=self._first_order)
        logits = self._engine.run(inner, episodes, steps)
        losses = torch.stack([self.query_losses(episodes, each).mean() for each in logits])
        logged = {"last_step_loss": losses[-1].detach(), "last_step_importance": self.importance[-1]}
        logged |= mean_step_size(self.step_sizes)
        return Step((self.importance[-len(losses) :] * losses).sum(), logits[-1].detach(), logged)

    def outputs_after(self, episodes: Episodes, steps: Sequence[int]) -> Tensor:
        """See `StepLearner`; with ``running`` by the running averages of every step."""
        if not self.running:
            return super().outputs_after(episodes, steps)
        if not self.batch_norms.has_averages():
            what = "running is not valid: the run was trained without running averages of every step"
            raise FslError(what, where="algo.batch_norm", hint="use transductive or inductive, or train with running")
        # torch.func.vmap cannot normalise images of low precision by averages of full precision.
        episodes = self.augmented(episodes)
        with statistics_from(self.net, "running"), full_precision(episodes.support.x):
            return self._running_tasks(self.inner_loop(episodes.problem.outputs, averages=True), episodes).outputs_after(steps)

    @torch.no_grad()
    def _track(self, episodes: Episodes) -> None:
        """Update the running averages, one task after the other, so that they do not depend on the chunk of tasks."""
        inner = self.inner_loop(episodes.problem.outputs, averages=True)
        with statistics_from(self.net, "tracked_batch"):
            for task in episodes.split(1):
                loop_tasks(inner, task).outputs_after(range(1, self.inner_steps + 1))

    def inner_loop(self, ways: int, *, first_order: bool = True, averages: bool = False) -> InnerLoop:
        """See `StepLearner`; with ``averages`` a forward pass also uses, or updates, the running averages of its step."""
        return InnerLoop(
            self.net.with_ways(ways),
            "all",
            for_ways(self.step_sizes(), self.net, ways),
            first_order,
            self.transductive or self.running,
            self.checkpoint_inner,
            self.rule,
            self.batch_norms.weights(averages=averages),
        )


def importance_of_steps(steps: int, iteration: int, annealed_over: int) -> Tensor:
    """The weights v of the multi-step loss in an outer step, ``[steps]``, with sum 1."""
    if iteration >= annealed_over:
        return torch.eye(steps)[-1]
    share = 1 / steps
    earlier = max(share * (1 - iteration / annealed_over), _SMALLEST * share)
    importance = torch.full((steps,), earlier)
    importance[-1] = 1 - (steps - 1) * earlier
    return importance
