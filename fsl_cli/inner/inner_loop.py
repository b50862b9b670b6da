"""The inner loop of one task: adapt a classifier to the support set, then classify the queries."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fsl_cli.backbones.batch_norm import BatchNorm, statistics_from
from fsl_cli.inner.update_rules import PLAIN_SGD, UpdateRule

Adapt = Literal["all", "head", "body"]


class Classifier(nn.Sequential):
    """A backbone (``body``) with a linear ``head``; maps images ``[B, C, H, W]`` to logits ``[B, ways]``."""

    body: nn.Module
    head: nn.Linear

    def __init__(self, body: nn.Module, features: int, ways: int) -> None:
        super().__init__(OrderedDict(body=body, head=nn.Linear(features, ways)))

    def with_ways(self, ways: int) -> Classifier:
        """A classifier for another number of ways: the same body, and a head whose rows are all the mean of the current rows.

        The rows of a meta-trained head are interchangeable, since labels are assigned at random in every episode; one
        shared row performs as well as several (Ye & Chao 2022, "How to train your MAML to excel in few-shot
        classification"). The new head is a copy: no gradient flows to the original head.
        """
        if ways == self.head.out_features:
            return self
        with torch.device("meta"):  # the values are replaced below: do not draw random initial ones
            other = Classifier(self.body, self.head.in_features, ways)
        for name, old in self.head.named_parameters():
            setattr(other.head, name, nn.Parameter(mean_row(old.detach(), ways)))
        return other


def mean_row(values: Tensor, ways: int) -> Tensor:
    """The mean over the first axis of ``[N, ...]``, repeated ``ways`` times: ``[ways, ...]``."""
    return values.mean(0, keepdim=True).repeat(ways, *[1] * (values.ndim - 1))


def adapted_names(net: Classifier, which: Adapt, *, batch_norm: bool = True) -> list[str]:
    """Names of the parameters that the inner loop adapts.

    Args:
        net: the classifier.
        which: the part that is adapted.
        batch_norm: whether that includes the scale and shift of batch normalisation.
    """
    norms = [layer for layer in net.modules() if isinstance(layer, BatchNorm) and not batch_norm]
    kept = {id(theta) for layer in norms for theta in layer.parameters()}
    names = [name for name, theta in net.named_parameters() if id(theta) not in kept]
    return names if which == "all" else [name for name in names if name.startswith(f"{which}.")]


@dataclass(frozen=True)
class InnerLoop:
    """The options of the inner loop, the same for every task; an engine runs it on a batch of tasks.

    Attributes:
        net: the classifier.
        which: the part that is adapted; the rest keeps its meta-learned values.
        step_sizes: alpha by parameter name for step 0, 1, ...; the last entry also applies to all later steps. Parameters
            without one are not adapted.
        first_order: treat inner gradients as constants.
        transductive: queries are normalised by the statistics of the query batch; otherwise by those of the support
            set, so that a query's logits do not depend on the other queries (MetaBN, Bronskill et al. 2020).
        checkpoint: gradient checkpointing, which trades time for memory; see `adapt`.
        rule: the update rule that applies a gradient.
        step_weights: weights by name that replace those of the net in step 0, 1, ...; the last entry also applies to
            all later steps. The queries after step i use those of step i.
    """

    net: Classifier
    which: Adapt
    step_sizes: Sequence[Mapping[str, Tensor | float]]
    first_order: bool
    transductive: bool
    checkpoint: bool = False
    rule: UpdateRule = PLAIN_SGD
    step_weights: Sequence[Mapping[str, Tensor]] = ({},)

    @property
    def module(self) -> nn.Module:
        """The module that is run in every step: only the head if only the head adapts, since its features are constant."""
        return self.net.head if self.which == "head" else self.net

    def local(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values named as in `net`, renamed as in `module`; values of other parameters are dropped."""
        if self.which != "head":
            return dict(values)
        return {name.removeprefix("head."): value for name, value in values.items() if name.startswith("head.")}

    def query_outputs(
        self, module: nn.Module, forward: Callable[[Tensor], Tensor], support_x: Tensor, query_x: Tensor, axis: int = 0
    ) -> Tensor:
        """Outputs for the queries, with batch normalisation as set by ``transductive``.

        Args:
            module: the module that ``forward`` runs; its batch normalisation is configured.
            forward: maps inputs to outputs.
            support_x: support images or features.
            query_x: query images or features.
            axis: the axis that indexes images.
        """
        if self.transductive:
            return forward(query_x)
        shots = support_x.shape[axis]
        with statistics_from(module, "first_rows", rows=shots):
            return forward(torch.cat([support_x, query_x], axis)).narrow(axis, shots, query_x.shape[axis])
