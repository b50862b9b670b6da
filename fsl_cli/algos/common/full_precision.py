"""Full precision for computations on embeddings, whatever the precision of the network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def full_precision(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Switch mixed precision off in a ``with`` block, for systems of equations, small steps, differences of distances.

    Args:
        tensors: inputs of the computation, on one device.

    Yields:
        The tensors, in float32 if they had a lower precision.
    """
    with torch.autocast(tensors[0].device.type, enabled=False):
        yield tuple(each.float() if each.dtype in (torch.bfloat16, torch.float16) else each for each in tensors)
