"""Batch normalisation followed by a ReLU, for many tasks at once, with hand-written first and second derivatives.

With c = x - mean(x) and r = (mean(c^2) + eps)^(-1/2), means over the n reference rows (Ioffe & Szegedy 2015):

    z = c r gamma + beta,    y = max(z, 0)
    dbeta = sum dz,    dgamma = r q,    q = sum dz c
    dx = gamma r (dz - (dbeta + r^2 q c) / n)    for the reference rows,    gamma r dz    for the others

The tangents are the derivatives of these equations, with tc = tx - mean(tx) and tr = -r^3 mean(c tx). tc itself is never
stored: tx and its mean are used instead, which saves a pass over memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fsl_cli.backbones.batch_norm import BatchNorm
from fsl_cli.inner.fast.layers import Layer, Saved, Weights
from fsl_cli.inner.fast.products import rows, to_shape_of


class BatchNormLayer(Layer):
    """Batch normalisation over the images of each task, optionally followed by a ReLU.

    Weights are ``[1, C]`` or ``[T, 1, C]``. The tangents are those of ``norm.source == "batch"``.

    Args:
        norm: the layer to implement; its ``source`` must be ``batch`` or ``first_rows``.
        prefix: prefix of the names of its weights.
        relu: whether a ReLU follows.
    """

    def __init__(self, norm: BatchNorm, prefix: str, *, relu: bool) -> None:
        self.norm, self.relu = norm, relu
        self.weight, self.bias = f"{prefix}weight", f"{prefix}bias"

    def forward(self, w: Weights, x: Tensor, saved: Saved) -> Tensor:
        """``y``; stores c, r, n and, with a ReLU, y in ``saved``."""
        flat = rows(x)
        n = flat.shape[1]
        if self.norm.source == "first_rows":
            n = n // x.shape[1] * self.norm.rows
        reference = flat[:, :n]
        c = flat - reference.mean(1, keepdim=True)
        r = torch.rsqrt(c[:, :n].square().mean(1, keepdim=True) + self.norm.eps)
        y = torch.addcmul(w[self.bias], c, r * w[self.weight])
        if self.relu:
            saved["y"] = y.relu_()
        saved["c"], saved["r"], saved["n"], saved["shape"] = c, r, n, x.shape
        return y.view(x.shape)

    def backward(self, w: Weights, dy: Tensor, saved: Saved, dw: Saved, *, need_dx: bool) -> Tensor | None:
        """The equations above; stores dz, dbeta and q in ``saved``."""
        c, r, n = saved["c"], saved["r"], saved["n"]
        dz = self._through_relu(dy, saved)
        dbeta = dz.sum(1, keepdim=True)
        q = (dz * c).sum(1, keepdim=True)
        dw[self.weight], dw[self.bias] = r * q, dbeta
        saved["dz"], saved["dbeta"], saved["q"] = dz, dbeta, q
        if not need_dx:
            return None
        s = r * w[self.weight]
        by_mean, by_variance = s * dbeta / -n, s * r.square() * q / -n
        if n == c.shape[1]:
            return torch.addcmul(by_mean, dz, s).addcmul_(c, by_variance).view(dy.shape)
        dx = dz * s
        dx[:, :n].addcmul_(c[:, :n], by_variance).add_(by_mean)
        return dx.view(dy.shape)

    def forward_tangent(self, w: Weights, tw: Weights, tx: Tensor | None, saved: Saved) -> Tensor | None:
        """``tz = tc s + c ts + tbeta``, with ``s = r gamma``."""
        if tx is None and not {self.weight, self.bias} & set(tw):
            return None
        c, r = saved["c"], saved["r"]
        zero = torch.zeros_like(r)
        tbeta, tgamma, tr = tw.get(self.bias, zero), tw.get(self.weight, zero), zero
        if tx is not None:
            tx = saved["tx"] = rows(tx)
            mean = saved["tx_mean"] = tx.mean(1, keepdim=True)
            tr = saved["tr"] = -(r**3) * (c * tx).mean(1, keepdim=True)
        ts = saved["ts"] = tr * w[self.weight] + r * tgamma
        if tx is None:
            tz = torch.addcmul(tbeta, c, ts)
        else:
            s = r * w[self.weight]
            tz = torch.addcmul(tbeta - mean * s, tx, s).addcmul_(c, ts)
        return self._through_relu(tz, saved).view(saved["shape"])

    def backward_tangent(
        self, w: Weights, tw: Weights, tdy: Tensor, saved: Saved, tdw: Saved, *, need_dx: bool
    ) -> Tensor | None:
        """``tdx = ts (dz - dbeta/n - b c) + s (tdz - tdbeta/n - tb c - b tc)``, with ``b = r^2 q / n``."""
        c, r, n, dz, dbeta, q = (saved[name] for name in ("c", "r", "n", "dz", "dbeta", "q"))
        zero = torch.zeros_like(r)
        tx, mean, tr, ts = saved.get("tx"), saved.get("tx_mean", zero), saved.get("tr", zero), saved.get("ts", zero)
        tdz = self._through_relu(tdy, saved)
        tdbeta = tdz.sum(1, keepdim=True)
        products = tdz * c if tx is None else (tdz * c).addcmul_(dz, tx)
        tq = products.sum(1, keepdim=True) - mean * dbeta
        tdw[self.weight] = to_shape_of(w[self.weight], tr * q + r * tq)
        tdw[self.bias] = to_shape_of(w[self.bias], tdbeta)
        if not need_dx:
            return None
        s, b, tb = r * w[self.weight], r.square() * q / n, (2 * r * tr * q + r.square() * tq) / n
        tdx = torch.addcmul(s * b * mean - (ts * dbeta + s * tdbeta) / n, dz, ts)
        tdx.addcmul_(tdz, s).addcmul_(c, -(ts * b + s * tb))
        if tx is not None:
            tdx.addcmul_(tx, -s * b)
        return tdx.view(tdy.shape)

    def _through_relu(self, dy: Tensor, saved: Saved) -> Tensor:
        """``dy`` as rows, set to zero where the ReLU was inactive."""
        return torch.ops.aten.threshold_backward(rows(dy), saved["y"], 0) if self.relu else rows(dy)
