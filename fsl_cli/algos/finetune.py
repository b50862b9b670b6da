"""Fine-tuning: pre-train, then fine-tune all weights on the support set of each task.

The plain transfer-learning baseline (for example Chen et al. 2019, "A closer look at few-shot classification", and
Triantafillou et al. 2020, "Meta-Dataset", section 3). The network is trained to tell all classes of the training split apart,
with a linear head and cross-entropy (`fsl_cli.algos.pretraining`). In a test a new linear head is put on the network, and
the network and the head take ``test_steps`` gradient steps of size ``test_lr`` on the support set of the task, through the
inner loop of MAML.

Batch normalisation: while training by the mini-batch. While fine-tuning by the support set, and then ``transductive``
normalises a query by its query batch, ``inductive`` by the support set, as in `fsl_cli.algos.maml`. The running averages of
training are not used.

Choices: the new head starts at zero; every step uses the whole support set; one step size for all weights.

Logged: ``loss`` and ``accuracy`` over all classes of the training split.

    fsl train algo=finetune dataset=omniglot
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from fsl_cli.algos.algorithm import BatchNormMode
from fsl_cli.algos.pretraining import LinearHead, Pretrained
from fsl_cli.episodes import Episodes
from fsl_cli.inner.engines import ENGINES, EngineName
from fsl_cli.inner.inner_loop import Classifier, InnerLoop


class FineTune(Pretrained):
    """Fine-tunes a pre-trained network and a new head on each task.

    Args:
        backbone: images ``[B, C, H, W]`` to features ``[B, features]``.
        features: width of the backbone's output.
        classes: of the training split.
        engine: how tasks are run, see `fsl_cli.inner.engines`.
        train_ways: classes of a training mini-batch, two images each.
        test_steps: gradient steps on the support set.
        test_lr: their step size.
        batch_norm: see above.

    Raises:
        FslError: the engine cannot run this inner loop.
    """

    embeds = False

    def __init__(
        self,
        backbone: nn.Module,
        features: int,
        classes: int,
        engine: EngineName = "auto",
        *,
        train_ways: Annotated[int, Ge(2)] = 64,
        test_steps: Annotated[int, Ge(0)] = 10,
        test_lr: Annotated[float, Gt(0)] = 0.1,
        batch_norm: BatchNormMode = "transductive",
    ) -> None:
        super().__init__(backbone, LinearHead(features, classes), train_ways)
        self.features, self.test_steps, self.test_lr = features, test_steps, test_lr
        self.transductive = batch_norm == "transductive"
        self._engine = ENGINES[engine]
        self._engine.check(self._inner_loop(2))

    @torch.no_grad()
    def predict(self, episodes: Episodes) -> Tensor:
        """Query logits after fine-tuning."""
        return self._engine.run(self._inner_loop(episodes.ways), episodes, self.test_steps)

    def _inner_loop(self, ways: int) -> InnerLoop:
        """The pre-trained network with a head of zeros."""
        with torch.device("meta"):  # the head's values are replaced: draw no random numbers for them
            net = Classifier(self.backbone, self.features, ways)
        net.head = net.head.to_empty(device=self.head.weight.device).to(self.head.weight.dtype)
        for parameter in net.head.parameters():
            nn.init.zeros_(parameter)
        step_sizes = {name: self.test_lr for name, _ in net.named_parameters()}
        return InnerLoop(net, "all", step_sizes, first_order=True, transductive=self.transductive)
