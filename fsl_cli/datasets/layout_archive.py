"""CUB as downloaded: the pictures of a ``.tgz`` file, read without unpacking it."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

from fsl_cli.datasets.class_splits import SPLITS
from fsl_cli.datasets.image_files import readable
from fsl_cli.datasets.layouts import fingerprint
from fsl_cli.errors import FslError

ARCHIVE = "CUB_200_2011.tgz"
MOST_BYTES = 4 << 30  # CUB's pictures are 1.1 GB; a compressed file of a few megabytes can hold any number of zeros


class Archive:
    """``CUB_200_2011/images/<class>/<picture>.jpg`` in a compressed tar file.

    Nothing is written to disk: the pictures, 1.1 GB, are in memory while they are packed. See
    `fsl_cli.datasets.layouts.Layout`.
    """

    def __init__(self, path: Path, split: Mapping[str, Sequence[str]]) -> None:
        self.path, self._split = path, split

    def fingerprint(self) -> str:
        """See `Layout`."""
        with readable(self.path):
            return fingerprint([self.path], self.path.parent)

    def counts(self, split: str) -> dict[str, int]:
        """See `Layout`."""
        return {name: len(files) for name, files in self.pictures(split).items()}

    def pictures(self, split: str) -> dict[str, list[bytes]]:
        """See `Layout`."""
        return {name: self._classes[name] for name in self._split[split] if name in self._classes}

    @cached_property
    def _classes(self) -> dict[str, list[bytes]]:
        classes: dict[str, list[bytes]] = {}
        left = MOST_BYTES
        try:
            with readable(self.path), tarfile.open(self.path, "r|gz") as archive:
                for member in archive:
                    left -= max(member.size, 0)
                    if left < 0:
                        raise FslError(f"holds more than {MOST_BYTES >> 30} GB, which is not CUB", where=str(self.path))
                    parts = self._inside(member)
                    if len(parts) == 4 and parts[:2] == ("CUB_200_2011", "images") and not parts[3].startswith("."):
                        content = archive.extractfile(member)
                        classes.setdefault(parts[2], []).append(content.read() if content else b"")
        except (tarfile.TarError, EOFError, zlib.error, ValueError, OverflowError) as problem:
            hint = "it may have been cut short: remove it to have it downloaded, or put the original there"
            raise FslError(f"not a whole {ARCHIVE}: {problem}", where=str(self.path), hint=hint) from problem
        return classes

    def _inside(self, member: tarfile.TarInfo) -> tuple[str, ...]:
        """The parts of the path of a file; none for a folder.

        Raises:
            FslError: the path leads out of the archive, or the member is a link or a device.
        """
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts:
            raise FslError(
                f"has a path that leads out of it: {member.name}", where=str(self.path), hint="put the original there"
            )
        if not (member.isreg() or member.isdir()):
            raise FslError(f"has a link or device: {member.name}", where=str(self.path), hint="put the original there")
        return path.parts if member.isreg() else ()


def find_archive(place: Path, split: Mapping[str, Sequence[str]]) -> Archive | None:
    """``CUB_200_2011.tgz``."""
    return Archive(place / ARCHIVE, {each: split[each] for each in SPLITS}) if (place / ARCHIVE).is_file() else None
