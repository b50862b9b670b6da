"""Pickles of NumPy arrays, read without running their code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, BinaryIO

from fsl_cli.datasets.pickle_sizes import check_sizes
from fsl_cli.errors import FslError, first_line

# What arrays, dictionaries and lists of numbers and texts need; a pickle may name any function, and calls it when read.
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
    ("collections", "OrderedDict"),
}


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"names {module}.{name}, which a file of arrays does not need")
        return _latin1 if name == "encode" else super().find_class(module, name)


def _latin1(text: str, encoding: str) -> bytes:
    """All that pickles of arrays need of ``codecs.encode``, which would run any codec."""
    if encoding.replace("-", "") != "latin1":
        raise pickle.UnpicklingError(f"encodes as {encoding}, which a file of arrays does not need")
    return text.encode("latin1")


def load_arrays(file: BinaryIO, path: Path) -> Any:
    """What a pickle of Python 2 or 3 holds; texts of Python 2 are decoded as Latin-1.

    Args:
        file: the pickle, opened.
        path: its name, for messages.

    Raises:
        FslError: it is damaged, needs anything but arrays, containers, numbers and texts, or announces more than it holds.
    """
    try:
        check_sizes(file)
        return _Arrays(file, encoding="latin1").load()
    except (
        *(pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, ImportError, IndexError, KeyError),
        *(MemoryError, OverflowError, RecursionError),
    ) as problem:
        hint = "it is not read further, since a pickle can run code; put the original file there"
        raise FslError(f"not a pickle of arrays: {first_line(problem)}", where=str(path), hint=hint) from problem
