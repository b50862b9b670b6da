"""Proto-MAML (Triantafillou et al. 2020, "Meta-Dataset", section 3).

A prototypical network is a linear classifier: with the class means c_n of the support features, the negative squared
distance is -|f(x) - c_n|^2 = 2 c_n . f(x) - |c_n|^2 - |f(x)|^2, and the last term is the same for all classes. Proto-MAML
is MAML whose head starts, in each task, from that classifier:

    W_n = 2 c_n,    b_n = -|c_n|^2

It then takes K gradient steps on the support loss over all weights, head and body. The outer loss is the query loss after
the steps, differentiated through the steps and through the prototypes (``first_order=true`` treats the inner gradients as
constants, but still differentiates the prototypes). With zero steps it is ProtoNet. Nothing of the head is meta-learned, so
a task may have any number of ways. With one shot, a support image is its own prototype: once the classes are well
separated, its loss is nearly zero and the steps change little. They matter with more shots.

The logits are squared distances, tens of times larger than the logits of MAML's zero head, and so are the gradients of the
body: ``inner_lr`` is smaller than MAML's. W has no further factor, so features of another size (a wider backbone,
``downsample=max_pool``) need another ``inner_lr``.

Batch normalisation: ``transductive`` normalises a query by its query batch, as MAML does; ``inductive`` by the support set
(MetaBN, Bronskill et al. 2020). Support features, including those of the prototypes, are normalised by the support set. By
default its scale and shift are adapted like any other weight; the authors' code does not (``adapt_batch_norm=false``).

Deviations from the paper: on Meta-Dataset it uses a ResNet-18 that may be pre-trained, first-order gradients and episodes
of varying ways and shots. Here the backbone is trained from scratch on episodes of one shape, and second derivatives are
included by default. By default there is one step; theirs, chosen by search, are six on ImageNet. With ``augment_support``
the changed copies are part of the prototypes.

Logged: ``loss`` and ``accuracy`` on the queries after adaptation; ``inner_lr``, the mean of the step sizes, if they are
learned.

Measured on Omniglot, 5-way 1-shot, after ten minutes on one CPU core (3,257 iterations): 96.63 ± 0.28 % (transductive; 95%
t interval over 1,000 test episodes). ``scripts/leaderboard.sh --jobs 2 methods=proto_maml``

    fsl train algo=proto_maml dataset=omniglot
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from annotated_types import Ge, Gt
from torch import Tensor, nn
from typing_extensions import Unpack

from fsl_cli.algos.common.algorithm import BatchNormMode
from fsl_cli.algos.common.gradient_learner import UnrolledOptions
from fsl_cli.algos.common.prototypes import class_means
from fsl_cli.algos.maml import MAML
from fsl_cli.episodes import Classification, Episodes
from fsl_cli.inner.engines import EngineName
from fsl_cli.inner.step_sizes import Learning
from fsl_cli.inner.update_rules import Parameters


class ProtoMAML(MAML):
    """MAML whose head starts from the prototypes of the task.

    Args:
        backbone: images ``[B, C, H, W]`` to features ``[B, features]``.
        features: width of the backbone's output.
        ways: classes of a training episode.
        engine: how tasks are run, see `fsl_cli.inner.engines`.
        inner_steps: K in training, >= 1.
        inner_lr: alpha, > 0; the initial value if step sizes are learned.
        inner_lr_learning: how step sizes are learned, see `fsl_cli.inner.step_sizes.StepSizes`.
        first_order: ignore second derivatives.
        batch_norm: ``transductive`` or ``inductive``, see the module's docstring.
        options: see `UnrolledOptions`.

    Raises:
        FslError: the engine cannot run this inner loop.
    """

    learn2learn = False
    problems = (Classification,)
    any_ways = True

    def __init__(
        self,
        backbone: nn.Module,
        features: int,
        ways: int,
        engine: EngineName = "auto",
        *,
        inner_steps: Annotated[int, Ge(1)] = 1,
        inner_lr: Annotated[float, Gt(0)] = 0.1,
        inner_lr_learning: Learning = "none",
        first_order: bool = False,
        batch_norm: BatchNormMode = "transductive",
        **options: Unpack[UnrolledOptions],
    ) -> None:
        super().__init__(
            backbone,
            features,
            ways,
            engine,
            inner_steps=inner_steps,
            inner_lr=inner_lr,
            inner_lr_learning=inner_lr_learning,
            first_order=first_order,
            batch_norm=batch_norm,
            **options,
        )
        self.net.head.requires_grad_(False)  # only its shape is used: each task computes its own values

    def outputs_after(self, episodes: Episodes, steps: Sequence[int]) -> Tensor:
        """See `StepLearner`; the head starts from the prototypes."""
        tasks = self.tasks(episodes)
        support = tasks.episodes.support
        prototypes = class_means(tasks.support_features(), support.y, episodes.ways, support.mask)
        head = {f"head.{name}": value.to(self.net.head.weight) for name, value in prototype_head(prototypes).items()}
        return tasks.outputs_after(steps, start=tasks.start | tasks.pack_each(head))


def prototype_head(prototypes: Tensor) -> Parameters:
    """The linear layer of each task whose logits are negative squared distances, up to one constant per query.

    Args:
        prototypes: ``[T, N, D]``.

    Returns:
        ``weight`` ``[T, N, D]`` and ``bias`` ``[T, N]``.
    """
    return {"weight": 2 * prototypes, "bias": -prototypes.square().sum(-1)}
