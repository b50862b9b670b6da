"""Inner-loop step sizes alpha: one number, or learned with the other meta-parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

Learning = Literal["none", "per_layer", "per_parameter"]


class StepSizes(nn.Module):
    """One step size for each adapted tensor.

    ``none``: the constant ``initial``. ``per_layer``: one learned number for each weight and each bias tensor, shared by
    all steps. ``per_parameter``: one learned number for every weight (Meta-SGD, Li et al. 2017). Learned step sizes
    start at ``initial`` and may become negative.

    Args:
        parameters: the adapted parameters, by name.
        initial: alpha > 0.
        learning: see above.
    """

    def __init__(self, parameters: Mapping[str, Tensor], initial: float, learning: Learning) -> None:
        super().__init__()
        self.initial = initial
        self._names = list(parameters)
        shapes = [theta.shape if learning == "per_parameter" else () for theta in parameters.values()]
        learned = [] if learning == "none" else [nn.Parameter(torch.full(shape, float(initial))) for shape in shapes]
        self.values = nn.ParameterList(learned)

    def forward(self) -> dict[str, Tensor | float]:
        """Alpha by parameter name."""
        if not self.values:
            return dict.fromkeys(self._names, self.initial)
        return dict(zip(self._names, self.values, strict=True))
