"""Files that a reader never meets half-written."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from fsl_cli.errors import FslError

WriteFile = Callable[[IO[bytes]], None]
"""Writes the content of a file that has been opened."""


def write_atomically(path: Path, write: WriteFile) -> None:
    """Write a file beside ``path`` and move it there, so that ``path`` is either the old file or the whole new one.

    Raises:
        FslError: the folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise unwritable(path.parent, error) from error
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's files are for the user alone
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise unwritable(path, error) from error
        raise


def _umask() -> int:
    """The permissions that this process takes away from new files."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically; see `write_atomically`."""

    def write(file: IO[bytes]) -> None:
        file.write(text.encode())

    write_atomically(path, write)


def unwritable(path: Path, error: OSError) -> FslError:
    """The `FslError` for a file or folder that cannot be written."""
    reason = error.strerror or str(error)
    return FslError(f"cannot be written: {reason}", where=str(path), hint="choose a folder you may write to")


def check_writable(folder: Path) -> None:
    """Make sure that ``folder`` could be created and written to, leaving nothing behind.

    Raises:
        FslError: it could not.
    """
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise unwritable(folder, error) from error


def to_json(content: Mapping[str, Any]) -> str:
    """The text of a JSON file; NaN and infinity become null."""
    return json.dumps(_finite(content), indent=2) + "\n"


def read_json(path: Path) -> dict[str, Any] | None:
    """The content of a JSON file, or None when there is none or it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
