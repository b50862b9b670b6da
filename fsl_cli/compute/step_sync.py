"""Synchronisation of the processes of a run after an outer step, so that the result is that of a single process."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fsl_cli.compute.processes import Processes
from fsl_cli.compute.running_averages import RunningAverages


class Exchange:
    """Sums gradients and metrics over the processes and combines their changes of the module's buffers.

    `RunningAverages` move with every batch, r <- (1-m) r + m b, in the order of the episodes. The n moves of one process
    are r <- (1-m)^n r + s, and s follows from the averages before and after; these maps are composed in the order of the
    processes, which is the order of the episodes. The averages are therefore those of a single process, up to rounding. Any
    other buffer is copied from process 0, which always has episodes. After `join` all processes hold bit-identical values.

    Args:
        module: what is trained; the same in every process.
        processes: the processes of the run.
    """

    def __init__(self, module: nn.Module, processes: Processes) -> None:
        self._module, self._processes = module, processes
        self._moving = [layer for layer in module.modules() if isinstance(layer, RunningAverages)]
        averages = {id(each) for layer in self._moving for each in layer.buffers()}
        self._others = [each for each in module.buffers() if id(each) not in averages]
        self._before: list[tuple[int, list[Tensor]]] = []
        self._names: list[str] | None = None

    def start(self) -> None:
        """Store the averages as they are before the step."""
        if self._processes.size > 1:
            self._before = [(int(layer.moves), [each.clone() for each in layer.averages()]) for layer in self._moving]

    @torch.no_grad()
    def join(self, metrics: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Replace gradients and buffers by those of the whole step; call it in every process after its part.

        Args:
            metrics: sums over the episodes of this process, scalars; empty where it had none.

        Returns:
            Their sums over all processes.
        """
        if self._names is None:  # a process without episodes has to know what the others are going to add up
            self._names = self._processes.from_first(lambda: list(metrics))
        parameters = [each for each in self._module.parameters() if each.requires_grad]
        some = next(self._module.parameters()).new_zeros(())
        # Which parameters have a gradient may change in the course of a training, and differ where there are no episodes.
        present = some.new_tensor([each.grad is not None for each in parameters])
        mine = [metrics.get(name, some) for name in self._names]
        gradients = [_or_zeros(each.grad, each) for each in parameters]
        present, moved, *summed = self._processes.summed([present, self._moved(some), *mine, *gradients])
        for parameter, gradient, anywhere in zip(parameters, summed[len(mine) :], present.tolist(), strict=True):
            parameter.grad = gradient if anywhere else None
        self._compose(moved)
        if self._others:
            self._processes.copy_from_first(self._others)
        return dict(zip(self._names, summed, strict=False))

    def _moved(self, some: Tensor) -> Tensor:
        """``[processes, L]``: in this process's row its maps (the factor, then the offsets, of every layer), else zeros."""
        row = [some.new_zeros(0)]
        for layer, (moves, before) in zip(self._moving, self._before, strict=True):
            factor = (1 - layer.momentum) ** (int(layer.moves) - moves)
            row.append(some.new_full((1,), factor))
            row += [after - factor * old for after, old in zip(layer.averages(), before, strict=True)]
        flat = torch.cat(row)
        rows = flat.new_zeros(self._processes.size, len(flat))
        rows[self._processes.rank] = flat
        return rows

    def _compose(self, rows: Tensor) -> None:
        position = 0
        for layer, (_, before) in zip(self._moving, self._before, strict=True):
            factors, position = rows[:, position], position + 1
            for average, start in zip(layer.averages(), before, strict=True):
                offsets = rows[:, position : position + len(start)]
                for factor, offset in zip(factors, offsets, strict=True):
                    start = factor * start + offset
                average.copy_(start)
                position += len(start)


def _or_zeros(gradient: Tensor | None, parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if gradient is None else gradient
