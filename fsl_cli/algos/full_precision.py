"""Solving a system of equations needs all digits, whatever the precision of the network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def full_precision(like: Tensor) -> Iterator[None]:
    """Keep mixed precision out of a ``with`` block: systems of equations need all digits.

    Args:
        like: a tensor on the device that is meant.
    """
    with torch.autocast(like.device.type, enabled=False):
        yield
