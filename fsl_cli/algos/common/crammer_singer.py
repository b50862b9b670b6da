"""The multi-class support vector machine of Crammer & Singer (2001), solved for many tasks at once and differentiable.

For support embeddings x_i with labels y_i, Y their one-hot matrix and K the kernel matrix, the dual is

    min_a  1/2 sum_k a_k^T K a_k - <Y, a>     such that  a_ik <= C Y_ik,  sum_k a_ik = 0

over a ``[B, N]``, and the weights of class k are w_k = sum_i a_ik x_i. With slack s = C Y - a, multipliers z >= 0 of
s >= 0 and u of the sums, a is optimal where

    K a - Y + z + u 1^T = 0,    s z = 0,    sum_k a_ik = 0,    s, z >= 0.

An interior-point method follows s z = m for m towards 0 (the central path) with Mehrotra's predictor and corrector (Mehrotra
1992), from a point that satisfies the other equations, which are linear and therefore stay satisfied. Its Newton systems have
one block K + diag(z_k / s_k) per class, coupled only by the sums: N matrices ``B x B`` instead of one ``N*B x N*B``.

It ends at a tiny m > 0, where a is a smooth function of K, and the implicit function theorem gives its derivative.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_STEPS = 25  # at most; enough for embeddings of any size, see the tests
_PATH_END = 1e-10  # s z at the solution, as a fraction of C
_STAY_INSIDE = 0.995  # fraction of the step at which a slack or a multiplier would become zero


def dual_variables(kernel: Tensor, labels: Tensor, ways: int, penalty: float) -> Tensor:
    """Solve the dual for each task.

    Args:
        kernel: K, positive definite ``[T, B, B]``.
        labels: int64 ``[T, B]``, 0..N-1.
        ways: N, at least 2.
        penalty: C, > 0.

    Returns:
        a, ``[T, B, N]``, of the type of ``kernel`` and differentiable with respect to it.
    """
    exact = kernel.to(torch.float32 if kernel.device.type == "mps" else torch.float64)  # mps has no float64
    with torch.no_grad():
        state = _start(exact, F.one_hot(labels, ways).to(exact), penalty)
        for _ in range(_STEPS):
            state = _step(exact, state, penalty * _PATH_END)
            if (state.s * state.z).max() < 2 * penalty * _PATH_END:
                break
        newton = _Newton.at(exact, state)
    # One more Newton step carries the derivative da = -P(dK a); P itself is a constant, because it is applied to zero.
    return (state.a - newton.solve(exact @ state.a - state.targets + state.z + state.u)).to(kernel.dtype)


@dataclass(frozen=True)
class _State:
    """A point inside the constraints: ``a, s, z, targets`` ``[T, B, N]``, ``u`` ``[T, B, 1]``."""

    a: Tensor
    s: Tensor
    z: Tensor
    u: Tensor
    targets: Tensor


@dataclass(frozen=True)
class _Newton:
    """The operator P: ``solve(r)`` is d with K d + (z / s) d + v 1^T = r and sum_k d_ik = 0 for some v ``[T, B, 1]``.

    Attributes:
        blocks: inverse of K + diag(z_k / s_k), ``[T, N, B, B]``.
        coupling: Cholesky factor of their sum over k, ``[T, B, B]``.
    """

    blocks: Tensor
    coupling: Tensor

    @staticmethod
    def at(kernel: Tensor, state: _State) -> _Newton:
        matrices = kernel.unsqueeze(1) + torch.diag_embed((state.z / state.s).mT)
        blocks = torch.cholesky_inverse(torch.linalg.cholesky(matrices))
        return _Newton(blocks, torch.linalg.cholesky(blocks.sum(1)))

    def solve(self, right: Tensor) -> Tensor:
        """``[T, B, N]`` to ``[T, B, N]``; linear and symmetric."""
        alone = self._each(right)
        return alone - self._each(torch.cholesky_solve(alone.sum(-1, keepdim=True), self.coupling).expand_as(right))

    def _each(self, right: Tensor) -> Tensor:
        return (self.blocks @ right.mT.unsqueeze(-1)).squeeze(-1).mT


def _start(kernel: Tensor, targets: Tensor, penalty: float) -> _State:
    """Equal slacks, and multipliers between d and 2 d that satisfy the first equation."""
    s = torch.full_like(targets, penalty / targets.shape[-1])
    a = penalty * targets - s
    z_and_u = targets - kernel @ a
    low, high = z_and_u.aminmax(dim=-1, keepdim=True)
    u = 2 * low - high
    return _State(a, s, z_and_u - u, u, targets)


def _step(kernel: Tensor, state: _State, path_end: float) -> _State:
    """Predict, centre, correct (Nocedal & Wright 2006, algorithm 16.4, with one step length for all variables)."""
    a, s, z = state.a, state.s, state.z
    newton = _Newton.at(kernel, state)
    product = s * z

    def direction(goal: Tensor) -> tuple[Tensor, Tensor]:
        """Changes of a and z towards s z = s z + goal; the change of s is minus that of a."""
        da = newton.solve(-goal / s)
        return da, (goal + z * da) / s

    da, dz = direction(-product)
    length = _length(state, da, dz)
    path, predicted = _mean(product), _mean((s - length * da) * (z + length * dz))
    centre = (path * (predicted / path) ** 3).clamp_min(path_end)
    da, dz = direction(centre - product + da * dz)
    length = (_STAY_INSIDE * _length(state, da, dz)).where(_length(state, da, dz) < 1, 1)
    a, z = a + length * da, z + length * dz
    # u from the first equation, so that rounding errors do not accumulate.
    u = (state.targets - kernel @ a - z).mean(-1, keepdim=True)
    return _State(a, s - length * da, z, u, state.targets)


def _length(state: _State, da: Tensor, dz: Tensor) -> Tensor:
    """The longest step, at most 1, that keeps slacks and multipliers from becoming negative: ``[T, 1, 1]``."""
    shrinking = torch.maximum(da / state.s, -dz / state.z).amax((1, 2), keepdim=True)
    return 1 / shrinking.clamp_min(1)


def _mean(values: Tensor) -> Tensor:
    return values.mean((1, 2), keepdim=True)
