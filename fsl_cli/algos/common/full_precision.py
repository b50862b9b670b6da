"""What is computed from the embeddings of a few images needs all digits, whatever the precision of the network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def full_precision(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Keep mixed precision out of a ``with`` block: systems of equations, small steps, differences of distances.

    Args:
        tensors: what is computed with, on one device.

    Yields:
        They, in float32 if they had less.
    """
    with torch.autocast(tensors[0].device.type, enabled=False):
        yield tuple(each.float() if each.dtype in (torch.bfloat16, torch.float16) else each for each in tensors)
