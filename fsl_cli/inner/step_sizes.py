"""Inner-loop step sizes alpha: one constant, or learned with the other meta-parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

Learning = Literal["none", "per_layer", "per_layer_per_step", "per_parameter"]


class StepSizes(nn.Module):
    """One step size for each adapted tensor.

    ``none``: the constant ``initial``. ``per_layer``: one learned number per weight or bias tensor, shared by all steps;
    ``per_layer_per_step``: one learned number per tensor and step (MAML++, Antoniou et al. 2019).
    ``per_parameter``: one learned number per scalar parameter (Meta-SGD, Li et al. 2017). Learned step sizes start at
    ``initial`` and may become negative.

    Args:
        parameters: the adapted parameters, by name.
        initial: alpha > 0.
        learning: what is learned, see above.
        steps: number of steps with their own step sizes, for ``per_layer_per_step``.
    """

    def __init__(self, parameters: Mapping[str, Tensor], initial: float, learning: Learning, steps: int = 1) -> None:
        super().__init__()
        self.initial, self.learning, self.steps = initial, learning, steps
        self._names = list(parameters)
        shapes: dict[Learning, list[tuple[int, ...]]] = {
            "none": [],
            "per_layer": [()] * len(parameters),
            "per_layer_per_step": [(steps,)] * len(parameters),
            "per_parameter": [tuple(theta.shape) for theta in parameters.values()],
        }
        self.values = nn.ParameterList([torch.full(shape, float(initial)) for shape in shapes[learning]])

    def forward(self) -> list[dict[str, Tensor | float]]:
        """Alpha by parameter name, for each step; the last entry also applies to all later steps."""
        if not self.values:
            return [dict.fromkeys(self._names, self.initial)]
        if self.learning == "per_layer_per_step":
            return [{name: alpha[s] for name, alpha in zip(self._names, self.values, strict=True)} for s in range(self.steps)]
        return [dict(zip(self._names, self.values, strict=True))]

    def mean(self) -> Tensor | None:
        """Mean of the learned step sizes; None if they are not learned."""
        return torch.cat([alpha.detach().flatten() for alpha in self.values]).mean() if self.values else None
