"""What files and folders take on the disk."""

from __future__ import annotations

import os
from pathlib import Path


def bytes_of(path: Path) -> int:
    """Size of a file, or of the files in a folder and its subfolders; links in it are not followed. 0: it is not there."""
    try:
        if not path.is_dir():
            return path.stat().st_size
        return sum(_bytes_in(folder, names) for folder, _, names in os.walk(path))
    except OSError:
        return 0


def _bytes_in(folder: str, names: list[str]) -> int:
    total = 0
    for name in names:
        try:
            total += os.lstat(os.path.join(folder, name)).st_size
        except OSError:
            continue  # removed meanwhile
    return total
