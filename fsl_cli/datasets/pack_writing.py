"""Writes packs: blocks are read on all cores, written in order, and kept if the process is killed."""

from __future__ import annotations

import io
import json
import os
import shutil
import zlib
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fsl_cli.datasets.pack_journal import Entry, Journal
from fsl_cli.datasets.pack_reading import HASHES, IMAGES, INDEX, image_hashes
from fsl_cli.datasets.pack_source import Block, PackSource
from fsl_cli.datasets.parallel import in_order

_JOURNAL = "journal.jsonl"

Progress = Callable[[int], AbstractContextManager[Callable[[int], object]]]


def write_pack(folder: Path, source: PackSource, progress: Progress) -> None:
    """Write the pack to a folder beside ``folder``, then rename it, so that ``folder`` is always complete.

    The folder beside it stays if the process is stopped or killed, and the next call reads only the blocks that are missing.
    The caller holds a lock.

    Args:
        folder: the folder of the pack; if it exists, it is replaced.
        source: the content.
        progress: reports the number of images, out of a total.

    Raises:
        OSError: the pack cannot be written. As after an error of ``source``, nothing is left of it.
        ValueError: a block is not as announced.
    """
    part = folder.with_name(f".{folder.name}.part")
    try:
        part.mkdir(exist_ok=True)
        with _opened(part / IMAGES) as images, _opened(part / _JOURNAL) as lines:
            writing = _Writing(source, images, lines)
            writing.resume()
            writing.write(progress)
            _flush(images)
        hashes = np.concatenate([np.empty(0, np.uint64), *writing.hashes])
        source.report(writing.journal.packed(hashes))
        _write_file(part / HASHES, lambda file: np.save(file, hashes))
        index = json.dumps(writing.journal.index(), ensure_ascii=False)
        _write_file(part / INDEX, lambda file: file.write(index.encode()))
        (part / _JOURNAL).unlink()
        if folder.exists():
            os.rename(folder, part / "damaged")  # processes that have its files open can still read them
        os.rename(part, folder)
        shutil.rmtree(folder / "damaged", ignore_errors=True)
    except Exception:  # not when the process is interrupted
        shutil.rmtree(part, ignore_errors=True)
        raise


@dataclass(frozen=True)
class _Read:
    """A block, with what is computed from its pixels in the thread that has read it."""

    block: Block
    crc32: int
    hashes: np.ndarray


class _Writing:
    """The images of a pack that is being written.

    Plain writes, because a full disk kills a process that writes through a memory map.

    Args:
        source: the content.
        images: ``images.npy``, empty or as a killed process has left it.
        lines: the file of the journal, the same.

    Attributes:
        journal: the blocks written so far.
        hashes: of their images.
    """

    def __init__(self, source: PackSource, images: BinaryIO, lines: BinaryIO) -> None:
        self.source, self._images, self._lines = source, images, lines
        self.journal = Journal(source)
        self.hashes: list[np.ndarray] = []
        self._announced = sum(each.count for each in self.journal.classes)

    def resume(self) -> None:
        """Take over the blocks that a killed process has written completely."""
        header = self._header(self._announced)
        position = end = 0
        if self._images.read(len(header)) == header:
            for line in self._lines:
                if not self._take_over(line):
                    break
                end += len(line)
            position = sum(entry.rows for entry in self.journal.entries) * int(np.prod(self.source.image_shape))
        self._images.seek(0)
        self._images.write(header)
        for file, size in ((self._images, len(header) + position), (self._lines, end)):
            file.truncate(size)
            file.seek(size)

    def _take_over(self, line: bytes) -> bool:
        """Read back a block; False if it is not complete."""
        try:
            entry = Entry.of_line(line)
        except (ValueError, KeyError, TypeError):
            return False
        size = entry.rows * int(np.prod(self.source.image_shape))
        pixels = self._images.read(size)
        if len(pixels) != size or zlib.crc32(pixels) != entry.crc32:
            return False
        self.journal.entries.append(entry)
        self.hashes.append(image_hashes(np.frombuffer(pixels, np.uint8).reshape(entry.rows, *self.source.image_shape)))
        return True

    def write(self, progress: Progress) -> None:
        """Read and write the blocks that are missing, then write the number of images into the header."""
        with progress(self._announced) as advance:
            if self.journal.entries:
                advance(sum(entry.images for entry in self.journal.entries))
                self._check_unusable()
            with closing(self._missing()) as missing:
                for read, entry in missing:
                    self._images.write(read.block.images[: entry.rows].data)
                    self._images.flush()
                    self._lines.write(entry.line())
                    self._lines.flush()
                    self.journal.entries.append(entry)
                    self.hashes.append(read.hashes[: entry.rows])
                    if entry.unusable:
                        self._check_unusable()
                    advance(entry.images)
        self._images.seek(0)
        self._images.write(self._header(sum(entry.rows for entry in self.journal.entries)))

    def _missing(self) -> Generator[tuple[_Read, Entry], None, None]:
        """The blocks that are not written yet; those of a class are held back until it has enough images."""
        done = len(self.journal.entries)
        calls = [block for classes in self.source.splits.values() for each in classes.values() for block in each.blocks]
        with closing(in_order(partial(_read, call) for call in calls[done:])) as blocks:
            for each in self.journal.classes:
                held: list[_Read] = []
                usable = self.journal.rows(each)
                for _ in range(max(done, each.blocks.start), each.blocks.stop):
                    held.append(self._checked(next(blocks), each.name))
                    usable += len(held[-1].block.images)
                    while held and usable >= self.source.min_images:
                        yield held[0], _entry(held.pop(0))
                for read in held:
                    yield read, _entry(read, dropped=True)
                if (images := sum(entry.images for entry in self.journal.of_class(each))) != each.count:
                    raise ValueError(f"not a block of {each.name}: {images} images instead of {each.count}")

    def _checked(self, read: _Read, name: str) -> _Read:
        images, unusable = read.block.images, read.block.unusable
        if images.dtype != np.uint8 or images.shape[1:] != self.source.image_shape or (unusable and not self.source.unusable):
            raise ValueError(f"not a block of {name}: {images.dtype} {images.shape}, {len(unusable)} unusable")
        return read

    def _check_unusable(self) -> None:
        if self.source.unusable and (reasons := self.journal.unusable()):
            self.source.unusable(reasons)

    def _header(self, images: int) -> bytes:
        """The beginning of an ``.npy`` file, which has the same length for every number of images."""
        header = io.BytesIO()
        shape = (images, *self.source.image_shape)
        np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
        return header.getvalue()


def _read(call: Callable[[], Block]) -> _Read:
    block = call()
    images = np.ascontiguousarray(block.images)
    return _Read(Block(images, block.unusable), zlib.crc32(images.data), image_hashes(images))


def _entry(read: _Read, dropped: bool = False) -> Entry:
    images = len(read.block.images)
    return Entry(0, 0, read.block.unusable, images) if dropped else Entry(images, read.crc32, read.block.unusable)


def _opened(path: Path) -> BinaryIO:
    """A file to read and write, created if missing."""
    path.touch()
    return path.open("r+b")


def _write_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    with path.open("wb") as file:
        write(file)
        _flush(file)


def _flush(file: BinaryIO) -> None:
    """Have a file on the disk: only then is it safe to rename its folder."""
    file.flush()
    os.fsync(file.fileno())
