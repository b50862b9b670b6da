"""Matching networks (Vinyals, Blundell, Lillicrap, Kavukcuoglu & Wierstra 2016).

A query takes the labels of the support images it attends to (eq. 1), p(y | x) = sum_i a(x, x_i) y_i, where the attention
is a softmax over the support set of cosine similarities (section 2.1.1), a(x, x_i) = softmax_i(s cos(f(x), g(x_i))). With
several shots the attention of a class is the sum over its images. Training minimises -log p of the queries' labels.

``fce=true`` embeds an image in the context of the support set (section 2.1.2, appendix A). g is a bidirectional LSTM over
the support set (A.2): g(x_i) = h_fwd_i + h_bwd_i + g'(x_i). f is an LSTM with attention that processes the same query
``processing_steps`` times (A.1, eq. 3-6):

    h^_k, c_k = LSTM(f'(x), [h_{k-1}, r_{k-1}], c_{k-1})        h_k = h^_k + f'(x)
    r_{k-1} = sum_i a(h_{k-1}, g(x_i)) g(x_i)                   a(h, g(x_i)) = softmax_i(h^T g(x_i))

and f(x) is the last h_k. f' and g' are the backbone. The LSTM reads the support set in a random order that depends on the
episode alone: the same episode is always read in the same order.

Batch normalisation: while training by the images of the episode; in tests ``inductive`` normalises by the running
averages of training, ``transductive`` by the images of the episode.

Deviations from the paper: the cosine is multiplied by a ``scale`` s, which is the start of a learned number unless
``learn_scale=false``. The paper has none (s = 1), with which a softmax of numbers in -1..1 is nearly uniform: no query can
have more than e / (e + (N-1) / e) for its class, and training is slow. Training episodes have ``train_ways`` classes,
more than the test, as in ProtoNet; schedules are shorter. The paper does not say where h and r of the attention start:
here h_0 = c_0 = 0, so r_0 is the mean of the support set. There is no fine-tuning on the test task. The network is the
configured backbone, which by default uses strides where theirs uses max-pooling.

Logged: ``loss`` and ``accuracy`` on the queries of the training episodes, which have ``train_ways`` ways; ``scale``, s.

Measured on Omniglot, 5-way 1-shot, after ten minutes on one CPU core (2,533 iterations): 96.75 ± 0.28 % (inductive; 95% t
interval over 1,000 test episodes). ProtoNet's paper: 98.1 %. ``scripts/leaderboard.sh --jobs 2 methods=matchingnet``

    fsl train algo=matchingnet dataset=omniglot
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor, nn
from typing_extensions import Unpack

from fsl_cli.algos.common.embedding_learner import EmbeddingLearner, EmbeddingOptions
from fsl_cli.algos.common.full_precision import full_precision
from fsl_cli.algos.common.prototypes import of_each_class
from fsl_cli.episodes import Episodes
from fsl_cli.episodes.randomness import permutations
from fsl_cli.settings.sizes import Ways


class MatchingNet(EmbeddingLearner):
    """Meta-learns an embedding in which a query attends to the support images of its class.

    Args:
        backbone: images ``[B, C, H, W]`` to embeddings ``[B, features]``.
        features: width of the backbone's output.
        scale: factor s of the cosine, > 0; the initial value if it is learned.
        learn_scale: whether s is learned.
        fce: full context embeddings, see the module's docstring; without them there are no LSTMs.
        processing_steps: K, how many times the attention LSTM processes a query, >= 1; used with ``fce``.
        train_ways: ways of a training episode, >= 2, a number or a range; None: as in the tested task.
        options: see `EmbeddingOptions`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        features: int,
        *,
        scale: Annotated[float, Gt(0)] = 10.0,
        learn_scale: bool = True,
        fce: bool = False,
        processing_steps: Annotated[int, Ge(1)] = 5,
        train_ways: Ways | None = 60,
        **options: Unpack[EmbeddingOptions],
    ) -> None:
        super().__init__(backbone, train_ways, **options)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)), requires_grad=learn_scale)
        self.context = FullContext(features, processing_steps) if fce else None
        self.masks = not fce  # an LSTM reads every row
        self.embeds = self.embeds and not fce  # the order of the support set is drawn for an episode

    def learned(self) -> dict[str, Tensor]:
        """``scale``, the factor of the cosine."""
        return {"scale": self.log_scale.detach().exp()}

    def compare(self, episodes: Episodes, support: Tensor, query: Tensor) -> Tensor:
        """Log p(y | x) from embeddings, in context if ``fce``."""
        if self.context is not None:
            order = permutations(episodes.seeds, support.shape[1], "order of the support set")
            with full_precision(support, query) as (support, query):
                support, query = self.context(support, query, order)
        return super().compare(episodes, support, query)

    def classify(self, episodes: Episodes) -> Tensor:
        """Log p(y | x) (eq. 1) from the embeddings f and g."""
        with full_precision(episodes.support.x, episodes.query.x) as (support, query):
            cosine = F.normalize(query, dim=-1) @ F.normalize(support, dim=-1).transpose(1, 2)
            similarity = self.log_scale.exp() * cosine
            support_y, mask = episodes.support.y, episodes.support.mask
            if mask is not None:
                similarity = similarity.masked_fill(~mask.unsqueeze(1), -math.inf)
            log_attention = F.log_softmax(similarity, dim=-1)
            return of_each_class(log_attention, support_y, episodes.ways, mask).logsumexp(-1)


class FullContext(nn.Module):
    """Full context embeddings (appendix A).

    Args:
        features: width D of the embeddings.
        processing_steps: K.
    """

    def __init__(self, features: int, processing_steps: int) -> None:
        super().__init__()
        self.processing_steps = processing_steps
        self.over_support = nn.LSTM(features, features, batch_first=True, bidirectional=True)
        # A cell multiplies [h, r] by one matrix: h is its state, so r is appended to the input.
        self.over_steps = nn.LSTMCell(2 * features, features)

    def forward(self, support: Tensor, query: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        """Embed g' ``[T, S, D]`` and f' ``[T, B, D]`` in context; ``order``, int64 ``[T, S]``, of the support set."""
        g = self.support_in_context(support, order)
        return g, self.query_in_context(query, g)

    def support_in_context(self, support: Tensor, order: Tensor) -> Tensor:
        """g(x_i, S) = h_fwd_i + h_bwd_i + g'(x_i) (A.2)."""
        rows = order.unsqueeze(-1).expand_as(support)
        forward, backward = self.over_support(support.gather(1, rows))[0].chunk(2, dim=-1)
        return torch.scatter(torch.zeros_like(support), 1, rows, forward + backward) + support

    def query_in_context(self, query: Tensor, g: Tensor) -> Tensor:
        """f(x, S), the last h_k (A.1, eq. 3-6)."""
        h = c = torch.zeros_like(query)
        for _ in range(self.processing_steps):
            r = torch.softmax(h @ g.transpose(1, 2), dim=-1) @ g
            state = h.flatten(0, 1), c.flatten(0, 1)
            read, c = self.over_steps(torch.cat([query, r], dim=-1).flatten(0, 1), state)
            h, c = read.view_as(query) + query, c.view_as(query)
        return h
