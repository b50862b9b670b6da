"""Pickles of NumPy arrays, read without running their code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, BinaryIO

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
        return super().find_class(module, name)


def load_arrays(file: BinaryIO, path: Path) -> Any:
    """What a pickle of Python 2 or 3 holds; texts of Python 2 are decoded as Latin-1.

    Args:
        file: the pickle, opened.
        path: its name, for messages.

    Raises:
        FslError: it is damaged, or needs anything but arrays, containers, numbers and texts.
    """
    try:
        return _Arrays(file, encoding="latin1").load()
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        TypeError,
        AttributeError,
        ImportError,
        IndexError,
        KeyError,
    ) as problem:
        hint = "it is not read further, since a pickle can run code; put the original file there"
        raise FslError(f"not a pickle of arrays: {first_line(problem)}", where=str(path), hint=hint) from problem
