"""Batch normalisation of every inner step (Antoniou et al. 2019, section 4: BNRS and BNWB)."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import cast

from torch import Tensor, nn

from fsl_cli.backbones.batch_norm import BatchNorm


class PerStepBatchNorm(nn.Module):
    """Scale, shift and running averages of every batch normalisation of a network, for every step.

    The network's own scale and shift are not learned then.

    Args:
        net: the network.
        steps: how many steps have their own; 0: the network keeps its own.
    """

    def __init__(self, net: nn.Module, steps: int) -> None:
        super().__init__()
        norms = {name: layer for name, layer in net.named_modules() if isinstance(layer, BatchNorm) and steps}
        self._names = list(norms)
        self.steps = nn.ModuleList(nn.ModuleList(copy.deepcopy(layer) for layer in norms.values()) for _ in range(steps))
        for layer in norms.values():
            layer.requires_grad_(False)

    def weights(self, *, averages: bool = False) -> list[dict[str, Tensor]]:
        """What each step has instead of what the network has, by name.

        Args:
            averages: besides scale and shift the running averages, which a forward pass by ``tracked_batch`` moves.
        """
        return [
            {
                f"{name}.{each}": value
                for name, layer in layers.items()
                for each, value in [*layer.named_parameters(), *(layer.named_buffers() if averages else ())]
            }
            for layers in self._layers()
        ] or [{}]

    def has_averages(self) -> bool:
        """Whether any running average has ever moved."""
        return any(layer.running_mean.any() for layers in self._layers() for layer in layers.values())

    def _layers(self) -> list[dict[str, BatchNorm]]:
        """The layers of every step by the names of those that they stand in for."""
        return [dict(zip(self._names, cast("Iterable[BatchNorm]", step), strict=True)) for step in self.steps]
