"""Files made to harm whoever reads them are refused with one line, soon, with little memory, and run and write nothing."""

from __future__ import annotations

import io
import os
import pickle
import resource
import struct
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fsl_cli.datasets.cifar100 import Cifar100, class_split
from fsl_cli.datasets.dataset import SPLITS, ExampleClasses
from fsl_cli.datasets.features import Features
from fsl_cli.datasets.folder import Folder
from fsl_cli.datasets.omniglot import Omniglot, vinyals_split
from fsl_cli.episodes import Task
from fsl_cli.errors import FslError

MB = 1 << 20


def refused(dataset: ExampleClasses) -> str:
    """What is said when its training split is asked for, which must fail with one line, soon and within 300 MB."""
    started, most = time.process_time(), _most_memory()
    with pytest.raises(FslError) as error:
        dataset.split("train")
    assert str(error.value).isprintable()
    assert time.process_time() - started < 20
    assert _most_memory() - most < 400 * MB
    return str(error.value)


def _most_memory() -> int:
    """The most bytes that this process has ever had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@pytest.fixture(autouse=True)
def nothing_is_run_or_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    yield
    assert not list(tmp_path.rglob("owned*"))
    assert not list(tmp_path.parent.glob("owned*"))


def folder(place: Path, **options: Any) -> Folder:
    return Folder(place / "photos", place / "cache", size=8, **options)


def cifar(place: Path) -> Cifar100:
    return Cifar100(place, place / "cache", download=False)


class Harm:
    """A pickle that makes a file when it is read."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch owned",)


