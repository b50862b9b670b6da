"""MANN: memory-augmented neural networks (Santoro et al. 2016).

The network sees image x_t together with the label of the previous image, y_(t-1), and predicts the class of x_t: it has to
store what it has seen and find it again (section 2; see `fsl_cli.algos.common.cell_learner`). An LSTM controls a memory M
of ``slots`` rows. Each of ``heads`` heads gets a key k and a gate alpha from the controller. At every step the heads first
write to the rows that were least used recently, or to those they read last (eq. 5-8), and then read the rows that resemble
the key (eq. 2-4):

    w^lu = 1 at the n rows of the smallest usage w^u, n = write_rows, 0 elsewhere             (eq. 6)
    w^w = sigmoid(alpha) w^r + (1 - sigmoid(alpha)) w^lu                                      (eq. 7)
    M_i <- (1 - w^lu_i) M_i + sum over the heads of w^w_i k                                   (eq. 8)
    w^r_i = softmax_i(beta cos(k, M_i)),   r = sum_i w^r_i M_i                                (eq. 2-4)
    w^u <- decay w^u + sum over the heads of (w^r + w^w)                                      (eq. 5)

with w^u and w^r of the previous step in the first two lines. The logits are a linear map of the controller's output and of
what was read, which is also an input of the next step. The paper speaks of one least used row that is set to zero before
writing, but its n is the number of heads; here the n rows of w^lu are set to zero, and get the same content.

``write_rows`` decides how many images the memory holds. With one row per image, the default of ``conf/algo/mann.yaml``, 128
rows hold the 50 images of the test's sequences. With n = 4 (``write_rows=null``, as in the paper) they hold 32, and the
accuracy falls once rows are reused; so does that of any memory with hardly more rows than images. Trained with n = 4 for
2,500 iterations: 97.2 ± 0.7 % on the 5th and 95.5 ± 0.8 % on the 10th image of a class; the same network with 256 rows:
96.5 and 96.8 %; with 64 rows: 94.2 and 90.2 %. Trained with one row for 1,122 iterations, until then with validation
accuracies like those of n = 4: 95.6 ± 0.8 % and 96.2 ± 0.7 %. One seed each, 500 test episodes.

``training=sequence`` is the paper's: all images of an episode in random order, each classified before its label is seen.
``episode`` is the loss of the queries that follow the support set; ``both``, the default, is the mean of the two.

Batch normalisation, in training and tests: ``inductive`` by the support images of the episode, so that no query sees
another; ``transductive`` by all its images. A whole sequence is also normalised by the support images in it.

Deviations from the paper: images pass through a backbone first, whose features are layer-normalised, while the paper's
controller sees pixels. Besides x_t and y_(t-1) the controller sees x_(t-1) again, and keys are computed from these inputs
besides the controller's output. The first half of the heads start with keys of x_t and their gate at the rows read last,
the others with keys of x_(t-1) and y_(t-1), by the same linear map, and their gate at the least used rows. Without that,
training stayed, for the few hundred iterations that were tried, on the plateau where the network only guesses among the
labels it has not seen yet: see `fsl_cli.algos.common.memory.aligned`. ``key_strength=true`` adds a factor beta >= 1 as in
Graves et al. 2014, which the paper does not have: beta = 1 (``false``) cannot focus on one row of 128. Keys pass through
tanh, beta starts at about 9. Adam replaces the paper's RMSProp (decay 0.95, momentum 0.9); training sequences are
shorter.

Logged: ``loss``; ``accuracy`` on the queries of the training episodes (``training=sequence``: at every step of a sequence);
``accuracy_first``, ``accuracy_second`` on the first and second image of a class in a sequence (not with
``training=episode``). The test also reports the accuracy on the 1st, 2nd, ... 10th image of a class (table 1 of the paper),
where the first can be guessed better than 1/N, since labels that were seen before can be excluded.

Measured on Omniglot, 5-way 1-shot, after ten minutes on one CPU core (2,711 iterations): 94.59 ± 0.38 % (inductive; 95% t
interval over 1,000 test episodes). On the 1st, 2nd, 3rd, 4th, 5th and 10th image of a class: 40.0, 93.9, 97.3, 97.2, 97.1,
97.5 %. The paper: 36.4, 82.8, 91.0, 92.6, 94.9, 98.1 %. ``scripts/leaderboard.sh --jobs 2 methods=mann``

    fsl train algo=mann dataset=omniglot
    fsl train experiment=mann_omniglot_5w1s                  # whole sequences, as in the paper, for longer
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn
from typing_extensions import Unpack

from fsl_cli.algos.common.cell_learner import Cell, CellLearner, CellOptions, State
from fsl_cli.algos.common.memory import EMPTY, aligned, content_weights, controller, oneplus, reads
from fsl_cli.errors import FslError


class MANN(CellLearner):
    """Meta-learns a backbone, a controller and the use of a memory.

    Args:
        backbone: images ``[B, C, H, W]`` to features ``[B, D]``.
        features: D.
        ways: of the trained task, the width of a label; tests may have fewer.
        hidden: units of the LSTM controller, >= 1.
        slots: rows of the memory, at least ``write_rows``.
        width: numbers per row, >= 1.
        heads: number of heads, each of which reads and writes, >= 1.
        write_rows: n of eq. 6, >= 1: how many rows an image takes, with the same content; None: as many as heads.
        decay: of the usage of a row per step, between 0 and 1.
        key_strength: whether the controller sets how sharply a head focuses, see the module's docstring.
        options: see `CellOptions`.

    Raises:
        FslError: fewer slots than ``write_rows``.
    """

    def __init__(
        self,
        backbone: nn.Module,
        features: int,
        ways: int,
        *,
        hidden: Annotated[int, Ge(1)] = 200,
        slots: Annotated[int, Ge(1)] = 128,
        width: Annotated[int, Ge(1)] = 40,
        heads: Annotated[int, Ge(1)] = 4,
        write_rows: Annotated[int, Ge(1)] | None = None,
        decay: Annotated[float, Gt(0), Lt(1)] = 0.95,
        key_strength: bool = True,
        **options: Unpack[CellOptions],
    ) -> None:
        write_rows = heads if write_rows is None else write_rows
        if slots < write_rows:
            what = f"{write_rows} rows for every image, but {slots} rows of memory"
            raise FslError(what, where="algo.slots", hint=f"use at least {write_rows}")
        cell = MANNCell(features, ways, hidden, slots, width, heads, decay, key_strength, write_rows)
        super().__init__(backbone, features, ways, cell, **options)


class MANNCell(Cell):
    """One step: the controller, the writes, the reads.

    State: hidden units and cell of the controller ``[B, hidden]``, memory ``[B, M, W]``, usage ``[B, M]``, read weights
    ``[B, H, M]``, what was read ``[B, H*W]``.
    """

    def __init__(
        self,
        features: int,
        ways: int,
        hidden: int,
        slots: int,
        width: int,
        heads: int,
        decay: float,
        key_strength: bool,
        write_rows: int,
    ) -> None:
        super().__init__()
        self.slots, self.width, self.heads, self.decay, self.key_strength = slots, width, heads, decay, key_strength
        self.write_rows = write_rows
        self.controller = controller(2 * features + ways + heads * width, hidden)
        self.interface = nn.Linear(hidden + 2 * features + ways, heads * (width + 2))
        self.output = nn.Linear(hidden + heads * width, ways)
        rows = [head * (width + 2) for head in range(heads)]
        aligned(self.interface, hidden, features, rows[: -(-heads // 2)], rows[heads // 2 :], width)
        with torch.no_grad():
            gates, strengths = self.interface.bias.view(heads, -1)[:, -2:].unbind(1)
            gates.copy_(torch.linspace(3, -3, heads) if heads > 1 else torch.zeros(1))
            strengths.fill_(8)

    def start(self, count: int) -> State:
        """Almost empty memory, unused and unread."""
        like = self.output.weight
        hidden = like.new_zeros(count, self.controller.hidden_size)
        memory, usage = like.new_full((count, self.slots, self.width), EMPTY), like.new_zeros(count, self.slots)
        read_weights = like.new_zeros(count, self.heads, self.slots)
        return hidden, hidden, memory, usage, read_weights, like.new_zeros(count, self.heads * self.width)

    def forward(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """Write, then read."""
        hidden, cell, memory, usage, read_weights, read = state
        hidden, cell = self.controller(torch.cat([inputs, read], 1), (hidden, cell))
        told = self.interface(torch.cat([hidden, inputs], 1)).view(len(inputs), self.heads, -1)
        keys, gates, strengths = told[..., :-2].tanh(), told[..., -2].sigmoid(), oneplus(told[..., -1])
        least = least_used(usage, self.write_rows)
        write_weights = written(gates, read_weights, least)
        memory = (1 - least).unsqueeze(-1) * memory + write_weights.transpose(1, 2) @ keys
        read_weights = content_weights(keys, strengths if self.key_strength else torch.ones_like(strengths), memory)
        usage = self.decay * usage + (read_weights + write_weights).sum(1)
        read = reads(read_weights, memory)
        return self.output(torch.cat([hidden, read], 1)), (hidden, cell, memory, usage, read_weights, read)


def least_used(usage: Tensor, n: int) -> Tensor:
    """1 at the ``n`` rows of the smallest usage ``[B, M]``, 0 elsewhere (eq. 6); among equal rows the first ones."""
    rows = usage.detach().argsort(dim=1, stable=True)[:, :n]
    return torch.zeros_like(usage).scatter(1, rows, 1.0)


def written(gates: Tensor, read_weights: Tensor, least: Tensor) -> Tensor:
    """Write weights ``[B, H, M]`` (eq. 7): gates ``[B, H]`` in 0..1 between the rows read last and the least used."""
    gates = gates.unsqueeze(-1)
    return gates * read_weights + (1 - gates) * least.unsqueeze(1)
