"""Pickles that announce more than they hold, found before they are read: a few bytes can make Python take all memory."""

from __future__ import annotations

import io
import mmap
import os
import pickle
import pickletools
from typing import BinaryIO

_LENGTHS = {  # of the length that stands before an argument: bytes
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_ARGUMENTS = {ord(each.code): each.arg.n if each.arg else 0 for each in pickletools.opcodes}
_LINES = {ord(each.code): each.arg.name.count("_pair") + 1 for each in pickletools.opcodes if each.arg}
_PUT, _LONG_BINPUT, _STOP = ord("p"), ord("r"), ord(".")


def check_sizes(file: BinaryIO) -> None:
    """Check that the arguments of a pickle end before the file, and that its memo has no gaps, which are filled with memory.

    Args:
        file: at the start of the pickle, where it is left.

    Raises:
        pickle.UnpicklingError: they do not.
    """
    try:
        if os.fstat(file.fileno()).st_size:  # what is empty cannot be mapped, and announces nothing
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                _check(content)
    except io.UnsupportedOperation:  # it is in memory
        _check(file.read())
        file.seek(0)


def _check(content: bytes | mmap.mmap) -> None:
    position, operations, end = 0, 0, len(content)
    while position < end and (code := content[position]) != _STOP:
        position, operations = position + 1, operations + 1
        if code not in _ARGUMENTS:
            raise pickle.UnpicklingError(f"there is no operation {code:#x}")
        size = _ARGUMENTS[code]
        if size == pickletools.UP_TO_NEWLINE:
            start = position
            for _ in range(_LINES[code]):
                position = content.find(b"\n", position, end) + 1
                if not position:
                    raise pickle.UnpicklingError("it is cut short")
            index = int(content[start : position - 1]) if code == _PUT else 0
        elif size in _LENGTHS:
            width = _LENGTHS[size]
            position += width + int.from_bytes(content[position : position + width], "little")
            index = 0
        else:
            index = int.from_bytes(content[position : position + 4], "little") if code == _LONG_BINPUT else 0
            position += size
        if position > end or index > operations:
            raise pickle.UnpicklingError("it announces more than it holds")
