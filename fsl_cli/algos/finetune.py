"""Fine-tuning: pre-train, then fine-tune all weights on the support set of each task.

The plain transfer-learning baseline (for example Triantafillou et al. 2020, "Meta-Dataset", section 3, and Dhillon et al.
2020, "A baseline for few-shot image classification"; Chen et al. 2019 freeze the network, see `fsl_cli.algos.baseline`).
The network is trained to classify images into all classes of the training split, with a linear head and cross-entropy
(`fsl_cli.algos.common.pretraining`). In a test the network gets a new linear head, and both take K = ``test_inner_steps``
steps on the support set of the task, through the inner loop of MAML:

    theta <- theta - inner_lr * grad L_support(theta),  K times, from the pre-trained body and a head of zeros

On a data set without classes (``dataset=sinusoid``) one network is trained on the examples of all tasks together; in a test
the network and its head take the steps. This is the "pretrained on all tasks" of Finn et al. 2017, section 5.1.

Batch normalisation: while training by the mini-batch. While fine-tuning by the support set; afterwards ``transductive``
normalises a query by its query batch, ``inductive`` by the support set, as in `fsl_cli.algos.maml`. The running averages of
training are not used. Its scale and shift are fine-tuned as well.

Deviations: there is no single paper to deviate from. Chosen here: the new head starts at zero, every step uses the whole
support set, and all weights have the same step size. Dhillon et al. start the head at the support features and also
minimise the entropy of the queries.

Logged: ``loss`` and ``accuracy`` over all classes of the training split.

Measured on Omniglot, 5-way 1-shot, after ten minutes on one CPU core (8,037 iterations): 95.75 ± 0.28 % (transductive; 95%
t interval over 1,000 test episodes). ``scripts/leaderboard.sh --jobs 2 methods=finetune``

    fsl train algo=finetune dataset=omniglot
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import nn
from typing_extensions import Unpack

from fsl_cli.algos.common.algorithm import BatchNormMode
from fsl_cli.algos.common.pretraining import LinearHead, Pretrained
from fsl_cli.algos.common.step_learner import DescentOptions, StepLearner
from fsl_cli.episodes import Problem
from fsl_cli.inner.engines import EngineName
from fsl_cli.inner.inner_loop import Classifier, InnerLoop

_TEST_STEPS = 10  # unless test_inner_steps says otherwise


class FineTune(StepLearner, Pretrained):
    """Fine-tunes a pre-trained network and a new head on each task.

    Args:
        backbone: images ``[B, C, H, W]`` to features ``[B, features]``.
        features: width of the backbone's output.
        classes: number of classes of the training split; None: there are none, and the head has the outputs of ``problem``.
        problem: what is predicted; needed where there are no classes.
        engine: how tasks are run, see `fsl_cli.inner.engines`.
        train_ways: classes of a training mini-batch, two images each, >= 2.
        inner_lr: step size of the steps on the support set, > 0.
        batch_norm: ``transductive`` or ``inductive``, see the module's docstring.
        options: see `DescentOptions`; ``test_inner_steps`` is 10 by default.

    Raises:
        FslError: the engine cannot run this inner loop.
    """

    problems = (Problem,)  # of any kind
    embeds = False
    learn2learn = True

    def __init__(
        self,
        backbone: nn.Module,
        features: int,
        classes: int | None,
        engine: EngineName = "auto",
        problem: Problem | None = None,
        *,
        train_ways: Annotated[int, Ge(2)] = 64,
        inner_lr: Annotated[float, Gt(0)] = 0.1,
        batch_norm: BatchNormMode = "transductive",
        **options: Unpack[DescentOptions],
    ) -> None:
        assert classes or problem
        head = LinearHead(features, classes or problem.outputs)  # type: ignore[union-attr]
        super().__init__(backbone, head, train_ways if classes else None)
        self.features, self.inner_lr = features, inner_lr
        self.set_steps(_TEST_STEPS, transductive=batch_norm == "transductive", **options)
        self.set_engine(engine, head.weight.shape[0])

    def inner_loop(self, ways: int) -> InnerLoop:
        """The pre-trained network; its head is replaced by zeros if it is one over the classes of the training split."""
        with torch.device("meta"):  # its values are replaced: draw no random numbers for them
            net = Classifier(self.backbone, self.features, ways)
        if self.train_ways is None:
            net.head.weight = self.head.weight
            net.head.register_parameter("bias", self.head.bias)
            return self.descent(net, self.inner_lr)
        net.head = net.head.to_empty(device=self.head.weight.device).to(self.head.weight.dtype)
        for parameter in net.head.parameters():
            nn.init.zeros_(parameter)
        return self.descent(net, self.inner_lr)
