"""Packs are read back as written, never partially written, written once, and continued after a kill."""

from __future__ import annotations

import errno
import os
import signal
import textwrap
import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from warm import Process, Warm

from fsl_cli.datasets import pack_reading
from fsl_cli.datasets.pack import pack_key, packed_counts, packed_split
from fsl_cli.datasets.pack_reading import damaged_images, image_hash, open_pack
from fsl_cli.datasets.pack_source import Block, ClassSource, PackSource, from_array, from_items
from fsl_cli.errors import FslError

SHAPE = (1, 5, 7)
SPLITS = {"train": {"a": 3, "b": 2}, "val": {"c": 1}, "test": {"d": 4, "é": 2}}
IMAGES = np.random.default_rng(0).integers(0, 256, (12, *SHAPE), dtype=np.uint8)


class Source:
    """A source that counts how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> PackSource:
        self.calls += 1
        blocks = iter(np.split(IMAGES, [3, 5, 6, 10]))
        splits = {
            split: {name: from_array(count, partial(np.copy, next(blocks))) for name, count in classes.items()}
            for split, classes in SPLITS.items()
        }
        return PackSource(splits, SHAPE)


def pack_folder(cache: Path) -> Path:
    return cache / "packs" / "toy-key"


def test_splits_come_back_as_they_were_written(tmp_path: Path) -> None:
    source = Source()
    for split, rows in {"val": slice(5, 6), "train": slice(0, 5), "test": slice(6, 12)}.items():
        images = packed_split(tmp_path, "toy", "key", split, source)
        np.testing.assert_array_equal(images.images.numpy(), IMAGES[rows])
        assert dict(zip(images.names, images.counts.tolist(), strict=True)) == SPLITS[split]
    assert source.calls == 1
    assert sorted(path.name for path in pack_folder(tmp_path).iterdir()) == ["hashes.npy", "images.npy", "index.json"]
    np.testing.assert_array_equal(np.load(pack_folder(tmp_path) / "images.npy"), IMAGES)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of mapped files")
def test_images_are_memory_mapped_without_a_warning(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = packed_split(tmp_path, "toy", "key", "train", Source()).images
    assert str(pack_folder(tmp_path) / "images.npy") in Path("/proc/self/maps").read_text()
    images.fill_(7)  # a slip in the caller's code stays in its own memory
    np.testing.assert_array_equal(np.load(pack_folder(tmp_path) / "images.npy"), IMAGES)


def test_counts_come_from_the_index(tmp_path: Path) -> None:
    source = Source()
    assert packed_counts(tmp_path, "toy", "key", "test", source).tolist() == [4, 2]  # packs
    (pack_folder(tmp_path) / "images.npy").write_bytes(b"")
    assert packed_counts(tmp_path, "toy", "key", "train", source).tolist() == [3, 2]  # does not look at the images
    (pack_folder(tmp_path) / "index.json").write_bytes(b"")
    assert packed_counts(tmp_path, "toy", "key", "train", source).tolist() == [3, 2]  # packs again
    assert source.calls == 2


def test_key_depends_on_everything_and_not_on_order() -> None:
    keys = {pack_key(content="x", size=28), pack_key(content="y", size=28), pack_key(content="x", size=29)}
    assert len(keys) == 3
    assert pack_key(size=28, content="x") == pack_key(content="x", size=28)


def test_progress_counts_every_image(tmp_path: Path) -> None:
    seen: list[object] = []

    @contextmanager
    def progress(what: str, total: int):  # type: ignore[no-untyped-def]
        seen.append((what, total))
        yield seen.append

    packed_split(tmp_path, "toy", "key", "train", Source(), progress)
    assert seen == [("packing toy", 12), 3, 2, 1, 4, 2]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("file", ["hashes.npy", "images.npy", "index.json"])
@pytest.mark.parametrize(
    "damage",
    [cut, flip, Path.unlink, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b'{"test": []}')],
    ids=["cut", "flipped", "missing", "empty", "garbage"],
)
def test_damaged_pack_is_made_again(tmp_path: Path, file: str, damage: Callable[[Path], object]) -> None:
    source = Source()
    packed_split(tmp_path, "toy", "key", "test", source)
    damage(pack_folder(tmp_path) / file)
    images = packed_split(tmp_path, "toy", "key", "test", source)
    np.testing.assert_array_equal(images.images.numpy(), IMAGES[6:])
    assert source.calls == 2
    packed_split(tmp_path, "toy", "key", "test", source)
    assert source.calls == 2
    assert [path.name for path in (tmp_path / "packs").iterdir() if not path.name.endswith(".lock")] == ["toy-key"]


def test_opening_a_split_does_not_read_the_others(tmp_path: Path) -> None:
    source = Source()
    packed_split(tmp_path, "toy", "key", "train", source)
    flip(pack_folder(tmp_path) / "images.npy")  # the last image is of the test split
    packed_split(tmp_path, "toy", "key", "train", source)
    assert source.calls == 1


@pytest.mark.parametrize(("row", "place", "seen"), [(6, "d 0", True), (9, "d 3", False), (11, "é 1", True)])
def test_of_a_large_split_a_sample_is_checked_when_it_is_opened_and_the_rest_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: int, place: str, seen: bool
) -> None:
    monkeypatch.setattr(pack_reading, "_CHECKED_BYTES", 6 * 35 - 1)  # the six images of the test split have one more
    monkeypatch.setattr(pack_reading, "_CHECKED_IMAGES", 2)
    source = Source()
    packed_split(tmp_path, "toy", "key", "test", source)
    assert list(damaged_images(open_pack(pack_folder(tmp_path)))) == []
    changed = np.load(pack_folder(tmp_path) / "images.npy", mmap_mode="r+")
    changed[row, 0, 0, 0] ^= 1
    changed.flush()
    counted: list[int] = []
    found = list(damaged_images(open_pack(pack_folder(tmp_path)), counted.append))
    assert [f"{name} {position}" for split, name, position in found if split == "test"] == [place]
    assert (len(found), sum(counted)) == (1, 12)
    packed_split(tmp_path, "toy", "key", "test", source)
    assert source.calls == 1 + seen


@pytest.mark.parametrize(
    "block",
    [IMAGES[:2], IMAGES[:4], IMAGES[:3, 0], IMAGES[:3].astype(float)],
    ids=["too short", "too long", "wrong shape", "wrong type"],
)
def test_a_block_that_does_not_fit_leaves_no_pack(tmp_path: Path, block: np.ndarray) -> None:
    source = PackSource({"train": {"a": from_array(3, lambda: block)}}, SHAPE)
    with pytest.raises(ValueError, match="not a block"):
        packed_split(tmp_path, "toy", "key", "train", lambda: source)
    assert [path.name for path in (tmp_path / "packs").iterdir()] == [".toy-key.lock"]


def test_a_failing_source_leaves_no_pack(tmp_path: Path) -> None:
    def image(number: int) -> np.ndarray:
        if number == 900:
            raise FslError("is too bad", where="image 900")
        return IMAGES[0]

    source = PackSource({"train": {"a": from_items(range(1000), image, SHAPE)}}, SHAPE)
    with pytest.raises(FslError, match="image 900: is too bad"):
        packed_split(tmp_path, "toy", "key", "train", lambda: source)
    assert [path.name for path in (tmp_path / "packs").iterdir()] == [".toy-key.lock"]


def test_unwritable_cache_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(FslError) as caught:
        packed_split(tmp_path / "cache", "toy", "key", "train", Source())
    assert str(tmp_path / "cache") in str(caught.value)
    assert "FSL_CACHE_DIR" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_full_disk_leaves_no_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FslError, match="No space left on device"):
        packed_split(tmp_path, "toy", "key", "train", Source())
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "packs").iterdir()] == [".toy-key.lock"]
    packed_split(tmp_path, "toy", "key", "train", Source())


SLOW = textwrap.dedent(
    """
    import sys, time
    from functools import partial
    from pathlib import Path
    import numpy as np
    from fsl_cli.datasets.pack import packed_split
    from fsl_cli.datasets.pack_source import Block, ClassSource, PackSource

    cache, seconds = Path(sys.argv[1]), float(sys.argv[2])

    def block(value):
        time.sleep(seconds)
        print(f"{value}\\n", end="", flush=True)  # at once, since two threads print
        return Block(np.full((2, 1, 5, 7), value, dtype=np.uint8))

    def source():
        with (cache / "packed").open("a") as log:
            log.write("once\\n")
        return PackSource({"train": {"a": ClassSource(20, [partial(block, value) for value in range(10)])}}, (1, 5, 7))

    print("sum", int(packed_split(cache, "toy", "key", "train", source).images.sum()))
    """
)


def slow_packing(warm: Warm, cache: Path, seconds: float, log: Path) -> Process:
    return warm.start(SLOW, str(cache), str(seconds), module="-c", cwd=cache, log=log)


def test_processes_that_start_together_pack_once(warm: Warm, tmp_path: Path) -> None:
    logs = [tmp_path / "one", tmp_path / "other"]
    processes = [slow_packing(warm, tmp_path, 0.05, log) for log in logs]
    assert [process.wait() for process in processes] == [0, 0]
    lines = [log.read_text().splitlines()[-1] for log in logs]
    assert lines == [f"sum {2 * 35 * sum(range(10))}"] * 2
    assert (tmp_path / "packed").read_text() == "once\n"


def test_killed_packing_is_continued(warm: Warm, tmp_path: Path) -> None:
    process = slow_packing(warm, tmp_path, 0.1, tmp_path / "log")
    part = tmp_path / "packs" / ".toy-key.part"
    while "4\n" not in (tmp_path / "log").read_text():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not pack_folder(tmp_path).exists()
    written = len((part / "journal.jsonl").read_bytes().splitlines())
    assert 1 <= written < 9

    started = time.monotonic()
    assert slow_packing(warm, tmp_path, 0, tmp_path / "again").wait() == 0
    assert time.monotonic() - started < 10  # the dead process's lock is not waited for
    *read, total = (tmp_path / "again").read_text().splitlines()
    assert sorted(map(int, read)) == list(range(written, 10))
    assert total == f"sum {2 * 35 * sum(range(10))}"
    expected = np.repeat(np.arange(10), 2)[:, None, None, None] * np.ones(SHAPE)
    np.testing.assert_array_equal(np.load(pack_folder(tmp_path) / "images.npy"), expected)
    assert list(damaged_images(open_pack(pack_folder(tmp_path)))) == []
    assert not part.exists()


# Larger than memory.


def file_megabytes() -> float:
    """Pages of files that count as memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssFile")) / 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of memory")
