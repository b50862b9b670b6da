"""The conjugate gradient method for many systems at once, against `torch.linalg.solve`."""

from __future__ import annotations

import pytest
import torch
from scipy.sparse.linalg import cg
from torch import Tensor

from fsl_cli.inner.conjugate_gradient import conjugate_gradient, inner_product, norm
from fsl_cli.inner.update_rules import Parameters

TASKS, SIZE = 3, 6
SHAPES = {"matrix": (2, 2), "row": (2,)}


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def positive() -> Tensor:
    """A symmetric positive matrix for each task, ``[T, 6, 6]``."""
    factor = normal(TASKS, SIZE, SIZE)
    return factor @ factor.mT + torch.eye(SIZE, dtype=torch.float64)


def named(flat: Tensor) -> Parameters:
    return {"matrix": flat[:, :4].unflatten(1, (2, 2)), "row": flat[:, 4:]}


def flattened(values: Parameters) -> Tensor:
    return torch.cat([values[name].flatten(1) for name in SHAPES], dim=1)


def solve(matrix: Tensor, b: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    def product(x: Parameters) -> Parameters:
        return named((matrix @ flattened(x).unsqueeze(-1)).squeeze(-1))

    x, residual = conjugate_gradient(product, named(b), steps)
    return flattened(x), residual


def test_n_steps_solve_every_system_of_n_unknowns():
    matrix, b = positive(), normal(TASKS, SIZE)
    x, residual = solve(matrix, b, SIZE)
    torch.testing.assert_close(x, torch.linalg.solve(matrix, b), rtol=1e-8, atol=1e-9)
    assert residual.max() < 1e-7


@pytest.mark.parametrize("steps", [1, 3])
def test_fewer_steps_match_scipy_and_the_residual_is_correct(steps):
    matrix, b = positive(), normal(TASKS, SIZE)
    x, residual = solve(matrix, b, steps)
    for task in range(TASKS):
        expected, _ = cg(matrix[task].numpy(), b[task].numpy(), rtol=0, maxiter=steps)
        torch.testing.assert_close(x[task], torch.from_numpy(expected), rtol=1e-8, atol=1e-10)
        left = b[task] - matrix[task] @ x[task]
        assert residual[task].item() == pytest.approx((left.norm() / b[task].norm()).item(), rel=1e-8)


def test_steps_after_the_solution_and_systems_of_zeros_are_harmless():
    matrix, b = torch.eye(SIZE, dtype=torch.float64).repeat(TASKS, 1, 1), normal(TASKS, SIZE)
    b[1] = 0
    x, residual = solve(matrix, b, 5)
    torch.testing.assert_close(x, b)
    assert residual.max() == 0


def test_a_task_stops_at_negative_curvature_and_the_others_continue():
    matrix, b = positive(), normal(TASKS, SIZE)
    matrix[0] = -matrix[0]  # at once: b itself
    matrix[1] = torch.diag(torch.tensor([1.0, 2, 3, 4, 5, -1], dtype=torch.float64))
    x, residual = solve(matrix, b, SIZE)
    torch.testing.assert_close(x[0], b[0])
    torch.testing.assert_close(x[2], torch.linalg.solve(matrix[2], b[2]), rtol=1e-8, atol=1e-9)
    assert x[1] @ b[1] > 0  # along the right-hand side, unlike a solution that follows the negative direction
    for task in (0, 1):
        left = b[task] - matrix[task] @ x[task]
        assert residual[task].item() == pytest.approx((left.norm() / b[task].norm()).item(), rel=1e-8)


def test_inner_products_are_over_all_entries_of_a_task():
    one, other = normal(TASKS, SIZE), normal(SIZE, TASKS).T
    torch.testing.assert_close(inner_product(named(one), named(other)), (one * other).sum(1))
    torch.testing.assert_close(norm(named(one)), one.norm(dim=1))
