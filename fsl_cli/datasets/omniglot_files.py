"""Where people have Omniglot: the archives as published, the clone of its repository, or all alphabets in one place."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from fsl_cli.datasets.image_files import FolderImages, ImageFiles, ZipImages, readable

FOLDERS = ("omniglot", "omniglot-py", "omniglot-master")  # in upper or lower case; inside each, also python/ as in the clone
_SHOWN = 12  # names of files in a message


class SomeAlphabets:
    """The images of some alphabets: those whose path has ``<alphabet>/<character>/<file>`` at its end.

    Args:
        files: images of these and of other alphabets.
        others: the alphabets to leave out.
    """

    def __init__(self, files: ImageFiles, others: Collection[str]) -> None:
        self.path = files.path
        self._files, self._others = files, others

    def names(self) -> list[str]:
        """All names, sorted."""
        return [name for name in self._files.names() if _alphabet(name) not in self._others]

    def read(self, name: str) -> bytes:
        """The bytes of one file."""
        return self._files.read(name)

    def fingerprint(self) -> str:
        """That of all the files."""
        return self._files.fingerprint()


def find(data_dir: Path, archive: str, alphabets: Collection[str], others: Collection[str]) -> ImageFiles | None:
    """The images of one archive, zipped or extracted; None if they are not here.

    Args:
        data_dir: the folder with Omniglot's, or Omniglot's own.
        archive: its name; a file or folder of this name comes first, then any that holds its alphabets.
        alphabets: the alphabets of the archive.
        others: those of the other archive, which may be in the same place.

    Raises:
        FslError: a file or folder cannot be read.
    """
    with readable(data_dir):
        places = list(_places(data_dir))
        for place in places:
            if (place / f"{archive}.zip").is_file():
                return SomeAlphabets(ZipImages(place / f"{archive}.zip"), others)
            if (place / archive).is_dir():
                return SomeAlphabets(FolderImages(place / archive), others)
        for place in places:
            for path in (place, *sorted(place.iterdir())):
                if path.is_dir() and any((path / alphabet).is_dir() for alphabet in alphabets):
                    return SomeAlphabets(FolderImages(path), others)
                if path.suffix == ".zip" and path.stem.lower().startswith(("omniglot", "images")) and path.is_file():
                    files = ZipImages(path)
                    if any(_alphabet(name) in alphabets for name in files.names()):
                        return SomeAlphabets(files, others)
    return None


def contents(data_dir: Path) -> str:
    """What is where Omniglot was looked for, for a message."""
    found = [f"{place}: {_names(place)}" for place in _places(data_dir)]
    return "; ".join(found) or "no such folder"


def _places(data_dir: Path) -> Iterator[Path]:
    """The folders that exist, in the order in which they are searched."""
    if not data_dir.is_dir():
        return
    named = [path for name in FOLDERS for path in sorted(data_dir.iterdir()) if path.name.lower() == name and path.is_dir()]
    for place in (*named[:1], data_dir, *named[1:]):
        yield place
        if (place / "python").is_dir():
            yield place / "python"


def _names(place: Path) -> str:
    names = sorted(path.name for path in place.iterdir() if not path.name.startswith("."))
    more = [f"and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return ", ".join(names[:_SHOWN] + more) or "nothing"


def _alphabet(name: str) -> str:
    """The alphabet of a path ``.../<alphabet>/<character>/<file>``; empty: it has none."""
    return "/".join(name.split("/")[-3:-2])
