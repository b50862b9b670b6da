"""What networks with an external memory share: addressing by content, writing, reading, initialisation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EPSILON = 1e-6  # added to squared norms: an empty row has no direction, and its gradient must stay finite

EMPTY = 1e-6  # value of a memory that has not been written to


def cosine_similarity(keys: Tensor, memory: Tensor) -> Tensor:
    """Cosine similarity of each key and each row of memory (Graves et al. 2014, eq. 6; Santoro et al. 2016, eq. 2).

    Args:
        keys: ``[B, H, W]``, one for each of H heads.
        memory: ``[B, M, W]``.

    Returns:
        ``[B, H, M]`` in -1..1; 0 for an empty row.
    """
    return _directions(keys) @ _directions(memory).transpose(1, 2)


def content_weights(keys: Tensor, strengths: Tensor, memory: Tensor) -> Tensor:
    """Softmax over the rows of memory of cosine times key strength (Graves et al. 2014, eq. 5).

    Args:
        keys: ``[B, H, W]``.
        strengths: ``[B, H]``, >= 0; the larger, the sharper the focus.
        memory: ``[B, M, W]``.

    Returns:
        ``[B, H, M]``; the weights of a head sum to one.
    """
    return (strengths.unsqueeze(-1) * cosine_similarity(keys, memory)).softmax(-1)


def erase_and_add(memory: Tensor, weights: Tensor, erase: Tensor, add: Tensor) -> Tensor:
    """One write, ``M (1 - w e^T) + w v^T`` (Graves et al. 2014, eq. 3-4).

    Args:
        memory: ``[B, M, W]``.
        weights: ``[B, M]``, how much of each row is written.
        erase: ``[B, W]`` in 0..1.
        add: ``[B, W]``.
    """
    weights = weights.unsqueeze(-1)
    return memory * (1 - weights * erase.unsqueeze(1)) + weights * add.unsqueeze(1)


def reads(weights: Tensor, memory: Tensor) -> Tensor:
    """What the heads read, concatenated: weights ``[B, H, M]`` and memory ``[B, M, W]`` to ``[B, H*W]``."""
    return (weights @ memory).flatten(1)


def aligned(interface: nn.Linear, hidden: int, features: int, keys: list[int], contents: list[int], width: int) -> None:
    """Initialise keys and contents as the same linear map of an image, so that a key finds the content of similar images.

    Args:
        interface: from the hidden units, the image, the previous image and its label to the inputs of the memory.
        hidden: number of hidden units.
        features: numbers per image.
        keys: first row of each key in the interface; keys are maps of the image.
        contents: first row of each content; contents are maps of the previous image and its label.
        width: of keys and contents.
    """
    weight = interface.weight
    with torch.no_grad():
        image = torch.randn(width, features) * 0.5 * features**-0.5
        label = torch.randn(width, weight.shape[1] - hidden - 2 * features) * 0.5
        for row in {*keys, *contents}:
            weight[row : row + width, hidden:] = 0
        for row in keys:
            weight[row : row + width, hidden : hidden + features] = image
        for row in contents:
            weight[row : row + width, hidden + features :] = torch.cat([image, label], 1)


def oneplus(x: Tensor) -> Tensor:
    """``1 + log(1 + e^x)``, at least one (Graves et al. 2016, Methods)."""
    return 1 + F.softplus(x)


def controller(inputs: int, hidden: int) -> nn.LSTMCell:
    """An LSTM whose forget gates start open (Jozefowicz et al. 2015), so that it keeps its state from the first step on."""
    cell = nn.LSTMCell(inputs, hidden)
    with torch.no_grad():
        cell.bias_ih[hidden : 2 * hidden] = 1.0
    return cell


def _directions(rows: Tensor) -> Tensor:
    return rows * (rows.square().sum(-1, keepdim=True) + _EPSILON).rsqrt()
