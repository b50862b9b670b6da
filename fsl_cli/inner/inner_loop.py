"""What one task does with its support set: adapt a classifier, then classify the queries."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsl_cli.backbones.batch_norm import statistics_from
from fsl_cli.inner.adaptation import GradientOf, Parameters, adapt

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
    """The inner loop of one task, written once; engines map it over tasks.

    Attributes:
        net: the classifier.
        which: what is adapted; the rest stays as it was meta-learned.
        step_sizes: alpha by parameter name.
        first_order: treat inner gradients as constants.
        transductive: queries are normalised by the statistics of the query batch; otherwise by those of the support
            set, so that a query's logits do not depend on the other queries (MetaBN, Bronskill et al. 2020).
        checkpoint: trade time for memory, see `adapt`.
    """

    net: Classifier
    which: Adapt
    step_sizes: Mapping[str, Tensor | float]
    first_order: bool
    transductive: bool
    checkpoint: bool = False

    def query_logits(
        self, support_x: Tensor, support_y: Tensor, query_x: Tensor, *, steps: int, gradient_of: GradientOf
    ) -> Tensor:
        """Adapt to one support set and return the logits of its queries.

        Args:
            support_x: ``[N*K, C, H, W]``.
            support_y: int64 ``[N*K]``.
            query_x: ``[N*Q, C, H, W]``.
            steps: inner steps.
            gradient_of: how to differentiate, `autograd_gradient` or `functional_gradient`.

        Returns:
            ``[N*Q, N]``.
        """
        module, step_sizes = self.adapted_part()
        if module is self.net.head:  # the features do not change while the head adapts: compute them once
            support_x, query_x = self.net.body(support_x), self.query_outputs(self.net.body, self.net.body, support_x, query_x)
        parameters: Parameters = dict(module.named_parameters())
        adapted = {name: parameters[name] for name in step_sizes}

        def support_loss(adapted: Parameters) -> Tensor:
            return F.cross_entropy(torch.func.functional_call(module, parameters | adapted, support_x), support_y)

        gradient = partial(gradient_of, support_loss, first_order=self.first_order)
        adapted = adapt(gradient, adapted, step_sizes, steps, checkpoint=self.checkpoint)
        forward = partial(torch.func.functional_call, module, parameters | adapted)
        return self.query_outputs(module, forward, support_x, query_x)

    def adapted_part(self) -> tuple[nn.Module, Mapping[str, Tensor | float]]:
        """The module that the steps run through, and alpha by the names of its adapted parameters."""
        if self.which != "head":
            return self.net, self.step_sizes
        return self.net.head, {name.removeprefix("head."): alpha for name, alpha in self.step_sizes.items()}

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
