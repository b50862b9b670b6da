"""The regular files of a folder and its subfolders, whatever else somebody has put there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def files_in(folder: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Every regular file with its ``/``-separated path below ``folder``, in the order of the names.

    Links are followed; a folder is read once, however many links lead to it, so that links in a circle end. Hidden files and
    folders, those of the operating system (``__MACOSX``), pipes, sockets and devices are left out.

    Raises:
        OSError: a folder cannot be read, or a link leads to itself.
    """
    seen = {_identity(os.stat(folder))}
    open_folders = [("", iter(visible(folder)))]
    while open_folders:  # a loop instead of a recursion, because folders may be nested deeper than Python's stack
        prefix, entries = open_folders[-1]
        entry = next(entries, None)
        if entry is None:
            open_folders.pop()
        elif entry.is_dir():
            identity = _identity(entry.stat())
            if identity not in seen:
                seen.add(identity)
                open_folders.append((f"{prefix}{entry.name}/", iter(visible(Path(entry.path)))))
        elif entry.is_file():
            yield prefix + entry.name, entry


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def visible(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, sorted by name, without hidden files and those of the operating system."""
    with os.scandir(folder) as entries:
        found = [entry for entry in entries if not entry.name.startswith(".") and entry.name != "__MACOSX"]
    return sorted(found, key=lambda entry: entry.name)
