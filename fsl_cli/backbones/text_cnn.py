"""TextCNN: word vectors, convolutions of several widths over them, and the maximum over the text (Kim 2014).

"Convolutional neural networks for sentence classification", EMNLP 2014; here as CNN-rand, whose word vectors are learned from
scratch. A filter w of width h has the feature ReLU(w . x_i:i+h-1 + b) at position i of a text x, and gives the largest.
Kim: vectors of 300 numbers, 100 filters of each of the widths 3, 4 and 5, dropout of 0.5 on the features.

Deviations: vectors of 128 numbers, and no dropout by default; Kim's limit on the norm of the classifier's weights is left out.

    fsl train algo=protonet dataset=clinc150 dataset.encoder=tokens backbone=text_cnn
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Len, Lt
from torch import Tensor, nn

PADDING = 0


class TextCNN(nn.Module):
    """Maps texts, numbers of words ``[B, L]``, to features ``[B, filters * len(widths)]``.

    Args:
        vocabulary: the words; word k has the number k + 2, after 0 for padding and 1 for unknown words.
        embedding: size of a word vector.
        filters: of each width.
        widths: words that a filter sees at once.
        dropout: drop rate of the features while training.
    """

    words: Tensor  # a hash of the vocabulary

    def __init__(
        self,
        vocabulary: Sequence[str],
        *,
        embedding: Annotated[int, Gt(0)] = 128,
        filters: Annotated[int, Gt(0)] = 100,
        widths: Annotated[list[Annotated[int, Gt(0)]], Len(1)] = [3, 4, 5],  # noqa: B006
        dropout: Annotated[float, Ge(0), Lt(1)] = 0.0,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(vocabulary) + 2, embedding)
        self.convolutions = nn.ModuleList(nn.Conv1d(embedding, filters, width) for width in widths)
        self.dropout, self.widest = nn.Dropout(dropout), max(widths)
        digest = hashlib.sha256("\n".join(vocabulary).encode()).digest()
        self.register_buffer("words", torch.tensor([int.from_bytes(digest[:7], "big")]))

    def forward(self, tokens: Tensor) -> Tensor:
        """Features of a batch of texts."""
        padded = F.pad(tokens.long(), (0, max(0, self.widest - tokens.shape[-1])), value=PADDING)
        # Zeros for padding; padding_idx of nn.Embedding has a gradient under torch.func.vmap (torch 2.15).
        vectors = (self.embedding(padded) * (padded != PADDING).unsqueeze(-1)).transpose(1, 2)
        return self.dropout(torch.cat([convolution(vectors).relu().amax(-1) for convolution in self.convolutions], 1))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Refuse weights that were learned with other words: the same numbers would stand for other words."""
        saved = state_dict.get(f"{prefix}words")
        if isinstance(saved, Tensor) and not torch.equal(saved.cpu(), self.words.cpu()):
            errors: list[str] = rest[-1]
            errors.append("it was trained with another vocabulary: test it on the file and options of its training")
        super()._load_from_state_dict(state_dict, prefix, *rest)
