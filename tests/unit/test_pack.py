"""Packs are read back as written, never partially written, and written once."""

from __future__ import annotations

import errno
import os
import signal
import textwrap
import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from warm import Process, Warm

from fsl_cli.datasets.pack import PackSource, pack_key, packed_counts, packed_split
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
        return PackSource(SPLITS, SHAPE, iter(np.split(IMAGES, [3, 5, 6, 10])))


def pack_folder(cache: Path) -> Path:
    return cache / "packs" / "toy-key"


def test_splits_come_back_as_they_were_written(tmp_path: Path) -> None:
    source = Source()
    for split, rows in {"val": slice(5, 6), "train": slice(0, 5), "test": slice(6, 12)}.items():
        images = packed_split(tmp_path, "toy", "key", split, source)
        np.testing.assert_array_equal(images.images.numpy(), IMAGES[rows])
        assert dict(zip(images.names, images.counts.tolist(), strict=True)) == SPLITS[split]
    assert source.calls == 1
    assert sorted(path.name for path in pack_folder(tmp_path).iterdir()) == ["images.npy", "index.json"]
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


@pytest.mark.parametrize("file", ["images.npy", "index.json"])
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


@pytest.mark.parametrize(
    "blocks",
    [[IMAGES[:6], IMAGES[6:]], [IMAGES[:5, 0], IMAGES[5:6, 0], IMAGES[6:, 0]], [IMAGES[:5].astype(float)]],
    ids=["across splits", "wrong shape", "wrong type"],
)
def test_a_block_that_does_not_fit_leaves_no_pack(tmp_path: Path, blocks: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="not a block"):
        packed_split(tmp_path, "toy", "key", "train", lambda: PackSource(SPLITS, SHAPE, blocks))
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
    from pathlib import Path
    import numpy as np
    from fsl_cli.datasets.pack import PackSource, packed_split

    cache, seconds = Path(sys.argv[1]), float(sys.argv[2])

    def images():
        for value in range(10):
            time.sleep(seconds)
            print(value, flush=True)
            yield np.full((2, 1, 5, 7), value, dtype=np.uint8)

    def source():
        with (cache / "packed").open("a") as log:
            log.write("once\\n")
        return PackSource({"train": {"a": 20}}, (1, 5, 7), images())

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


def test_killed_packing_leaves_no_half_pack(warm: Warm, tmp_path: Path) -> None:
    process = slow_packing(warm, tmp_path, 0.1, tmp_path / "log")
    while "4\n" not in (tmp_path / "log").read_text():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not pack_folder(tmp_path).exists()
    assert list((tmp_path / "packs").glob("*.tmp"))  # it was killed in the middle, not before or after

    started = time.monotonic()
    source = Source()
    np.testing.assert_array_equal(packed_split(tmp_path, "toy", "key", "val", source).images.numpy(), IMAGES[5:6])
    assert source.calls == 1
    assert time.monotonic() - started < 10  # the dead process's lock is not waited for
    assert not list((tmp_path / "packs").glob("*.tmp"))
