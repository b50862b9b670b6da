"""Batch normalisation with an explicit choice of statistics.

`torch.nn.BatchNorm2d` ties this choice to `train()` and `eval()` and updates its running averages during the forward
pass, which neither the inner loop nor `torch.func.vmap` supports. Here the caller chooses the images from which the
statistics are computed; see `statistics_from`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsl_cli.compute.running_averages import RunningAverages

Source = Literal["batch", "tracked_batch", "running", "first_rows"]


class BatchNorm(RunningAverages):
    """Batch normalisation of ``[B, C]`` or ``[B, C, H, W]`` over all axes except C (Ioffe & Szegedy 2015).

    Args:
        num_features: C.
        eps: added to the variance.
        momentum: weight of a new batch in the running averages.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(momentum)
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.source: Source = "batch"
        self.rows = 0

    def averages(self) -> tuple[Tensor, ...]:
        """Running mean and variance."""
        return self.running_mean, self.running_var

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` with the statistics chosen by `statistics_from`; by default those of ``x`` itself."""
        if self.source in ("running", "tracked_batch"):
            if self.source == "tracked_batch":
                self.moves += 1
            return F.batch_norm(
                x,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                training=self.source == "tracked_batch",
                momentum=self.momentum,
                eps=self.eps,
            )
        # Written out, because the second derivative of F.batch_norm under torch.func.vmap has an error of half a per cent
        # (torch 2.15); the engine parity tests detect it.
        return self._normalise_by(x, x if self.source == "batch" else x[: self.rows])

    def _normalise_by(self, x: Tensor, reference: Tensor) -> Tensor:
        axes = [axis for axis in range(x.ndim) if axis != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        variance, mean = torch.var_mean(reference, axes, correction=0, keepdim=True)
        return (x - mean) * torch.rsqrt(variance + self.eps) * self.weight.view(shape) + self.bias.view(shape)


@contextmanager
def statistics_from(net: nn.Module, source: Source, rows: int = 0) -> Iterator[None]:
    """Set the source of the mean and variance of every `BatchNorm` in ``net`` for the duration of a ``with`` block.

    Args:
        net: any module.
        source: ``batch``: all images of the call (transductive if they are queries);
            ``tracked_batch``: the same, and the running averages are updated with them;
            ``running``: the running averages; ``first_rows``: the first ``rows`` images of the call.
        rows: number of images for ``first_rows``.
    """
    layers = [layer for layer in net.modules() if isinstance(layer, BatchNorm)]
    before = [(layer.source, layer.rows) for layer in layers]
    for layer in layers:
        layer.source, layer.rows = source, rows
    try:
        yield
    finally:
        for layer, (old_source, old_rows) in zip(layers, before, strict=True):
            layer.source, layer.rows = old_source, old_rows


def convert_batch_norm(net: nn.Module) -> nn.Module:
    """Replace every `torch.nn.BatchNorm1d` and `BatchNorm2d` in ``net`` by `BatchNorm`, keeping weights and averages.

    Returns:
        ``net`` itself, or the new layer if ``net`` is a batch normalisation layer.

    Raises:
        ValueError: a layer has no affine parameters or no running averages, which `BatchNorm` always has.
    """
    if isinstance(net, (nn.BatchNorm1d, nn.BatchNorm2d)):
        if not (net.affine and net.track_running_stats):
            raise ValueError(f"cannot convert {net}: it needs affine=True and track_running_stats=True")
        converted = BatchNorm(net.num_features, net.eps, 0.1 if net.momentum is None else net.momentum).to(net.weight)
        state = {name: value for name, value in net.state_dict().items() if name != "num_batches_tracked"}
        converted.load_state_dict(state)
        return converted
    for name, child in net.named_children():
        setattr(net, name, convert_batch_norm(child))
    return net
