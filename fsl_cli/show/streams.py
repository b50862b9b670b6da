"""Standard output and error that end no program: what nobody reads is dropped, what cannot be encoded is replaced."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO, cast

_IN_ASCII = str.maketrans({"±": "+/-", "×": "x", "…": "...", "–": "-", "—": "-", "µ": "u", "’": "'"})
_GONE = (errno.EPIPE, errno.ECONNRESET, errno.EIO)  # the reader of a pipe, the other side of a socket, the terminal


class Lasting:
    """A text stream that goes on when it cannot be written to.

    Args:
        stream: the stream; everything but writing is left to it.

    Attributes:
        failure: what has ended the stream although somebody may still read it, for example a full disk.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._ended = stream, False
        self.failure: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write ``text``; returns its length."""
        if not self._ended:
            try:
                self._write(text)
            except OSError as error:
                self._end(error)
        return len(text)

    def flush(self) -> None:
        """Pass on what has been written."""
        if not self._ended:
            try:
                self._stream.flush()
            except OSError as error:
                self._end(error)

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding
            self._stream.write(text.translate(_IN_ASCII).encode(encoding, "backslashreplace").decode(encoding))

    def _end(self, error: OSError) -> None:
        """Send the rest, also what is in the buffer and what other code writes, to nowhere."""
        self._ended = True
        self.failure = None if error.errno in _GONE else error
        with suppress(OSError, ValueError):  # a stream without a file descriptor has nothing else that could write
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextmanager
def lasting_streams() -> Iterator[list[Lasting]]:
    """Inside, standard output and error are `Lasting`; yields those of them that are open."""
    with ExitStack() as stack:
        streams = []
        for stream, redirect in ((sys.stdout, redirect_stdout), (sys.stderr, redirect_stderr)):
            if stream is not None and not isinstance(stream, Lasting):
                streams.append(Lasting(stream))
                stack.enter_context(redirect(cast(TextIO, streams[-1])))
        try:
            yield streams
        finally:
            for each in streams:
                each.flush()