def test_pages_that_were_read_are_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (3, 84, 84)
    block = Block(np.ones((1000, *shape), np.uint8))
    source = PackSource({"train": {"a": ClassSource(3000, [lambda: block] * 3)}}, shape)  # 64 MB
    images = packed_split(tmp_path, "toy", "key", "train", lambda: source)
    monkeypatch.setattr(pack_reading, "_RELEASED", 1)
    images.on_read(1)
    grown = []
    for released in (1 << 22, 1 << 40):
        monkeypatch.setattr(pack_reading, "_RELEASED", released)
        before = file_megabytes()
        for first in range(0, 3000, 100):
            assert int(images.gather(torch.arange(first, first + 100)).sum()) == 100 * 3 * 84 * 84
        grown.append(file_megabytes() - before)
    assert grown[0] < 10
    assert grown[1] > 50


@pytest.mark.skipif(os.name != "posix", reason="needs sparse files")
def test_a_pack_larger_than_memory_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, shape = 1_000_000, (3, 1024, 1024)  # 3 TB
    monkeypatch.setattr(pack_reading, "_CHECKED_IMAGES", 2)
    folder = pack_folder(tmp_path)
    folder.mkdir(parents=True)
    with (folder / "images.npy").open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (rows, *shape)}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + rows * 3 * 1024**2)
    np.save(folder / "hashes.npy", np.full(rows, image_hash(np.zeros(shape, np.uint8)), np.uint64))
    (folder / "index.json").write_text('{"train": {"classes": ["a"], "counts": [1000000], "first": 0}}')
    images = packed_split(tmp_path, "toy", "key", "train", lambda: pytest.fail("was not opened"))
    assert images.gather(torch.tensor([rows - 1])).sum() == 0
