"""MAML++: how to train your MAML (Antoniou, Edwards & Storkey 2019). MAML with the paper's remedies, each a switch.

- Step sizes (section 4, LSLR): ``inner_lr_learning=per_layer_per_step`` learns one for every tensor and every step.
- Multi-step loss (MSL, eq. 5): the outer loss is sum_i v_i L_query(theta_i) over the parameters after every step i of K.
  The weights v start at 1/K; over ``multi_step_iterations`` outer steps those of the earlier steps fall to
  0.03/K and the last one takes what they lose. From then on only the last step counts (``multi_step_iterations=0``: from
  the start), which is also the faster computation.
- Batch normalisation of every step (BNRS, BNWB): with ``per_step_batch_norm`` every step has its own scale and shift,
  meta-learned, not adapted, and every step is normalised by the statistics of its own forward pass. The queries after
  step i see the scale and shift of the i-th step.
- Derivative-order annealing (DA): the first ``first_order_iterations`` outer steps ignore second derivatives.
- Cosine annealing of the outer rate (CA): ``train.schedule=cosine``.

Tested with more steps than trained, further steps use the step size, scale and shift of the last. Batch normalisation:
``transductive`` normalises a query by its query batch, as in the authors' code; ``inductive`` by the support set.

Deviations from the paper: running averages of the statistics of every step are not kept; the authors' code keeps them but
always normalises by the batch in hand. Annealing counts outer steps, not epochs. One model is tested, not the
ensemble of the five best of three seeds. The head starts at zero and other ways are served as in `fsl_cli.algos.maml`.

Logged: ``loss``, the weighted sum, and ``last_step_loss`` and ``accuracy``, on the queries after the last step;
``inner_lr`` mean of the step sizes when learned; ``last_step_importance``, v_K.

    fsl train algo=mamlpp dataset=omniglot
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from fsl_cli import metrics
from fsl_cli.algos.algorithm import BatchNormMode, Step
from fsl_cli.algos.maml import for_ways
from fsl_cli.algos.step_learner import StepLearner, TestSteps, steps_in_test
from fsl_cli.augmentation import Augmentation, with_augmented_support
from fsl_cli.backbones.batch_norm import BatchNorm
from fsl_cli.episodes import Episodes, Task
from fsl_cli.inner.engines import ENGINES, EngineName
from fsl_cli.inner.inner_loop import Classifier, InnerLoop
from fsl_cli.inner.step_sizes import Learning, StepSizes
from fsl_cli.inner.update_rules import InnerOptimizer, update_rule

_SMALLEST = 0.03  # times 1/K, what multi-step annealing leaves to the earlier steps, as in the authors' code


class MAMLPlusPlus(StepLearner):
    """MAML with learned step sizes, scales and shifts for every step, and an outer loss of every step.

    Args:
        backbone: images ``[B, C, H, W]`` to features ``[B, features]``.
        features: width of the backbone's output.
        ways: classes of a training episode; the width of the head.
        engine: how tasks are run, see `fsl_cli.inner.engines`.
        inner_steps: K while training.
        test_inner_steps: K in `predict`, the last one of a list; None: as while training.
        inner_lr: where learned step sizes start.
        inner_lr_learning: see `StepSizes`.
        inner_optimizer: see `fsl_cli.inner.update_rules`.
        inner_weight_decay: times theta, added to the inner gradient.
        multi_step_iterations: outer steps with the multi-step loss.
        per_step_batch_norm: scale and shift of batch normalisation for every step.
        first_order_iterations: outer steps without second derivatives.
        batch_norm: see above.
        train_queries: query images per class of a training episode; None: as in the tested task.
        augment_support: see `fsl_cli.augmentation`.
        augment_copies: changed copies of each support image.
        checkpoint_inner: run the inner steps again for the outer gradient instead of keeping all of them in memory.

    Raises:
        FslError: the engine cannot run this inner loop.
    """

    importance: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        features: int,
        ways: int,
        engine: EngineName = "auto",
        *,
        inner_steps: Annotated[int, Ge(1)] = 5,
        test_inner_steps: TestSteps = None,
        inner_lr: Annotated[float, Gt(0)] = 0.1,
        inner_lr_learning: Learning = "per_layer_per_step",
        inner_optimizer: InnerOptimizer = "sgd",
        inner_weight_decay: Annotated[float, Ge(0)] = 0.0,
        multi_step_iterations: Annotated[int, Ge(0)] = 500,
        per_step_batch_norm: bool = True,
        first_order_iterations: Annotated[int, Ge(0)] = 0,
        batch_norm: BatchNormMode = "transductive",
        train_queries: Annotated[int, Ge(1)] | None = None,
        augment_support: Augmentation = "none",
        augment_copies: Annotated[int, Ge(1)] = 1,
        checkpoint_inner: bool = False,
    ) -> None:
        super().__init__()
        self.net = Classifier(backbone, features, ways)
        nn.init.zeros_(self.net.head.weight)
        nn.init.zeros_(self.net.head.bias)
        self.affine = PerStepAffine(self.net, inner_steps if per_step_batch_norm else 0)
        adapted = {name: theta for name, theta in self.net.named_parameters() if theta.requires_grad}
        self.step_sizes = StepSizes(adapted, inner_lr, inner_lr_learning, inner_steps)
        self.inner_steps = inner_steps
        self.test_steps = steps_in_test(test_inner_steps, inner_steps)
        self.rule = update_rule(inner_optimizer, inner_weight_decay)
        self.multi_step_iterations, self.first_order_iterations = multi_step_iterations, first_order_iterations
        self.transductive = batch_norm == "transductive"
        self.train_queries = train_queries
        self.augmentation = augment_support, augment_copies
        self.checkpoint_inner = checkpoint_inner
        # A tensor, since torch.compile compiles again whenever a number of a module has changed.
        self.register_buffer("importance", torch.ones(inner_steps), persistent=False)
        self.begin_iteration(0)
        self._engine = ENGINES[engine]
        self._engine.check(self._inner_loop(ways))

    def train_task(self, task: Task) -> Task:
        """The tested task with ``train_queries`` queries."""
        return Task(task.ways, task.shots, self.train_queries or task.queries)

    def begin_iteration(self, iteration: int) -> None:
        """Set what is annealed."""
        self._multi_step = iteration < self.multi_step_iterations
        self._first_order = iteration < self.first_order_iterations
        self.importance.copy_(importance_of_steps(self.inner_steps, iteration, self.multi_step_iterations))

    def loss(self, episodes: Episodes) -> Step:
        """Query loss after every step, weighted (eq. 5)."""
        steps = range(1, self.inner_steps + 1) if self._multi_step else [self.inner_steps]
        logits = self.logits_after(episodes, steps)
        losses = torch.stack([metrics.cross_entropy(each, episodes.query_y).mean() for each in logits])
        logged = {"last_step_loss": losses[-1].detach(), "last_step_importance": self.importance[-1]}
        alpha = self.step_sizes.mean()
        if alpha is not None:
            logged["inner_lr"] = alpha
        return Step((self.importance[-len(losses) :] * losses).sum(), logits[-1].detach(), logged)

    def logits_after(self, episodes: Episodes, steps: Sequence[int]) -> Tensor:
        """Query logits after each number of steps."""
        episodes = with_augmented_support(episodes, *self.augmentation)
        return self._engine.run(self._inner_loop(episodes.ways), episodes, steps)

    def _inner_loop(self, ways: int) -> InnerLoop:
        return InnerLoop(
            self.net.with_ways(ways),
            "all",
            for_ways(self.step_sizes(), self.net, ways),
            self._first_order,
            self.transductive,
            self.checkpoint_inner,
            self.rule,
            self.affine(),
        )


class PerStepAffine(nn.Module):
    """Scale and shift of every batch normalisation of a network, for every step.

    The network's own ones are not learned then.

    Args:
        net: the network.
        steps: how many steps have their own; 0: the network keeps its own.
    """

    def __init__(self, net: nn.Module, steps: int) -> None:
        super().__init__()
        norms = {name: layer for name, layer in net.named_modules() if isinstance(layer, BatchNorm) and steps}
        own = {f"{name}.{each}": theta for name, layer in norms.items() for each, theta in layer.named_parameters()}
        self._names, self._steps = list(own), steps
        self.values = nn.ParameterList([theta.detach().repeat(steps, 1) for theta in own.values()])
        for theta in own.values():
            theta.requires_grad_(False)

    def forward(self) -> list[dict[str, Tensor]]:
        """Weights by name for each step."""
        if not self._names:
            return [{}]
        return [{name: value[s] for name, value in zip(self._names, self.values, strict=True)} for s in range(self._steps)]


def importance_of_steps(steps: int, iteration: int, annealed_over: int) -> Tensor:
    """The weights v of the multi-step loss in an outer step, ``[steps]``, with sum 1."""
    if iteration >= annealed_over:
        return torch.eye(steps)[-1]
    share = 1 / steps
    earlier = max(share * (1 - iteration / annealed_over), _SMALLEST * share)
    importance = torch.full((steps,), earlier)
    importance[-1] = 1 - (steps - 1) * earlier
    return importance
