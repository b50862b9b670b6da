"""Differentiable neural computer (Graves et al. 2016), given few-shot episodes as sequences.

The network sees image x_t together with the label of the previous image, y_(t-1), and predicts the class of x_t, as in
Santoro et al. 2016 (see `fsl_cli.algos.common.cell_learner`). An LSTM controls a memory M of ``slots`` rows. Writing, from
the read weights w^r and the write weights w^w of the previous step (Methods of the paper):

    psi = prod_i (1 - f_i w^r_i)                          retained by the free gates f_i of the read heads
    u <- (u + w^w - u w^w) psi                            usage of the rows
    a[phi_j] = (1 - u[phi_j]) prod_(i<j) u[phi_i]         allocation: phi sorts the rows by usage, the free ones first
    w^w = g^w (g^a a + (1 - g^a) C(M, k^w, beta^w))       C(M, k, beta) = softmax_i(beta cos(k, M_i))
    M <- M (1 - w^w e^T) + w^w v^T                        erase e in 0..1, write v

Temporal links, with the precedence p of the previous step, L_ii = 0:

    L_ij <- (1 - w^w_i - w^w_j) L_ij + w^w_i p_j
    p <- (1 - sum_i w^w_i) p + w^w

Reading, for each head, with modes pi that sum to one:

    w^r <- pi_1 L^T w^r + pi_2 C(M, k^r, beta^r) + pi_3 L w^r          backward, content, forward
    r = M^T w^r

The logits are the sum of a linear map of the controller's output and one of all that was read.

Batch normalisation, in training and tests: ``inductive`` by the support images of the episode, so that no query sees
another; ``transductive`` by all its images. A whole sequence is also normalised by the support images in it.

Deviations from the paper: it has no few-shot task, the sequences are those of Santoro et al. 2016. Images pass through a
backbone first, whose features are layer-normalised. The controller has one layer. The gradient also
flows from the usage to the write weights, where the authors' code stops it. Besides x_t and y_(t-1) it sees x_(t-1)
again, and the interface sees these inputs besides the controller's output; read keys and what is written start as the same
linear map of an image. This initialisation is meant to avoid the plateau that MANN reached without it; see
`fsl_cli.algos.common.memory.aligned`. The write gate and the allocation gate start open, the free gates closed, the read
mode at content, the read strengths at about 9, erasing near 0. The memory has 32 rows, because every row costs a row and a
column of links.

Logged: ``loss``; ``accuracy`` on the queries of the training episodes (``training=sequence``: at every step of a sequence);
``accuracy_first``, ``accuracy_second`` on the first and second image of a class in a sequence (not with
``training=episode``). The test also reports the accuracy on the 1st, 2nd, ... 10th image of a class.

Measured on Omniglot, 5-way 1-shot, after ten minutes on one CPU core (1,573 iterations): 94.23 ± 0.38 % (inductive; 95% t
interval over 1,000 test episodes). On the 1st, 2nd, 3rd, 4th, 5th and 10th image of a class: 40.4, 93.8, 96.2, 97.3, 97.4,
97.8 %. ``scripts/leaderboard.sh --jobs 2 methods=dnc``

    fsl train algo=dnc dataset=omniglot
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn
from typing_extensions import Unpack

from fsl_cli.algos.common.cell_learner import Cell, CellLearner, CellOptions, State
from fsl_cli.algos.common.memory import EMPTY, aligned, content_weights, controller, erase_and_add, oneplus, reads


class DNC(CellLearner):
    """Meta-learns a backbone, a controller and the use of a memory.

    Args:
        backbone: images ``[B, C, H, W]`` to features ``[B, D]``.
        features: D.
        ways: of the trained task, the width of a label; tests may have fewer.
        hidden: units of the LSTM controller, >= 1.
        slots: rows of the memory, >= 1; it holds about as many images, unless the free gates have learned to open.
        width: numbers per row, >= 1.
        read_heads: number of read heads, >= 1.
        options: see `CellOptions`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        features: int,
        ways: int,
        *,
        hidden: Annotated[int, Ge(1)] = 200,
        slots: Annotated[int, Ge(1)] = 32,
        width: Annotated[int, Ge(1)] = 32,
        read_heads: Annotated[int, Ge(1)] = 2,
        **options: Unpack[CellOptions],
    ) -> None:
        cell = DNCCell(features, ways, hidden, slots, width, read_heads)
        super().__init__(backbone, features, ways, cell, **options)


