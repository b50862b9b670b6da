"""Batch normalisation for every inner step (Antoniou et al. 2019, section 4: BNRS and BNWB)."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import cast

from torch import Tensor, nn

from fsl_cli.backbones.batch_norm import BatchNorm


class PerStepBatchNorm(nn.Module):
    """Scale, shift and running averages for every batch normalisation layer of a network and every step.

    They replace those of the network, which are then not learned.

    Args:
        net: the network.
        steps: number of steps; 0: the network keeps its own layers.
    """

    def __init__(self, net: nn.Module, steps: int) -> None:
        super().__init__()
        norms = {name: layer for name, layer in net.named_modules() if isinstance(layer, BatchNorm) and steps}
        self._names = list(norms)
        self.steps = nn.ModuleList(nn.ModuleList(copy.deepcopy(layer) for layer in norms.values()) for _ in range(steps))
        for layer in norms.values():
            layer.requires_grad_(False)

    def weights(self, *, averages: bool = False) -> list[dict[str, Tensor]]:
        """The weights of each step that replace those of the network, by name.

        Args:
            averages: include the running averages, which a forward pass with ``tracked_batch`` updates.
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
        """Whether any running average has been updated."""
        return any(layer.running_mean.any() for layers in self._layers() for layer in layers.values())

    def _layers(self) -> list[dict[str, BatchNorm]]:
        """The layers of every step, by the names of the layers that they replace."""
        return [dict(zip(self._names, cast("Iterable[BatchNorm]", step), strict=True)) for step in self.steps]
