"""Texts with labels: intents, topics, authors. A frozen encoder makes vectors of them, or they are numbers of words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from fsl_cli.datasets.encoded_texts import encoded
from fsl_cli.datasets.labelled_rows import Fractions, LabelledRows, Rows, SplitBy
from fsl_cli.datasets.pack import ProgressFactory
from fsl_cli.datasets.text_encoders import encoder
from fsl_cli.datasets.text_files import TextTable, read_texts
from fsl_cli.datasets.vocabulary import tf_idf, token_ids, vocabulary, words_of
from fsl_cli.errors import FslError

FITTED = {"tfidf": 1, "tokens": 2}  # what is learned from the training classes: the default of min_texts


class Text(LabelledRows):
    """Texts from one file, encoded once.

    Args:
        file: see `read_texts`; None: a subclass finds it.
        cache_dir: cache folder of the vectors.
        text: name of the column of texts; None: see `read_texts`.
        label: name of the column of labels; None: see `read_texts`.
        encoder: ``tfidf``; ``tokens``: numbers of words, for ``backbone=text_cnn``; or one of `text_encoders`.
        standardize: subtract the mean of each number of a vector and divide by its standard deviation, both of the training
            classes; not for tfidf and tokens.
        max_words: tfidf and tokens: at most so many words of the training classes, the most frequent; None: no limit.
        min_texts: tfidf and tokens: words in fewer texts of the training classes are unknown; None: 1 for tfidf, 2 for tokens.
        max_tokens: tokens: longer texts are cut.
        split_by: see `LabelledRows`.
        split_file: see `LabelledRows`.
        fractions: of the classes drawn for train, val and test.
        split_seed: of the draw of classes; not of the run.
        progress: reports encoding; None: no progress.
        warn: reports texts that are in two splits; None: no warnings.
    """

    name = "text"

    def __init__(
        self,
        file: Path | None,
        cache_dir: Path,
        *,
        text: str | None = None,
        label: str | None = None,
        encoder: str = "wordllama",
        standardize: bool = False,
        max_words: Annotated[int, Ge(1)] | None = None,
        min_texts: Annotated[int, Ge(1)] | None = None,
        max_tokens: Annotated[int, Ge(1)] = 64,
        split_by: SplitBy | None = None,
        split_file: Path | None = None,
        fractions: Fractions = [0.6, 0.2, 0.2],  # noqa: B006
        split_seed: Annotated[int, Ge(0)] = 0,
        progress: ProgressFactory | None = None,
        warn: Callable[[str], object] | None = None,
    ) -> None:
        super().__init__(file, split_by, split_file, fractions, split_seed)
        self.cache_dir, self.text, self.label = Path(cache_dir), text, label
        self.encoder, self.standardize = encoder, standardize
        self.max_words, self.max_tokens = max_words, max_tokens
        self.min_texts = FITTED.get(encoder, 1) if min_texts is None else min_texts
        self.progress, self.warn = progress, warn or (lambda text: None)
        if standardize and encoder in FITTED:
            raise FslError(f"{encoder} is not standardised", where="dataset.standardize", hint="leave it at false")

    @property
    def example_shape(self) -> tuple[int, ...]:
        """``(D,)`` of vectors, ``(L,)`` of the numbers of L words."""
        return (self._encoded.shape[1],)

    @cached_property
    def vocabulary(self) -> Sequence[str] | None:
        """Words of the training classes; word k has the number k + 2. None: examples are vectors."""
        if self.encoder != "tokens":
            return None
        return vocabulary(self._training_texts, self.max_words, self.min_texts)

    def values(self, rows: np.ndarray) -> Tensor:
        """Rows, int64 ``[n]``, as vectors, float32 ``[n, D]``, or as numbers of words, int32 ``[n, L]``."""
        found = self._encoded[rows]
        return torch.from_numpy(found if isinstance(found, np.ndarray) else found.toarray())

    @cached_property
    def rows(self) -> Mapping[str, Rows]:
        """The rows of each class of each split."""
        found = super().rows
        self._report_twice(found)
        return found

    @cached_property
    def table(self) -> TextTable:
        """Texts and labels."""
        return read_texts(self.file, self.text, self.label)

    @property
    def _training_texts(self) -> list[str]:
        return [self.table.texts[row] for row in self.training_rows]

    @cached_property
    def _encoded(self) -> Any:
        """Examples of all rows: an array, or a sparse matrix."""
        texts = self.table.texts
        if self.encoder == "tfidf":
            return tf_idf(texts, self.training_rows, self.max_words, self.min_texts)
        if self.vocabulary is not None:
            longest = max(len(words_of(text)) for text in self._training_texts)
            return token_ids(texts, self.vocabulary, max(1, min(longest, self.max_tokens)))
        vectors = encoded(texts, encoder(self.encoder), self.cache_dir, self.progress)
        if not self.standardize:
            return vectors
        mean, deviation = vectors[self.training_rows].mean(0), vectors[self.training_rows].std(0)
        return (vectors - mean) / np.where(deviation > 0, deviation, 1)

    def _report_twice(self, splits: Mapping[str, Rows]) -> None:
        texts = self.table.texts
        of_splits = {split: {texts[row] for rows in classes.values() for row in rows} for split, classes in splits.items()}
        twice = (of_splits["train"] & of_splits["val"]) | ((of_splits["train"] | of_splits["val"]) & of_splits["test"])
        if twice:
            what = "texts are in two splits, so a test may have been seen in training"
            self.warn(f"{self.file}: {len(twice)} {what}, for example {min(twice)!r}")
