"""Meta-LSTM (Ravi & Larochelle 2017, "Optimization as a model for few-shot learning").

A learned optimizer trains a classifier on the support set. Its update is that of an LSTM's cell state (eq. 2), where the
cell state c is the vector of the classifier's weights and c_0 the learned initialisation:

    c_t = f_t o c_{t-1} + i_t o (-g_t)            g_t = gradient of the support loss L_t at c_{t-1}
    i_t = sigmoid(W_I [x_t, c_{t-1}, i_{t-1}] + b_I)
    f_t = sigmoid(W_F [x_t, c_{t-1}, f_{t-1}] + b_F)

Every weight of the classifier is a coordinate with its own gates; W_I, b_I, W_F and b_F are shared by all. x_t describes
g_t and L_t, each preprocessed into two numbers of moderate size (Andrychowicz et al. 2016, appendix A, p = 10):

    x -> (log|x| / p, sign x) where |x| >= exp(-p), else (-1, exp(p) x)

With ``hidden_size=0`` x_t is these four numbers, as in the paper's section 3.1. Otherwise it is the output of an ordinary
LSTM of that size applied to them, one for each coordinate with shared weights, as in the authors' code (20 there).

The outer loss is the query loss at c_T. Its gradient by W, b and c_0 passes through the recurrence; g_t and L_t are treated
as constants (section 3.3.1). W starts at small random values, b_I such that i_t starts at ``inner_lr``, and b_F such that
f_t starts at ``forget``: close to plain gradient descent. There are no options for an optimizer and its weight decay in the
inner loop: the gates are the optimizer, and 1 - f_t is the decay.

Batch normalisation: ``transductive`` normalises a query by its query batch, as in MAML; ``inductive`` by the support set
(MetaBN, Bronskill et al. 2020), which is what the authors do in tests, with averages over the steps. Its scale and
shift are coordinates like any other weight. When the test has
another number of ways than training, all rows of the head start at the mean of the trained rows.

Deviations from the paper: the input gate starts at ``inner_lr``, by default more than the authors' 0.01, and the head at
zero: both train faster. A step uses the whole support set, there are fewer steps, and the schedule is shorter.

Logged: ``loss`` and ``accuracy`` on the queries after T steps; ``input_gate`` and ``forget_gate``: means of i_T and f_T.

Measured on Omniglot, 5-way 1-shot, after ten minutes on one CPU core (1,815 iterations): 88.62 ± 0.50 % (transductive; 95%
t interval over 1,000 test episodes). ``scripts/leaderboard.sh --jobs 2 methods=meta_lstm``

    fsl train algo=meta_lstm dataset=omniglot
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn
from typing_extensions import Unpack

from fsl_cli.algos.common.algorithm import BatchNormMode, Step
from fsl_cli.algos.common.gradient_learner import GradientLearner, MetaOptions
from fsl_cli.episodes import Episodes
from fsl_cli.inner.engines import EngineName
from fsl_cli.inner.inner_loop import InnerLoop
from fsl_cli.inner.tasks import TaskBatch
from fsl_cli.inner.update_rules import Parameters

_PRECISION = 10.0  # p


class CellState(NamedTuple):
    """The state of the recurrence, for T tasks of P coordinates.

    Attributes:
        c: the weights of the classifier ``[T, P]``.
        i: input gates ``[T, P]``.
        f: forget gates ``[T, P]``.
        hidden: output and cell state of the first LSTM, ``[T * P, H]`` each; None before the first step or without one.
    """

    c: Tensor
    i: Tensor
    f: Tensor
    hidden: tuple[Tensor, Tensor] | None = None


class MetaLearner(nn.Module):
    """The learned update of every coordinate.

    Args:
        hidden_size: width H of the first LSTM; 0: none.
        inner_lr: initial value of the input gate, in 0..1.
        forget: initial value of the forget gate, in 0..1.
    """

    def __init__(self, hidden_size: int, inner_lr: float, forget: float) -> None:
        super().__init__()
        self.lstm = nn.LSTMCell(4, hidden_size) if hidden_size else None
        self.input_gate, self.forget_gate = _gate(hidden_size or 4, inner_lr), _gate(hidden_size or 4, forget)

    def forward(self, gradient: Tensor, loss: Tensor, state: CellState) -> CellState:
        """One step.

        Args:
            gradient: g_t ``[T, P]``, a constant.
            loss: L_t ``[T]``, a constant.
            state: after the previous step.
        """
        x = torch.cat([preprocessed(gradient), preprocessed(loss)[:, None].expand(*gradient.shape, 2)], dim=-1)
        hidden = None
        if self.lstm is not None:
            hidden = self.lstm(x.flatten(0, 1), state.hidden)
            x = hidden[0].view(*gradient.shape, -1)
        i = _open(self.input_gate, x, state.c, state.i)
        f = _open(self.forget_gate, x, state.c, state.f)
        return CellState(f * state.c - i * gradient, i, f, hidden)


def preprocessed(x: Tensor) -> Tensor:
    """Two numbers of moderate size for each of ``x [...]``: ``[..., 2]`` (Andrychowicz et al. 2016, appendix A)."""
    size = x.abs()
    large = size >= math.exp(-_PRECISION)
    logarithm = torch.where(large, size, 1.0).log() / _PRECISION
    first = torch.where(large, logarithm, -1.0)
    second = torch.where(large, x.sign(), x * math.exp(_PRECISION))
    return torch.stack([first, second], dim=-1)


class MetaLSTM(GradientLearner):
    """Meta-learns an optimizer and the initialisation it starts from.

    Args:
        backbone: images ``[B, C, H, W]`` to features ``[B, features]``.
        features: width of the backbone's output.
        ways: width of the head: the classes of a training episode, or the outputs of another problem.
        engine: how tasks are run, see `fsl_cli.inner.engines`; all but learn2learn.
        inner_steps: T in training, >= 1.
        hidden_size: width of the first LSTM; 0: none.
        inner_lr: initial value of the input gate, in 0..1.
        forget: initial value of the forget gate, in 0..1.
        batch_norm: ``transductive`` or ``inductive``, see the module's docstring.
        options: see `MetaOptions`.

    Raises:
        FslError: the engine cannot run this inner loop.
    """

    def __init__(
        self,
        backbone: nn.Module,
        features: int,
        ways: int,
        engine: EngineName = "auto",
        *,
        inner_steps: Annotated[int, Ge(1)] = 3,
        hidden_size: Annotated[int, Ge(0)] = 0,
        inner_lr: Annotated[float, Gt(0), Lt(1)] = 0.4,
        forget: Annotated[float, Gt(0), Lt(1)] = 0.99,
        batch_norm: BatchNormMode = "transductive",
        **options: Unpack[MetaOptions],
    ) -> None:
        transductive = batch_norm == "transductive"
        super().__init__(backbone, features, ways, inner_steps=inner_steps, transductive=transductive, **options)
        self.meta_learner = MetaLearner(hidden_size, inner_lr, forget)
        self.set_engine(engine, ways)

    def loss(self, episodes: Episodes) -> Step:
        """Query loss at c_T."""
        logits, gates = self._logits(episodes, [self.inner_steps])
        return Step(self.query_losses(episodes, logits[-1]).mean(), logits[-1].detach(), gates)

    def outputs_after(self, episodes: Episodes, steps: Sequence[int]) -> Tensor:
        """See `StepLearner`; the steps are those of the cell."""
        return self._logits(episodes, steps)[0]

    def _logits(self, episodes: Episodes, steps: Sequence[int]) -> tuple[Tensor, dict[str, Tensor]]:
        """Query outputs ``[len(steps), T, B, O]`` after each number of steps, ascending, and the means of the last gates."""
        tasks = self.tasks(episodes)
        coordinates = Coordinates(tasks.start, len(episodes))
        c = coordinates.joined(tasks.start)
        state, found = CellState(c, torch.zeros_like(c), torch.zeros_like(c)), []
        for step in range(steps[-1] + 1):
            weights = coordinates.named(state.c)
            if step in steps:
                found.append(tasks.query_outputs(weights, max(step - 1, 0)))
            if step < steps[-1]:
                state = self.meta_learner(*self._gradient_and_loss(tasks, coordinates, weights, step), state)
        gates = {"input_gate": state.i.detach().mean(), "forget_gate": state.f.detach().mean()}
        return torch.stack(found), gates

    @torch.no_grad()
    def _gradient_and_loss(
        self, tasks: TaskBatch, coordinates: Coordinates, weights: Parameters, step: int
    ) -> tuple[Tensor, Tensor]:
        gradient = tasks.gradient(weights, step, first_order=True)
        return coordinates.joined(gradient), tasks.support_loss(weights, step)

    def inner_loop(self, ways: int) -> InnerLoop:
        """See `StepLearner`; only its network is used, since the meta-learner takes the steps."""
        return self.descent(self.net.with_ways(ways), lr=1.0)


class Coordinates:
    """Converts the weights of T classifiers to one matrix ``[T, P]`` and back.

    Args:
        weights: by name, shared by the tasks.
        tasks: T.
    """

    def __init__(self, weights: Parameters, tasks: int) -> None:
        self._shapes = {name: value.shape for name, value in weights.items()}
        self._tasks = tasks

    def joined(self, weights: Parameters) -> Tensor:
        """Weights by name, shared or with an axis of tasks in front, as ``[T, P]``."""
        return torch.cat([weights[name].expand(self._tasks, *shape).flatten(1) for name, shape in self._shapes.items()], dim=1)

    def named(self, values: Tensor) -> Parameters:
        """``[T, P]`` as weights by name, ``[T, ...]`` each."""
        parts = values.split([shape.numel() for shape in self._shapes.values()], dim=1)
        return {name: part.unflatten(1, shape) for part, (name, shape) in zip(parts, self._shapes.items(), strict=True)}


def _gate(width: int, start: float) -> nn.Linear:
    """A linear map of [x, c, gate] with small random weights and a bias such that the gate starts at ``start``."""
    gate = nn.Linear(width + 2, 1)
    nn.init.uniform_(gate.weight, -0.01, 0.01)
    nn.init.constant_(gate.bias, math.log(start / (1 - start)))
    return gate


def _open(gate: nn.Linear, x: Tensor, c: Tensor, before: Tensor) -> Tensor:
    """The next value of a gate, ``[T, P]``, from ``x [T, P, D]`` and the weights and the gate before the step, ``[T, P]``."""
    of_x, of_c, of_gate = gate.weight[0].split([x.shape[-1], 1, 1])
    return torch.sigmoid(x @ of_x + c * of_c + before * of_gate + gate.bias)
