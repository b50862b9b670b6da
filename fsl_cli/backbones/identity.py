"""Identity: examples as they are, for features that another network has computed.

fsl train algo=r2d2 dataset=features dataset.file=embeddings.npz backbone=identity
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


class Identity(nn.Sequential):
    """Flattens examples ``[B, ...]`` to ``[B, D]``; nothing is learned here, only in the head of an algorithm that has one."""

    def __init__(self) -> None:
        super().__init__(OrderedDict(flatten=nn.Flatten()))
