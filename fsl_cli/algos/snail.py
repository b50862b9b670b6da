"""SNAIL, the simple neural attentive learner (Mishra et al. 2018).

An episode is a sequence of its support images with their labels, in random order, followed by one query without a label
(zeros); the output at the last position gives the query's logits. The network combines two kinds of causal layers, each of
which appends its output to its input (figure 2 and the pseudo-code of section 3):

    dense block, dilation d:  h_t = tanh(f_t) sigmoid(g_t),   f, g convolutions of x_(t-d) and x_t, zero before the start
    TC block, length T:       dense blocks of dilation 1, 2, 4, ... below T, ceil(log2 T) of them
    attention block (k, v):   h_t = sum_(s<=t) softmax_s(q_t . k_s / sqrt(k)) v_s,   q, k, v affine maps of x

For Omniglot (section A.1) they are: attention (64, 32), TC (T, 128), attention (256, 128), TC (T, 128), attention
(512, 256), and a 1x1 convolution to the labels. T = ways * shots + 1 of the trained task; the weights fit any length, but
in longer sequences only attention reaches all the way back.

Since all layers are causal, the values at the support positions are the same for all queries: they are computed once, and
every query of an episode takes the last position. No query sees another, except through transductive batch normalisation.

Batch normalisation, in training and tests: ``inductive`` by the support images of the episode, so that no query sees
another; ``transductive`` by all its images.

Deviations from the paper: the backbone is the configured one, without the fully connected layer at its end, and its
features are layer-normalised. The pseudo-code has
dilations 2, 4, 8, ..., with which no position would see the previous one; here they are those of its figure 2, 1, 2, 4, ...
Schedules are shorter.

Logged: ``loss`` and ``accuracy`` on the queries of the training episodes.

Measured on Omniglot, 5-way 1-shot, after ten minutes on one CPU core (1,774 iterations): 92.93 ± 0.42 % (inductive; 95% t
interval over 1,000 test episodes). The paper: 99.07 ± 0.16 %. ``scripts/leaderboard.sh --jobs 2 methods=snail``

    fsl train algo=snail dataset=omniglot
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn
from typing_extensions import Unpack

from fsl_cli.algos.common.algorithm import Step
from fsl_cli.algos.common.sequences import Labelled, SequenceLearner, SequenceOptions, one_hot
from fsl_cli.episodes import Episodes
from fsl_cli.episodes.randomness import permutations
from fsl_cli.settings.sizes import Count, bounds
from fsl_cli.statistics.classification import cross_entropy


class Branches(NamedTuple):
    """Q sequences that differ only in their last position: ``support [T, S, C]`` and last positions ``query [T, Q, C]``."""

    support: Tensor
    query: Tensor

    def append(self, support: Tensor, query: Tensor) -> Branches:
        """Append channels."""
        return Branches(torch.cat([self.support, support], -1), torch.cat([self.query, query], -1))


class SNAIL(SequenceLearner):
    """Meta-learns a backbone and a network over the whole episode.

    Args:
        backbone: images ``[B, C, H, W]`` to features ``[B, D]``.
        features: D.
        ways: of the trained task, the width of a label; tests may have fewer.
        shots: of the trained task, >= 1; of a range, the largest counts: the temporal convolutions reach over
            ``ways * shots + 1`` positions.
        filters: channels of a dense block of the temporal convolutions, >= 1.
        options: see `SequenceOptions`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        features: int,
        ways: int,
        *,
        shots: Count = 1,
        filters: Annotated[int, Ge(1)] = 128,
        **options: Unpack[SequenceOptions],
    ) -> None:
        super().__init__(backbone, features, ways, **options)
        layers: list[DenseBlock | AttentionBlock] = []
        channels = features + ways

        def attention(keys: int, values: int) -> None:
            nonlocal channels
            layers.append(AttentionBlock(channels, keys, values))
            channels += values

        length = ways * bounds(shots)[1] + 1

        def temporal_convolutions(length: int) -> None:
            nonlocal channels
            for level in range((length - 1).bit_length()):
                layers.append(DenseBlock(channels, 2**level, filters))
                channels += filters

        attention(64, 32)
        temporal_convolutions(length)
        attention(256, 128)
        temporal_convolutions(length)
        attention(512, 256)
        self.layers = nn.ModuleList(layers)
        self.output = nn.Linear(channels, ways)

    def loss(self, episodes: Episodes) -> Step:
        """Cross-entropy of the queries."""
        support, query = self.embedding(episodes)
        logits = self.answer(support, query.features, episodes.seeds)
        return Step(cross_entropy(logits, episodes.query.y).mean(), logits.detach())

    def answer(self, support: Labelled, query: Tensor, seeds: Tensor) -> Tensor:
        """See `SequenceLearner`."""
        support = support.ordered(permutations(seeds, support.labels.shape[1], "support"))
        labels = one_hot(support.labels, self.ways, query.dtype)
        both = Branches(torch.cat([support.features, labels], -1), F.pad(query, (0, self.ways)))
        for layer in self.layers:
            both = layer(both)
        return self.output(both.query)


class DenseBlock(nn.Module):
    """A causal convolution of two positions with a gate, appended to its input.

    Args:
        channels: of the input.
        dilation: distance to the earlier position.
        filters: channels that are appended.
    """

    def __init__(self, channels: int, dilation: int, filters: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.now = nn.Linear(channels, 2 * filters)
        self.back = nn.Linear(channels, 2 * filters, bias=False)

    def forward(self, both: Branches) -> Branches:
        """Every position sees itself and the support position ``dilation`` steps before, zeros before the start."""
        positions = both.support.shape[1]
        # The earlier position of each of the S + 1 positions: zeros, or a position of the support set.
        back = F.pad(self.back(both.support[:, : max(0, positions + 1 - self.dilation)]), (0, 0, self.dilation, 0))
        back = back[:, : positions + 1]
        return both.append(
            _gated(self.now(both.support) + back[:, :positions]), _gated(self.now(both.query) + back[:, positions:])
        )


class AttentionBlock(nn.Module):
    """Causal attention with one head, appended to its input.

    Args:
        channels: of the input.
        keys: width of keys and queries.
        values: channels that are appended.
    """

    def __init__(self, channels: int, keys: int, values: int) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(channels, keys), nn.Linear(channels, keys)
        self.value = nn.Linear(channels, values)

    def forward(self, both: Branches) -> Branches:
        """Every position attends to itself and to the support positions before it."""
        key, value = self.key(both.support), self.value(both.support)
        scale = key.shape[-1] ** -0.5
        future = torch.ones(key.shape[1], key.shape[1], dtype=torch.bool, device=key.device).triu(1)
        logits = scale * self.query(both.support) @ key.transpose(1, 2)
        support = logits.masked_fill(future, -torch.inf).softmax(-1) @ value

        query = scale * self.query(both.query)
        itself = (query * self.key(both.query)).sum(-1, keepdim=True)
        weights = torch.cat([query @ key.transpose(1, 2), itself], -1).softmax(-1)
        return both.append(support, weights[..., :-1] @ value + weights[..., -1:] * self.value(both.query))


def _gated(both: Tensor) -> Tensor:
    content, gate = both.chunk(2, -1)
    return content.tanh() * gate.sigmoid()
