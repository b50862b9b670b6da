"""What the processes of a run tell each other in an outer step, so that it is the step of one process."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fsl_cli.backbones.batch_norm import BatchNorm
from fsl_cli.processes import Processes


class Exchange:
    """Sums gradients and metrics over the processes and joins what they did to the module's buffers.

    The running averages of `BatchNorm` move with every episode, r <- (1-m) r + m b, in the order of the episodes. The
    n moves of one process are r <- (1-m)^n r + s, and s follows from the averages before and after; these maps are
    composed in the order of the processes, which is the order of the episodes. So the averages are those of one
    process, to rounding. Any other buffer becomes that of process 0, which always has episodes. Whatever the module's
    layers, all processes leave `join` with the same bits.

    Args:
        module: what is trained; the same in every process.
        processes: who takes part.
    """

    def __init__(self, module: nn.Module, processes: Processes) -> None:
        self._module, self._processes = module, processes
        self._norms = [layer for layer in module.modules() if isinstance(layer, BatchNorm)]
        averages = {id(each) for layer in self._norms for each in layer.buffers()}
        self._others = [each for each in module.buffers() if id(each) not in averages]
        self._before: list[tuple[int, list[Tensor]]] = []
        self._common: tuple[list[str], list[str]] | None = None

    def start(self) -> None:
        """Remember the averages as they are before the step."""
        if self._processes.size > 1:
            self._before = [(int(layer.moves), [each.clone() for each in _averages(layer)]) for layer in self._norms]

    @torch.no_grad()
    def join(self, metrics: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Replace gradients and buffers by those of the whole step; call it in every process after its part.

        Args:
            metrics: sums over the episodes of this process, scalars; empty where it had none.

        Returns:
            Their sums over all processes.
        """
        parameters = dict(self._module.named_parameters())
        if self._common is None:  # a process without episodes has to know what the others are going to add up
            trained = [name for name, each in parameters.items() if each.grad is not None]
            self._common = self._processes.from_first(lambda: (list(metrics), trained))
        names, trained = self._common
        gradients = [_or_zeros(parameters[name].grad, parameters[name]) for name in trained]
        some = gradients[0].new_zeros(())
        summed = self._processes.summed([*gradients, *(metrics.get(name, some) for name in names), self._moved(some)])
        for name, gradient in zip(trained, summed, strict=False):
            parameters[name].grad = gradient
        self._compose(summed[-1])
        if self._others:
            self._processes.copy_from_first(self._others)
        return dict(zip(names, summed[len(trained) :], strict=False))

    def _moved(self, some: Tensor) -> Tensor:
        """``[processes, L]``: in this process's row its maps (the factor, then the offsets, of every layer), else zeros."""
        row = [some.new_zeros(0)]
        for layer, (moves, before) in zip(self._norms, self._before, strict=True):
            factor = (1 - layer.momentum) ** (int(layer.moves) - moves)
            row.append(some.new_full((1,), factor))
            row += [after - factor * old for after, old in zip(_averages(layer), before, strict=True)]
        flat = torch.cat(row)
        rows = flat.new_zeros(self._processes.size, len(flat))
        rows[self._processes.rank] = flat
        return rows

    def _compose(self, rows: Tensor) -> None:
        position = 0
        for layer, (_, before) in zip(self._norms, self._before, strict=True):
            factors, position = rows[:, position], position + 1
            for average, start in zip(_averages(layer), before, strict=True):
                offsets = rows[:, position : position + len(start)]
                for factor, offset in zip(factors, offsets, strict=True):
                    start = factor * start + offset
                average.copy_(start)
                position += len(start)


def _averages(layer: BatchNorm) -> tuple[Tensor, Tensor]:
    return layer.running_mean, layer.running_var


def _or_zeros(gradient: Tensor | None, parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if gradient is None else gradient
