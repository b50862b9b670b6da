"""Neural Turing machine (Graves, Wayne & Danihelka 2014), given few-shot episodes as sequences.

The network sees image x_t together with the label of the previous image, y_(t-1), and predicts the class of x_t, as in
Santoro et al. 2016 (see `fsl_cli.algos.common.cell_learner`). An LSTM controls a memory M of ``slots`` rows. Each head
attends to the rows with weights w. The write head uses them for

    M <- M (1 - w e^T) + w a^T                                  erase e in 0..1, add a             (eq. 3-4)

and then every read head for r = w^T M (eq. 2). The logits are a linear map of the controller's output and of what was read,
which is also an input of the next step. The weights of a head are computed from those of the previous step (section 3.3):

    w^c = softmax_i(beta cos(k, M_i))                           key k, key strength beta >= 1      (eq. 5-6)
    w^g = g w^c + (1 - g) w_(t-1)                               gate g in 0..1                     (eq. 7)
    w~_i = sum_j w^g_j s_(i-j)                                  shifts s of -1, 0, 1, circular     (eq. 8)
    w_i = w~_i^gamma / sum_j w~_j^gamma                         sharpening gamma >= 1              (eq. 9)

The memory starts almost empty (1e-6 everywhere) and every head on row 0.

Batch normalisation, in training and tests: ``inductive`` by the support images of the episode, so that no query sees
another; ``transductive`` by all its images. A whole sequence is also normalised by the support images in it.

Deviations from the paper: it has no few-shot task, the sequences are those of Santoro et al. 2016. Images pass through a
backbone first, whose features are layer-normalised, while their controller sees pixels. Besides x_t and y_(t-1) the
controller sees x_(t-1) again, and the heads see these inputs besides the controller's output; keys and what is added start
as the same linear map of an image. This initialisation is meant to avoid the plateau that MANN reached without it; see
`fsl_cli.algos.common.memory.aligned`. Keys and what is added pass through tanh, beta is at least 1 (the paper: positive).
Reading starts with a beta of about 9 and by content, writing by location, and little is erased. The softmax over shifts
starts with nine tenths on "stay" for reading and on "one forward" for writing.

Logged: ``loss``; ``accuracy`` on the queries of the training episodes (``training=sequence``: at every step of a sequence);
``accuracy_first``, ``accuracy_second`` on the first and second image of a class in a sequence (not with
``training=episode``). The test also reports the accuracy on the 1st, 2nd, ... 10th image of a class.

Measured on Omniglot, 5-way 1-shot, after ten minutes on one CPU core (1,445 iterations): 93.27 ± 0.39 % (inductive; 95% t
interval over 1,000 test episodes). On the 1st, 2nd, 3rd, 4th, 5th and 10th image of a class: 40.2, 92.4, 94.9, 95.8, 96.2,
96.8 %. ``scripts/leaderboard.sh --jobs 2 methods=ntm``

    fsl train algo=ntm dataset=omniglot
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
from annotated_types import Ge
from torch import Tensor, nn
from typing_extensions import Unpack

from fsl_cli.algos.common.cell_learner import Cell, CellLearner, CellOptions, State
from fsl_cli.algos.common.memory import EMPTY, aligned, content_weights, controller, erase_and_add, oneplus, reads


class NTM(CellLearner):
    """Meta-learns a backbone, a controller and the use of a memory.

    Args:
        backbone: images ``[B, C, H, W]`` to features ``[B, D]``.
        features: D.
        ways: of the trained task, the width of a label; tests may have fewer.
        hidden: units of the LSTM controller, >= 1.
        slots: rows of the memory, >= 3.
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
        slots: Annotated[int, Ge(3)] = 64,
        width: Annotated[int, Ge(1)] = 40,
        read_heads: Annotated[int, Ge(1)] = 2,
        **options: Unpack[CellOptions],
    ) -> None:
        cell = NTMCell(features, ways, hidden, slots, width, read_heads)
        super().__init__(backbone, features, ways, cell, **options)


class Head(NamedTuple):
    """Parameters of the attention of H heads: ``key [B, H, W]``, ``shift [B, H, 3]``, the others ``[B, H]``."""

    key: Tensor
    strength: Tensor
    gate: Tensor
    shift: Tensor
    sharpness: Tensor


