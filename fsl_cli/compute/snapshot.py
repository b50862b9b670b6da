"""The state that computing a loss changes besides gradients, so that a step that ran out of memory can be repeated."""

from __future__ import annotations

import torch
from torch import nn


class Snapshot:
    """A copy of the buffers of a module and of the state of torch's random generators.

    Args:
        module: whose buffers.
        device: whose generator, besides the processor's.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self._buffers = [(each, each.clone()) for each in module.buffers()]
        self._cpu = torch.get_rng_state()
        self._device, self._cuda = device, torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back."""
        for buffer, value in self._buffers:
            buffer.copy_(value)
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)
