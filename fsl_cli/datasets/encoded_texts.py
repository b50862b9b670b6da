"""Texts encoded once: the vectors are kept in the cache folder, keyed by the texts and the encoder."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock

from fsl_cli.datasets.pack import ProgressFactory, pack_key, silent
from fsl_cli.datasets.text_encoders import Encoder
from fsl_cli.errors import FslError
from fsl_cli.results.files import unwritable, write_atomically

_BATCH = 256  # texts encoded between two movements of the progress bar


def encoded(texts: Sequence[str], encoder: Encoder, cache_dir: Path, progress: ProgressFactory | None = None) -> np.ndarray:
    """The vectors of texts, float32 ``[n, D]``; the encoder is loaded only if the cache does not have them.

    One process encodes, others that start at the same time wait for it. A damaged file is written again.

    Raises:
        FslError: the cache folder is not writable, or the encoder cannot be loaded or gives something else.
    """
    content = hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()
    key = pack_key(texts=content, encoder=encoder.name, version=encoder.version)
    path = cache_dir / "texts" / f"{encoder.name.replace('/', '_')}-{key}.npz"
    found = _read(path, len(texts))
    if found is not None:
        return found
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f".{path.name}.lock"))
        lock.acquire()
    except OSError as error:
        raise unwritable(path.parent, error) from error
    try:
        found = _read(path, len(texts))  # another process may have encoded them while this one waited
        if found is None:
            found = _encode(list(texts), encoder, progress or silent)
            vectors = found
            write_atomically(path, lambda file: np.savez(file, x=vectors))
    finally:
        lock.release()
    return found


def _read(path: Path, count: int) -> np.ndarray | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            found: np.ndarray = file["x"]  # verifies the checksum
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return found if found.dtype == np.float32 and found.ndim == 2 and len(found) == count else None


def _encode(texts: list[str], encoder: Encoder, progress: ProgressFactory) -> np.ndarray:
    parts = []
    with progress(f"encoding with {encoder.name}", len(texts)) as advance:
        encode = encoder.load()
        for first in range(0, len(texts), _BATCH):
            part = texts[first : first + _BATCH]
            parts.append(np.asarray(encode(part), dtype=np.float32))
            if parts[-1].ndim != 2 or len(parts[-1]) != len(part) or not np.isfinite(parts[-1]).all():
                what = f"{encoder.name} gives no finite vector for each text"
                raise FslError(what, where="dataset.encoder", hint="use another one")
            advance(len(part))
    return np.concatenate(parts)