class NTMCell(Cell):
    """One step: the controller, the write head (the first), the read heads.

    State: hidden units and cell of the controller ``[B, hidden]``, memory ``[B, M, W]``, weights of all heads
    ``[B, 1 + R, M]``, what was read ``[B, R*W]``.
    """

    def __init__(self, features: int, ways: int, hidden: int, slots: int, width: int, read_heads: int) -> None:
        super().__init__()
        self.slots, self.width, self.heads = slots, width, 1 + read_heads
        self.controller = controller(2 * features + ways + read_heads * width, hidden)
        per_head = width + 6
        self.interface = nn.Linear(hidden + 2 * features + ways, self.heads * per_head + 2 * width)
        self.output = nn.Linear(hidden + read_heads * width, ways)
        keys = [head * per_head for head in range(1, self.heads)]
        aligned(self.interface, hidden, features, keys, [self.heads * per_head + width], width)
        with torch.no_grad():
            each = self.interface.bias[: self.heads * per_head].view(self.heads, per_head)[:, width:]
            #                       strength gate  shifts: back, stay, forward  sharpness
            each[0] = torch.tensor([0.0, -3.0, 0.0, 0.0, 3.0, 3.0])  # write head: one row after the other
            each[1:] = torch.tensor([8.0, 3.0, 0.0, 3.0, 0.0, 0.0])  # read heads: rows that resemble the image
            self.interface.bias[self.heads * per_head :][:width] = -3  # little is erased

    def start(self, count: int) -> State:
        """Almost empty memory, every head on row 0."""
        like = self.output.weight
        hidden = like.new_zeros(count, self.controller.hidden_size)
        memory = like.new_full((count, self.slots, self.width), EMPTY)
        weights = like.new_zeros(count, self.heads, self.slots)
        weights[..., 0] = 1
        return hidden, hidden, memory, weights, like.new_zeros(count, (self.heads - 1) * self.width)

    def forward(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """Write, then read."""
        hidden, cell, memory, before, read = state
        hidden, cell = self.controller(torch.cat([inputs, read], 1), (hidden, cell))
        told = self.interface(torch.cat([hidden, inputs], 1))
        heads = told[:, : -2 * self.width].view(len(told), self.heads, -1)
        erase, add = told[:, -2 * self.width :].chunk(2, 1)
        write, look = (_head(heads[:, part], self.width) for part in (slice(0, 1), slice(1, None)))
        written = address(write, memory, before[:, :1])
        memory = erase_and_add(memory, written[:, 0], erase.sigmoid(), add.tanh())
        looked = address(look, memory, before[:, 1:])
        read = reads(looked, memory)
        weights = torch.cat([written, looked], 1)
        return self.output(torch.cat([hidden, read], 1)), (hidden, cell, memory, weights, read)


def _head(told: Tensor, width: int) -> Head:
    """From the outputs of the controller for the heads, ``[B, H, W + 6]``."""
    key, strength, gate, shift, sharpness = told.split([width, 1, 1, 3, 1], -1)
    return Head(
        key.tanh(),
        oneplus(strength.squeeze(-1)),
        gate.squeeze(-1).sigmoid(),
        shift.softmax(-1),
        oneplus(sharpness.squeeze(-1)),
    )


def address(head: Head, memory: Tensor, before: Tensor) -> Tensor:
    """Weights ``[B, H, M]`` of heads, from memory ``[B, M, W]`` and their weights at the previous step, ``[B, H, M]``."""
    content = content_weights(head.key, head.strength, memory)
    gate = head.gate.unsqueeze(-1)
    return sharpen(shifted(gate * content + (1 - gate) * before, head.shift), head.sharpness)


def shifted(weights: Tensor, shift: Tensor) -> Tensor:
    """Circular convolution (eq. 8) of weights ``[B, H, M]`` with the weights ``[B, H, 3]`` of a shift by -1, 0, 1."""
    moved = torch.stack([weights.roll(by, -1) for by in (-1, 0, 1)], -1)
    return (moved @ shift.unsqueeze(-1)).squeeze(-1)


def sharpen(weights: Tensor, sharpness: Tensor) -> Tensor:
    """Weights ``[B, H, M]`` to the power ``[B, H]``, normalised (eq. 9); computed in logarithms, to avoid underflow."""
    return (sharpness.unsqueeze(-1) * weights.clamp_min(_TINY).log()).softmax(-1)


_TINY = 1e-30