class DNCCell(Cell):
    """One step: the controller, a write, the links, the reads.

    State: hidden units and cell of the controller ``[B, hidden]``, memory ``[B, M, W]``, usage ``[B, M]``, links
    ``[B, M, M]``, precedence ``[B, M]``, write weights ``[B, M]``, read weights ``[B, R, M]``, what was read ``[B, R*W]``.
    """

    def __init__(self, features: int, ways: int, hidden: int, slots: int, width: int, read_heads: int) -> None:
        super().__init__()
        self.slots, self.width, self.heads = slots, width, read_heads
        # read keys, write key, erase, write; read strengths, write strength, free gates, allocation and write gate, modes
        self.sizes = [read_heads * width, width, width, width, read_heads, 1, read_heads, 1, 1, 3 * read_heads]
        self.controller = controller(2 * features + ways + read_heads * width, hidden)
        self.interface = nn.Linear(hidden + 2 * features + ways, sum(self.sizes))
        self.output = nn.Linear(hidden, ways)
        self.output_read = nn.Linear(read_heads * width, ways, bias=False)
        keys = [head * width for head in range(read_heads)]
        aligned(self.interface, hidden, features, keys, [(read_heads + 2) * width], width)
        with torch.no_grad():
            _, _, erase, _, strengths, _, free, allocation, write, modes = self.interface.bias.split(self.sizes)
            strengths.fill_(8)
            for gate, value in ((erase, -3), (free, -3), (allocation, 3), (write, 3)):
                gate.fill_(value)
            modes.view(-1, 3).copy_(torch.tensor([0.0, 3.0, 0.0]))

    def start(self, count: int) -> State:
        """Almost empty memory, unused and unlinked."""
        like = self.output.weight
        hidden = like.new_zeros(count, self.controller.hidden_size)
        memory = like.new_full((count, self.slots, self.width), EMPTY)
        row = like.new_zeros(count, self.slots)
        links, heads = like.new_zeros(count, self.slots, self.slots), like.new_zeros(count, self.heads, self.slots)
        return hidden, hidden, memory, row, links, row, row, heads, like.new_zeros(count, self.heads * self.width)

    def forward(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """Write, link, then read."""
        hidden, cell, memory, usage, links, precedence, write_weights, read_weights, read = state
        hidden, cell = self.controller(torch.cat([inputs, read], 1), (hidden, cell))
        told = self.interface(torch.cat([hidden, inputs], 1)).split(self.sizes, 1)
        read_keys, write_key, erase, write, read_strengths, write_strength, free, allocate, write_gate, modes = told

        usage = used(usage, write_weights, read_weights, free.sigmoid())
        content = content_weights(write_key.unsqueeze(1), oneplus(write_strength), memory).squeeze(1)
        allocate = allocate.sigmoid()
        write_weights = write_gate.sigmoid() * (allocate * allocation(usage) + (1 - allocate) * content)
        memory = erase_and_add(memory, write_weights, erase.sigmoid(), write)

        links = linked(links, precedence, write_weights)
        precedence = (1 - write_weights.sum(1, keepdim=True)) * precedence + write_weights

        content = content_weights(read_keys.view(len(inputs), self.heads, -1), oneplus(read_strengths), memory)
        modes = modes.view(len(inputs), self.heads, 3).softmax(-1)
        read_weights = read_from(modes, read_weights, content, links)
        read = reads(read_weights, memory)
        after = (hidden, cell, memory, usage, links, precedence, write_weights, read_weights, read)
        return self.output(hidden) + self.output_read(read), after


def used(usage: Tensor, write_weights: Tensor, read_weights: Tensor, free: Tensor) -> Tensor:
    """Usage ``[B, M]`` of the rows after a write ``[B, M]``, reduced by reads ``[B, R, M]`` with free gates ``[B, R]``."""
    retained = (1 - free.unsqueeze(-1) * read_weights).prod(1)
    return (usage + write_weights - usage * write_weights) * retained


def allocation(usage: Tensor) -> Tensor:
    """Allocation weights ``[B, M]`` of the rows, from their usage ``[B, M]`` in 0..1."""
    ascending, rows = usage.sort(dim=1, stable=True)
    before = torch.cat([torch.ones_like(usage[:, :1]), ascending[:, :-1]], 1).cumprod(1)
    return torch.zeros_like(usage).scatter(1, rows, (1 - ascending) * before)


def linked(links: Tensor, precedence: Tensor, write_weights: Tensor) -> Tensor:
    """Links ``[B, M, M]`` after a write ``[B, M]``: how much row i was written right after row j; ``precedence [B, M]``."""
    row, column = write_weights.unsqueeze(2), write_weights.unsqueeze(1)
    links = (1 - row - column) * links + row * precedence.unsqueeze(1)
    return links * (1 - torch.eye(links.shape[1], dtype=links.dtype, device=links.device))


def read_from(modes: Tensor, before: Tensor, content: Tensor, links: Tensor) -> Tensor:
    """Read weights ``[B, R, M]``.

    Args:
        modes: ``[B, R, 3]``, backward, content, forward; they sum to one.
        before: read weights of the previous step, ``[B, R, M]``.
        content: ``[B, R, M]``.
        links: ``[B, M, M]``.
    """
    backward, forward = before @ links, before @ links.transpose(1, 2)
    return (modes.unsqueeze(2) @ torch.stack([backward, content, forward], 2)).squeeze(2)