def png(width: int, height: int) -> bytes:
    """A valid PNG of one bit per pixel, a few kilobytes for any size: all its pixels are black."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    line = bytes(1 + (width + 7) // 8)
    rows = b"".join([packer.compress(line * 1000) for _ in range(height // 1000)])
    rows += packer.compress(line * (height % 1000)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def huge() -> bytes:
    """A PNG of 30,000 x 30,000 pixels, about 100 kB."""
    return png(30_000, 30_000)


def write(path: Path, content: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def photos(folder: Path, *, classes: int = 3) -> Path:
    """Classes of two pictures."""
    for number in range(classes):
        for k in range(2):
            (folder / "photos" / f"class {number}").mkdir(parents=True, exist_ok=True)
            Image.new("L", (9, 9), 10 * number + k).save(folder / "photos" / f"class {number}" / f"{k}.png")
    return folder / "photos"


def pictures(made: Folder) -> int:
    """The number of pictures that are found."""
    return sum(int(counts.sum()) for counts in made.status().counts.values())


# --- pictures


def test_a_png_of_30000_by_30000_pixels(tmp_path: Path, huge: bytes):
    assert len(huge) < MB
    path = write(photos(tmp_path) / "class 0" / "huge.png", huge)
    assert f"{path.relative_to(tmp_path)}: too many pixels" in refused(folder(tmp_path))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a picture"),
        (b"\x89PNG\r\n\x1a\n", "not a picture"),
        (b"<svg onload='alert(1)'/>", "not a picture"),
        (b"\x1f\x8b" + bytes(100), "not a picture"),
    ],
    ids=["empty", "only a signature", "another format", "gzip"],
)
def test_files_that_are_no_pictures(tmp_path: Path, content: bytes, reason: str):
    write(photos(tmp_path) / "class 0" / "x.png", content)
    assert f"photos/class 0/x.png: {reason}" in refused(folder(tmp_path))


def test_a_file_larger_than_the_memory_is_not_read(tmp_path: Path):
    path = write(photos(tmp_path) / "class 0" / "x.png")
    with path.open("wb") as file:
        file.truncate(1 << 40)  # takes no space on the disk
    assert "photos/class 0/x.png: not a picture" in refused(folder(tmp_path))


def test_pipes_and_devices_are_left_alone(tmp_path: Path):
    root = photos(tmp_path)
    os.mkfifo(root / "class 0" / "pipe.png")  # reading it would wait for ever
    os.symlink("/dev/zero", root / "class 0" / "zero.png")
    assert pictures(folder(tmp_path)) == 6


def test_links_in_circles_and_many_links_to_one_folder_end(tmp_path: Path):
    root = photos(tmp_path)
    os.symlink(root / "class 0", root / "class 0" / "again")
    level = root / "class 1"
    for number in range(40):  # two links to each next level: 2^40 ways down
        (level / f"level {number}").mkdir()
        for name in ("a", "b"):
            os.symlink(level / f"level {number}", level / name)
        level = level / f"level {number}"
    assert pictures(folder(tmp_path)) == 6


# --- names


def test_names_cannot_write_to_the_terminal(tmp_path: Path):
    write(photos(tmp_path) / "class 0" / "\x1b[2J\x1b]0;owned\x07\nerror: all is well.png", b"no picture")
    assert r"\x1b[2J\x1b]0;owned\x07 error: all is well.png: not a picture" in refused(folder(tmp_path))


def test_names_of_classes_may_be_any_bytes(tmp_path: Path):
    root = photos(tmp_path, classes=2)
    odd = os.fsencode(root) + b"/caf\xe9 \x1b[1m"
    os.mkdir(odd)
    Image.new("L", (9, 9), 99).save(root / "x.png")
    os.rename(root / "x.png", odd + b"/x.png")
    made = folder(tmp_path)
    names = [name for split in SPLITS for name in made.split(split).names]
    assert sorted(names) == ["caf\\xe9 \x1b[1m", "class 0", "class 1"]
    assert made.sampler("train", Task(1, 1, 0), 0).digest(1)


# --- CSV files


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\n../../../../../../../../etc/passwd,a\n", "line 2: '../../../../../../../../etc/passwd' is outside of "),
        ("file,label\n/etc/passwd,a\n", "photos.csv, line 2: '/etc/passwd' is outside of "),
        ("file,label\nclass 0/0.png\n", "photos.csv, line 2: has fewer values than the 2 columns"),
        ("file,label\n\0,a\n", "photos.csv"),
        (f"file,label\n{'x' * 200_000},a\n", "photos.csv: is not a CSV file: field larger than field limit"),
        (f"file,label\n{'x' * 5_000},a\n", "photos.csv, line 2: there is no"),
        ("file,label\n/dev/zero,a\n", "photos.csv, line 2: there is no '/dev/zero'"),
    ],
    ids=["climbs out", "absolute", "short row", "null", "long field", "long name", "device"],
)
def test_csv_files(tmp_path: Path, text: str, message: str):
    photos(tmp_path)
    (tmp_path / "photos.csv").write_text(text)
    assert message in refused(folder(tmp_path, csv=tmp_path / "photos.csv"))


def test_a_csv_file_that_is_no_text_or_no_file(tmp_path: Path):
    photos(tmp_path)
    write(tmp_path / "photos.csv", b"\xff\xfe\x00\x80")
    assert "photos.csv: is not a CSV file" in refused(folder(tmp_path, csv=tmp_path / "photos.csv"))
    os.mkfifo(tmp_path / "pipe")
    assert "pipe: is no file" in refused(folder(tmp_path, csv=tmp_path / "pipe"))
    assert "pipe: is no file" in refused(folder(tmp_path, split_file=tmp_path / "pipe"))


# --- vectors


def npy(shape: tuple[int, ...], dtype: str = "<f8", data: bytes = b"") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue() + data


def write_npz(path: Path, **arrays: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in arrays.items():
            file.writestr(f"{name}.npy", data)


@pytest.mark.parametrize("name", ["pickled objects", "announces too much", "bomb", "a header of code", "no arrays"])
def test_files_of_numpy(tmp_path: Path, name: str):
    path, y = tmp_path / "x.npz", npy((3,), "<i8", bytes(24))
    if name == "pickled objects":
        np.savez(path, x=np.array([Harm(), None, None], dtype=object), y=np.arange(3))
    elif name == "announces too much":
        write_npz(path, x=npy((1 << 45, 4)), y=y)
    elif name == "bomb":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            with file.open("x.npy", "w") as member:
                member.write(npy((300 * MB // 8, 1)))
                for _ in range(300):
                    member.write(bytes(MB))
            file.writestr("y.npy", y)
        assert path.stat().st_size < 2 * MB
    elif name == "a header of code":
        header = b"__import__('os').system('touch owned')\n"
        data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
        write_npz(path, x=data, y=y)
    else:
        write_npz(path, x=b"abc", y=b"def")
    assert refused(Features(path)).startswith(f"{path}: ")


def test_tables_of_numbers(tmp_path: Path):
    write(tmp_path / "x.csv", f"label,a\n{'x' * 200_000},1\n".encode())
    assert "x.csv: cannot be read: field larger than field limit" in refused(Features(tmp_path / "x.csv"))
    (tmp_path / "x.csv").unlink()
    os.mkfifo(tmp_path / "x.csv")
    assert "x.csv: there is no such file" in refused(Features(tmp_path / "x.csv"))


# --- archives


def zipped(path: Path, files: dict[str, bytes], *, mode: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, mode << 16
            archive.writestr(info, data)
    return path


CLASS = class_split("cifar_fs")["train"][0]
CHARACTER = next(iter(vinyals_split("images_background")))


@pytest.mark.parametrize("name", ["../../owned.png", "/owned.png", "C:\\owned.png", "apple/../../../owned.png"])
@pytest.mark.parametrize("place", ["cifar_fs/cifar100.zip", "omniglot/images_background.zip"])
def test_paths_of_zip_files_that_climb_out(tmp_path: Path, name: str, place: str):
    path = zipped(tmp_path / "data" / place, {name: png(32, 32)})
    cache = tmp_path / "cache"
    of_omniglot = Omniglot(tmp_path / "data", cache, download=False)
    line = refused(of_omniglot if "omniglot" in place else cifar(tmp_path / "data"))
    assert f"{path}: has a path that leads out of it: {name.replace(chr(92), '/')}" in line


def test_bombs_in_zip_files(tmp_path: Path, huge: bytes):
    where = tmp_path / "data" / "cifar_fs" / "cifar100.zip"
    zipped(where, {f"cifar100/data/{CLASS}/{CLASS}_1.png": bytes(80 * MB)})
    assert where.stat().st_size < MB
    assert f"{where}: cifar100/data/{CLASS}/{CLASS}_1.png cannot be read (more than 64 MB)" in refused(cifar(tmp_path / "data"))
    content = where.read_bytes()
    where.write_bytes(content.replace(struct.pack("<I", 80 * MB), struct.pack("<I", 100)))  # the announced size is a lie
    assert f"{where}: cifar100/data/{CLASS}/{CLASS}_1.png cannot be" in refused(cifar(tmp_path / "data"))
    zipped(where, {f"cifar100/data/{CLASS}/{CLASS}_1.png": huge})
    assert f"{CLASS}_1.png cannot be decoded (" in refused(cifar(tmp_path / "data"))


def test_links_in_zip_files_are_not_followed(tmp_path: Path):
    where = zipped(
        tmp_path / "data" / "cifar_fs" / "cifar100.zip", {f"cifar100/data/{CLASS}/1.png": b"/etc/passwd"}, mode=0o120777
    )
    assert f"{where}: cifar100/data/{CLASS}/1.png cannot be decoded (not an image)" in refused(cifar(tmp_path / "data"))


def test_damaged_zip_files_of_every_kind(tmp_path: Path):
    whole = zipped(tmp_path / "whole.zip", {f"cifar100/data/{CLASS}/{k}.png": png(32, 32) for k in range(3)}).read_bytes()
    random, where = np.random.default_rng(0), tmp_path / "data" / "cifar_fs" / "cifar100.zip"
    for _ in range(20):
        content = np.frombuffer(whole, np.uint8).copy()
        content[random.integers(0, len(content), 4)] = random.integers(0, 256, 4)
        write(where, content.tobytes())
        refused(cifar(tmp_path / "data"))


def pickled(content: object) -> dict[str, bytes]:
    """The files of CIFAR-100's Python version, one of which holds ``content``."""
    good = pickle.dumps({"fine_labels": [], "data": np.zeros((1, 3072), np.uint8), "fine_label_names": []}, 2)
    bad = content if isinstance(content, bytes) else pickle.dumps(content, 2)
    return {"train": bad, "test": good, "meta": good}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (Harm(), "names posix.system"),
        (b"cbuiltins\neval\n(S'1'\ntR.", "names builtins.eval"),
        (b"\x80\x04Nr\xff\xff\xff\x0f.", "announces more than it holds"),  # a memo of 4 GB
        (b"Np268435455\n.", "announces more than it holds"),
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\x00\x00\x00.", "announces more than it holds"),
        (b"\x80\x02cnumpy\nndarray\n\x8a\x06\x00\x00\x00\x00\x00\x40\x85R.", "Unable to allocate"),
        (b"c_codecs\nencode\n(Vx\nVzlib_codec\ntR.", "encodes as zlib_codec"),
        (b"(" * 200_000, "pickle"),
        ([[]], "not CIFAR-100"),
    ],
    ids=["code", "eval", "memo", "text memo", "length", "array", "codec", "marks", "another content"],
)
def test_pickles(tmp_path: Path, content: object, reason: str):
    for name, data in pickled(content).items():
        write(tmp_path / "data" / "cifar_fs" / "cifar-100-python" / name, data)
    assert reason in refused(cifar(tmp_path / "data"))


@pytest.mark.parametrize("name", ["link", "link to itself", "bomb", "gzip bomb", "not a tar file"])
def test_tar_files(tmp_path: Path, name: str):
    where = write(tmp_path / "data" / "cifar_fs" / "cifar-100-python.tar.gz", b"\x1f\x8b no")
    if name != "not a tar file":
        with tarfile.open(where, "w:gz") as archive:
            member = tarfile.TarInfo("cifar-100-python/train")
            if name.startswith("link"):
                member.type, member.linkname = tarfile.SYMTYPE, "train" if "itself" in name else "../../../etc/passwd"
                archive.addfile(member)
            else:
                member = tarfile.TarInfo("zeros" if name == "gzip bomb" else member.name)
                member.size = 300 * MB
                archive.addfile(member, io.BytesIO(bytes(member.size)))
        assert where.stat().st_size < MB
    assert f"{where}: not a whole cifar-100-python.tar.gz: " in refused(cifar(tmp_path / "data"))
