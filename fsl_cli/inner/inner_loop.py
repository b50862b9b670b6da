"""What one task does with its support set: adapt a classifier, then classify the queries."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fsl_cli.backbones.batch_norm import statistics_from
from fsl_cli.inner.update_rules import PLAIN_SGD, UpdateRule

Adapt = Literal["all", "head", "body"]


class Classifier(nn.Sequential):
    """A backbone (``body``) with a linear ``head``, images ``[B, C, H, W]`` to logits ``[B, ways]``."""

    body: nn.Module
    head: nn.Linear

    def __init__(self, body: nn.Module, features: int, ways: int) -> None:
        super().__init__(OrderedDict(body=body, head=nn.Linear(features, ways)))

    def with_ways(self, ways: int) -> Classifier:
        """Give the classifier another number of ways: the same body, every row of the head the mean of the rows here.

        The rows of a meta-trained head are interchangeable, since labels are drawn at random in every episode; one
        shared row does as well as several (Ye & Chao 2022, "How to train your MAML to excel in few-shot
        classification"). The new head is a copy: no gradient reaches the one it was made from.
        """
        if ways == self.head.out_features:
            return self
        with torch.device("meta"):  # its values are replaced: draw no random numbers for them
            other = Classifier(self.body, self.head.in_features, ways)
        for name, old in self.head.named_parameters():
            setattr(other.head, name, nn.Parameter(mean_row(old.detach(), ways)))
        return other


def mean_row(values: Tensor, ways: int) -> Tensor:
    """The mean over the first axis, repeated ``ways`` times: ``[N, ...]`` to ``[ways, ...]``."""
    return values.mean(0, keepdim=True).repeat(ways, *[1] * (values.ndim - 1))


def adapted_names(net: Classifier, which: Adapt) -> list[str]:
    """Names of the parameters that the inner loop moves."""
    names = [name for name, _ in net.named_parameters()]
    return names if which == "all" else [name for name in names if name.startswith(f"{which}.")]


@dataclass(frozen=True)
class InnerLoop:
    """What the inner loop of every task does; an engine runs it on a batch of tasks.

    Attributes:
        net: the classifier.
        which: what is adapted; the rest stays as it was meta-learned.
        step_sizes: alpha by parameter name for step 0, 1, ...; the last entry is for all further steps too.
        first_order: treat inner gradients as constants.
        transductive: queries are normalised by the statistics of the query batch; otherwise by those of the support
            set, so that a query's logits do not depend on the other queries (MetaBN, Bronskill et al. 2020).
        checkpoint: trade time for memory, see `adapt`.
        rule: what a step makes of a gradient.
        step_weights: weights by name that stand in for those of the net in step 0, 1, ..., last entry as above; the
            queries after step i see those of step i.
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
        """The module that the steps run through: the features do not change while only the head adapts."""
        return self.net.head if self.which == "head" else self.net

    def local(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What is named as in `net`, named as in `module`."""
        if self.which != "head":
            return dict(values)
        return {name.removeprefix("head."): value for name, value in values.items() if name.startswith("head.")}

    def query_outputs(
        self, module: nn.Module, forward: Callable[[Tensor], Tensor], support_x: Tensor, query_x: Tensor, axis: int = 0
    ) -> Tensor:
        """Outputs for the queries, normalised as ``transductive`` says.

        Args:
            module: the module that ``forward`` runs, whose batch normalisation is meant.
            forward: inputs to outputs.
            support_x: support images or features.
            query_x: query images or features.
            axis: the axis over images.
        """
        if self.transductive:
            return forward(query_x)
        shots = support_x.shape[axis]
        with statistics_from(module, "first_rows", rows=shots):
            return forward(torch.cat([support_x, query_x], axis)).narrow(axis, shots, query_x.shape[axis])
