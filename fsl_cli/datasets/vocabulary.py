"""Words of texts: a vocabulary of the training classes, texts as numbers of words, and TF-IDF."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from fsl_cli.errors import FslError
from fsl_cli.optional import optional

PADDING, UNKNOWN = 0, 1  # the numbers of words begin at 2
_WORD = re.compile(r"\w+|[^\w\s]")


def words_of(text: str) -> list[str]:
    """Runs of letters and digits, in lower case, and every other character that is no blank."""
    return _WORD.findall(text.lower())


def vocabulary(texts: Sequence[str], max_words: int | None, min_texts: int) -> list[str]:
    """The words of texts, the most frequent first, those of equal frequency sorted.

    Args:
        texts: of the training classes.
        max_words: at most so many words; None: no limit.
        min_texts: the number of texts that a word must occur in.

    Raises:
        FslError: no word is left.
    """
    counts = Counter(word for text in texts for word in set(words_of(text)))
    found = sorted((word for word, count in counts.items() if count >= min_texts), key=lambda word: (-counts[word], word))
    if not found:
        what = f"no word occurs in {min_texts} texts of the training classes"
        raise FslError(what, where="dataset.min_texts", hint="use a smaller number")
    return found[:max_words]


def token_ids(texts: Sequence[str], words: Sequence[str], length: int) -> np.ndarray:
    """int32 ``[n, length]``: word k of the vocabulary is k + 2; texts end with padding, 0, or are cut; unknown words are 1."""
    numbers = {word: number for number, word in enumerate(words, start=2)}
    found = np.full((len(texts), length), PADDING, dtype=np.int32)
    for row, text in zip(found, texts, strict=True):
        ids = [numbers.get(word, UNKNOWN) for word in words_of(text)[:length]]
        row[: len(ids)] = ids
    return found


def tf_idf(texts: Sequence[str], training: np.ndarray, max_words: int | None, min_texts: int) -> Any:
    """TF-IDF of scikit-learn with its defaults, of unit length: words and frequencies are those of the training texts.

    Args:
        texts: ``n`` of them.
        training: int64, the indices of the training texts.
        max_words: at most so many words, the most frequent; None: no limit.
        min_texts: the number of training texts that a word must occur in.

    Returns:
        A sparse matrix, float32 ``[n, D]``.

    Raises:
        FslError: scikit-learn is not installed, or no word is left.
    """
    module = optional("sklearn.feature_extraction.text", needed_for="dataset.encoder=tfidf", package="scikit-learn")
    vectorizer = module.TfidfVectorizer(dtype=np.float32, max_features=max_words, min_df=min_texts)
    try:
        vectorizer.fit([texts[row] for row in training])
    except ValueError as error:
        what = f"no word occurs in {min_texts} texts of the training classes"
        raise FslError(what, where="dataset.min_texts", hint="use a smaller number") from error
    return vectorizer.transform(texts).tocsr()
