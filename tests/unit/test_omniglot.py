"""Omniglot: classes, pixels, and a one-line error for every problem of the data."""

from __future__ import annotations

import errno
import hashlib
import io
import shutil
import struct
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fsl_cli.datasets import omniglot
from fsl_cli.datasets.omniglot import MD5, Omniglot, vinyals_split
from fsl_cli.datasets.omniglot_splits import class_split
from fsl_cli.episodes import Task
from fsl_cli.episodes.class_images import ClassImages
from fsl_cli.errors import FslError

ARCHIVES = ("images_background", "images_evaluation")
SPLITS = ("train", "val", "test")
SIDE = 10  # of the toy images


# A toy Omniglot: every character, but two drawings of 10 x 10 pixels each, no two drawings the same.


def toy_drawing(number: int) -> np.ndarray:
    """Boolean ``[10, 10]``, True = paper: a margin of ink on the left, and the twelve bits of ``number``."""
    paper = np.ones((SIDE, SIDE), dtype=bool)
    paper[:, 0] = False
    paper[2, 2:8] = [number >> bit & 1 for bit in range(6)]
    paper[7, 2:8] = [number >> bit & 1 for bit in range(6, 12)]
    return paper


def png(paper: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(paper).save(buffer, "png")
    return buffer.getvalue()


def write_zip(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)


@pytest.fixture(scope="session")
def toy_files() -> dict[str, dict[str, bytes]]:
    """For each archive, its files."""
    number = 0
    files: dict[str, dict[str, bytes]] = {}
    for archive in ARCHIVES:
        files[archive] = {}
        for character in vinyals_split(archive):
            for drawing in (1, 2):
                files[archive][f"{archive}/{character}/{number // 2:04d}_{drawing:02d}.png"] = png(toy_drawing(number))
                number += 1
    return files


@pytest.fixture
def toy(tmp_path: Path, toy_files: dict[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data_dir with the toy's two zips."""
    monkeypatch.setattr(omniglot, "DRAWINGS", 2)
    for archive in ARCHIVES:
        write_zip(tmp_path / "data" / "omniglot" / f"{archive}.zip", toy_files[archive])
    return tmp_path / "data"


def load(data_dir: Path, cache: Path, **options: bool) -> dict[str, ClassImages]:
    dataset = Omniglot(data_dir, cache, **{"size": SIDE, "rotations": False, "download": False, **options})  # type: ignore[arg-type]
    return {split: dataset.split(split) for split in SPLITS}  # type: ignore[arg-type]


def assert_same(ours: dict[str, ClassImages], theirs: dict[str, ClassImages]) -> None:
    for split in SPLITS:
        assert list(ours[split].names) == list(theirs[split].names)
        np.testing.assert_array_equal(ours[split].images.numpy(), theirs[split].images.numpy())


def failure(data_dir: Path, cache: Path, **options: bool) -> str:
    with pytest.raises(FslError) as caught:
        load(data_dir, cache, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# The class split.


def test_split_has_the_published_sizes() -> None:
    split = vinyals_split()
    assert Counter(split.values()) == {"train": 1028, "val": 172, "test": 423}
    assert len(vinyals_split("images_background")) == 964
    assert len(vinyals_split("images_evaluation")) == 659
    assert len({name.split("/")[0] for name in split}) == 50


# What a toy of known pixels becomes.


def test_classes_and_pixels_of_the_toy(toy: Path, tmp_path: Path) -> None:
    splits = load(toy, tmp_path / "cache")
    assert [len(splits[split]) for split in SPLITS] == [1028, 172, 423]
    split_of = vinyals_split()
    order = [*vinyals_split("images_background"), *vinyals_split("images_evaluation")]
    for split, images in splits.items():
        assert images.counts.tolist() == [2] * len(images)
        expected = [name for name in order if split_of[name] == split]
        assert list(images.names) == expected
        drawings = [toy_drawing(2 * order.index(name) + drawing) for name in expected for drawing in (0, 1)]
        np.testing.assert_array_equal(images.images[:, 0].numpy(), np.where(drawings, 0, 255))


def test_rotations_are_new_classes(toy: Path, tmp_path: Path) -> None:
    plain, rotated = load(toy, tmp_path / "cache"), load(toy, tmp_path / "cache", rotations=True)
    for split in SPLITS:
        images = plain[split].images.numpy()
        turned = rotated[split].gather(torch.arange(4 * len(images))).numpy().reshape(4, *images.shape)
        for quarter in range(4):
            np.testing.assert_array_equal(turned[quarter], np.rot90(images, quarter, axes=(2, 3)))
        assert list(rotated[split].names) == [f"{name}@{90 * q}" for q in range(4) for name in plain[split].names]


def test_counts_and_shape_without_reading_images(toy: Path, tmp_path: Path) -> None:
    for rotations in (False, True):
        dataset = Omniglot(toy, tmp_path / "cache", rotations=rotations, size=SIDE, download=False)
        for split in SPLITS:
            np.testing.assert_array_equal(dataset.counts(split), dataset.split(split).counts)  # type: ignore[arg-type]
            assert dataset.image_shape == dataset.split(split).example_shape  # type: ignore[arg-type]


@pytest.mark.parametrize("rotations", [False, True])
def test_alphabets_as_classes(toy: Path, tmp_path: Path, rotations: bool) -> None:
    options = {"download": False, "size": SIDE, "rotations": rotations}
    dataset = Omniglot(toy, tmp_path / "cache", classes="alphabets", modes=4, **options)
    characters = Omniglot(toy, tmp_path / "cache", **options)
    for split in SPLITS:
        names = [name.split("/")[0] for name in characters.split(split).names]
        assert dataset.groups(split).tolist() == [sorted(set(names)).index(name) for name in names]
    assert (dataset.classes(), characters.classes()) == (33, 1028 * (4 if rotations else 1))
    tasks = dict.fromkeys(SPLITS, Task(10, 4, 4))
    assert dataset.task_problems(tasks) == []
    for split, ways in (("train", 10), ("val", 5), ("test", 10)):  # five alphabets are all there are for validation
        episodes = dataset.sampler(split, tasks[split], 0).batch(0, 3)
        assert episodes.ways == ways
        assert episodes.support.x.shape == (3, ways * 4, 1, SIDE, SIDE)
    assert len(list((tmp_path / "cache" / "packs").glob("omniglot-*"))) == 1  # the same pack as that of characters
    (problem,) = dataset.task_problems({"train": Task(10, 4, 8), "val": Task(10, 4, 8)})
    assert str(problem).startswith("task.shots, task.queries: 4 shots + 8 queries, but 4 classes of the val split")
    (problem,) = dataset.task_problems({"test": Task(14, 4, 4), "val": Task(14, 4, 4)})
    assert str(problem).startswith("task.ways: 14 ways, but the test split has 13 groups of classes")


def test_the_split_of_lake_has_all_evaluation_alphabets_for_tests() -> None:
    lake, vinyals = class_split("lake"), class_split("vinyals")
    assert Counter(lake.values()) == {"train": 792, "val": 172, "test": 659}
    assert {name for name, split in lake.items() if split == "test"} == set(class_split("lake", "images_evaluation"))
    assert [name for name in lake if lake[name] == "val"] == [name for name in vinyals if vinyals[name] == "val"]


@pytest.mark.parametrize("split", ["vinyals", "lake"])
@pytest.mark.parametrize("rotations", [False, True])
def test_episodes_within_alphabets(split: str, rotations: bool, toy: Path, tmp_path: Path) -> None:
    said: list[str] = []
    options = {"download": False, "size": SIDE, "rotations": rotations, "split": split}
    dataset = Omniglot(toy, tmp_path / "cache", within="alphabet", warn=said.append, **options)
    assert dataset.classes() == (1028 if split == "vinyals" else 792) * (4 if rotations else 1)
    assert dataset.task_problems(dict.fromkeys(SPLITS, Task(20, 1, 1))) == []
    for part in SPLITS:
        names = np.array(dataset.split(part).names)
        seen = set()
        for drawn in dataset.sampler(part, Task(20, 1, 1), 0).indices(0, 400).classes:
            (alphabet,) = {(name.split("/")[0], name.partition("@")[2]) for name in names[drawn]}  # a rotated one is another
            assert len(set(drawn)) == 20
            seen.add(alphabet[0])
        small = {"train": 4, "val": 0, "test": 1 if split == "vinyals" else 0}[part]
        assert len(seen) == len({name.split("/")[0] for name in names}) - small
    assert ("Gurmukhi (4)" in said[-1]) == (split == "vinyals")
    of = 33 if split == "vinyals" else 25
    assert f"4 of {of} alphabets of the train split are left out, with fewer than 20 characters: Blackfoot" in said[0]


def test_within_alphabets_needs_one_that_is_large_enough_and_other_classes(toy: Path, tmp_path: Path) -> None:
    options = {"download": False, "size": SIDE}
    dataset = Omniglot(toy, tmp_path / "cache", within="alphabet", **options)
    (problem,) = dataset.task_problems({"test": Task(50, 1, 1)})
    assert str(problem).startswith("task.ways: 50 ways, but no group of classes of the test split has more than 47")
    for wrong, where in (({"classes": "alphabets"}, "dataset.within"), ({"rotations": "episodes"}, "dataset.rotations")):
        with pytest.raises(FslError, match=where):
            Omniglot(toy, tmp_path / "cache", within="alphabet", **options, **wrong)


def test_each_episode_rotated_by_one_angle(toy: Path, tmp_path: Path) -> None:
    options = {"download": False, "size": SIDE}
    task, upright = Task(5, 1, 1), Omniglot(toy, tmp_path / "cache", rotations=False, **options)
    dataset = Omniglot(toy, tmp_path / "cache", rotations="episodes", **options)
    assert dataset.classes() == upright.classes() == 1028
    turned = dataset.sampler("test", task, 0)
    one, other = turned.batch(0, 40), upright.sampler("test", task, 0).batch(0, 40)
    assert one.classes.equal(other.classes)
    assert one.seeds.equal(other.seeds)
    turns = []
    for episode in range(40):
        mine, theirs = (torch.cat([each.support.x[episode], each.query.x[episode]]) for each in (one, other))
        turns += [[k for k in range(4) if mine.equal(torch.rot90(theirs, k, (-2, -1)))]]
        assert len(turns[-1]) == 1
        assert mine[:5].equal(turned.batch(episode, 1).support.x[0])
    assert {k for (k,) in turns} == {0, 1, 2, 3}
    with pytest.raises(FslError, match="alphabets cannot be rotated by the episode"):
        Omniglot(toy, tmp_path / "cache", rotations="episodes", classes="alphabets", **options)


def test_folders_and_zips_are_the_same(toy: Path, tmp_path: Path) -> None:
    for archive in ARCHIVES:
        with zipfile.ZipFile(toy / "omniglot" / f"{archive}.zip") as zipped:
            zipped.extractall(tmp_path / "extracted")
    assert_same(load(tmp_path / "extracted", tmp_path / "cache"), load(toy, tmp_path / "cache"))


def test_repacked_zips_with_leftovers_are_fine(toy: Path, tmp_path: Path, toy_files: dict[str, dict[str, bytes]]) -> None:
    for archive in ARCHIVES:
        inner = {name.split("/", 1)[1]: data for name, data in reversed(toy_files[archive].items())}
        junk = {"Greek/.DS_Store": b"x", "__MACOSX/Greek/character01/._0001_01.png": b"x", "README.txt": b"x"}
        junk["Greek/character01/._0394_01.png"] = b"x"
        write_zip(tmp_path / "repacked" / f"{archive}.zip", {**inner, **junk})
    assert_same(load(tmp_path / "repacked", tmp_path / "cache"), load(toy, tmp_path / "cache"))


@pytest.mark.parametrize(
    "place", ["omniglot", ".", "omniglot-py", "Omniglot", "omniglot/python", "python", "OMNIGLOT-master/python"]
)
def test_every_documented_folder_is_searched(toy: Path, tmp_path: Path, place: str) -> None:
    elsewhere = tmp_path / "elsewhere" / place
    shutil.copytree(toy / "omniglot", elsewhere)
    assert len(load(tmp_path / "elsewhere", tmp_path / "cache")["test"]) == 423


@pytest.mark.parametrize("inside", ["omniglot/images", "omniglot", ".", "omniglot/python/images_background", "omniglot.zip"])
def test_all_alphabets_in_one_place(toy: Path, tmp_path: Path, toy_files: dict[str, dict[str, bytes]], inside: str) -> None:
    merged = {name.split("/", 1)[1]: data for archive in ARCHIVES for name, data in toy_files[archive].items()}
    if inside.endswith(".zip"):
        write_zip(tmp_path / "elsewhere" / inside, merged)
    else:
        write_zip(tmp_path / "merged.zip", merged)
        with zipfile.ZipFile(tmp_path / "merged.zip") as zipped:
            zipped.extractall(tmp_path / "elsewhere" / inside)
    assert_same(load(tmp_path / "elsewhere", tmp_path / "cache"), load(toy, tmp_path / "cache"))


def test_zips_with_backslashes(toy: Path, tmp_path: Path, toy_files: dict[str, dict[str, bytes]]) -> None:
    for archive in ARCHIVES:
        files = {name.replace("/", "\\"): data for name, data in toy_files[archive].items()}
        write_zip(tmp_path / "windows" / f"{archive}.zip", files)
    assert_same(load(tmp_path / "windows", tmp_path / "cache"), load(toy, tmp_path / "cache"))


def test_what_was_found_instead_is_said(tmp_path: Path) -> None:
    (tmp_path / "data" / "omniglot" / "strokes").mkdir(parents=True)
    (tmp_path / "data" / "omniglot" / "omniglot.tar.gz").touch()
    message = failure(tmp_path / "data", tmp_path / "cache")
    assert f"found: {tmp_path}/data/omniglot: omniglot.tar.gz, strokes; {tmp_path}/data: omniglot; dataset.download" in message


def test_changed_data_is_packed_again(toy: Path, tmp_path: Path, toy_files: dict[str, dict[str, bytes]]) -> None:
    for archive in ARCHIVES:
        with zipfile.ZipFile(toy / "omniglot" / f"{archive}.zip") as zipped:
            zipped.extractall(tmp_path / "extracted")
    before = load(tmp_path / "extracted", tmp_path / "cache")["train"]
    first = tmp_path / "extracted" / ARCHIVES[0] / before.names[0] / "0000_01.png"
    others = (toy_drawing(number) for number in range(1, 4096))
    drawing = next(other for other in others if len(png(other)) == first.stat().st_size)
    first.write_bytes(png(drawing))  # as long as before
    after = load(tmp_path / "extracted", tmp_path / "cache")["train"]
    np.testing.assert_array_equal(after.images[0, 0].numpy(), np.where(drawing, 0, 255))
    np.testing.assert_array_equal(after.images[1:].numpy(), before.images[1:].numpy())


# What can be wrong with the data.


def rewrite(toy: Path, change: Callable[[dict[str, bytes]], object], archive: str = ARCHIVES[1]) -> Path:
    """Repack one archive of the toy with ``change`` made to its files; returns its path."""
    path = toy / "omniglot" / f"{archive}.zip"
    with zipfile.ZipFile(path) as zipped:
        files = {name: zipped.read(name) for name in zipped.namelist()}
    change(files)
    write_zip(path, files)
    return path


def test_truncated_zip(toy: Path, tmp_path: Path) -> None:
    path = toy / "omniglot" / "images_evaluation.zip"
    path.write_bytes(path.read_bytes()[:-1000])
    message = failure(toy, tmp_path / "cache")
    assert message.startswith(f"{path}: not a whole zip file")


def test_not_a_zip(toy: Path, tmp_path: Path) -> None:
    path = toy / "omniglot" / "images_background.zip"
    path.write_text("<html>Sign in</html>")
    assert failure(toy, tmp_path / "cache").startswith(f"{path}: not a whole zip file")


def test_image_that_does_not_decode(toy: Path, tmp_path: Path) -> None:
    folder = "images_evaluation/Oriya/character05/"

    def spoil(files: dict[str, bytes]) -> None:
        files[next(name for name in files if name.startswith(folder) and "_02" in name)] = b"not a picture"

    path = rewrite(toy, spoil)
    message = failure(toy, tmp_path / "cache")
    assert message.startswith(f"{path}: {folder}")
    assert "_02.png cannot be decoded (not an image)" in message
    assert not list((tmp_path / "cache" / "packs").glob("omniglot-*"))


def early_end(data: bytes) -> bytes:
    """A PNG whose pixels are said to be shorter than they are, so that what follows is not a chunk."""
    length = data.index(b"IDAT") - 4
    return data[:length] + struct.pack(">I", 5) + data[length + 4 :]


@pytest.mark.parametrize(
    "spoil", [lambda data: data[: len(data) // 2], lambda data: data[:40] + b"\0\0" + data[42:], early_end]
)
def test_broken_png(toy: Path, tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    path = rewrite(toy, lambda files: files.update({name: spoil(data) for name, data in list(files.items())[:1]}))
    message = failure(toy, tmp_path / "cache")
    assert message.startswith(f"{path}: images_evaluation/")
    assert "cannot be decoded" in message


def test_altered_bytes_in_a_zip(toy: Path, tmp_path: Path) -> None:
    path = toy / "omniglot" / "images_background.zip"
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 6] ^= 255
    path.write_bytes(data)
    message = failure(toy, tmp_path / "cache")
    assert message.startswith(f"{path}: images_background/")
    assert "cannot be read (Bad CRC-32" in message


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda files: [files.pop(name) for name in list(files) if "/Oriya/character1" in name],
            "characters missing: 10, for example Oriya/character10",
        ),
        (
            lambda files: [files.pop(name) for name in list(files)[:1]],
            "characters with more or fewer drawings: 1, for example Angelic/character01 with 1",
        ),
        (
            lambda files: files.update({"images_evaluation/Klingon/character01/1.png": b"", "loose.png": b""}),
            "folders unknown: 2, for example ",
        ),
    ],
    ids=["characters", "drawing", "unknown"],
)
def test_incomplete_archive(toy: Path, tmp_path: Path, change: Callable[[dict[str, bytes]], object], expected: str) -> None:
    path = rewrite(toy, change)
    message = failure(toy, tmp_path / "cache")
    assert message.startswith(f"{path}: not the 659 characters x 2 drawings of images_evaluation: ")
    assert expected in message


def test_no_data(tmp_path: Path) -> None:
    message = failure(tmp_path / "data", tmp_path / "cache")
    for place in ("data/omniglot", "data", "data/omniglot-py"):
        assert str(tmp_path / place) in message
    for word in ("images_background.zip", "dataset.download is off", "data_dir=", "FSL_DATA_DIR", "dataset=glyphs"):
        assert word in message
    assert not (tmp_path / "data").exists()


def test_no_data_and_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(omniglot, "SOURCE", "http://127.0.0.1:9")  # nobody listens at the discard port
    monkeypatch.setattr("pooch.core.time.sleep", lambda _seconds: None)
    message = failure(tmp_path / "data", tmp_path / "cache", download=True)
    for word in ("neither images_background.zip", "no connection to 127.0.0.1", str(tmp_path / "data"), "FSL_DATA_DIR"):
        assert word in message


def test_unreadable_folder(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed" / "images_background").mkdir(parents=True)

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("fsl_cli.datasets.file_tree.os.scandir", refuse)  # root may read everything
    shutil.copy(toy / "omniglot" / "images_evaluation.zip", tmp_path / "closed")
    message = failure(tmp_path / "closed", tmp_path / "cache")
    assert message.startswith(f"{tmp_path}/closed/images_background: cannot be read: Permission denied")


def test_unwritable_data_dir(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where the folder should be")
    assert "cannot save a download" in failure(tmp_path / "data", tmp_path / "cache", download=True)


def test_unwritable_cache(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert "cannot write the image cache" in failure(toy, tmp_path / "cache")


# Downloading.


@pytest.fixture
def served(toy: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The toy's zips behind the official addresses; the paths that were asked for."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            asked.append(self.path)

    handler = partial(Handler, directory=str(toy / "omniglot"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setattr(omniglot, "SOURCE", f"http://127.0.0.1:{server.server_address[1]}")
        for archive in ARCHIVES:
            digest = hashlib.md5((toy / "omniglot" / f"{archive}.zip").read_bytes()).hexdigest()
            monkeypatch.setitem(MD5, archive, digest)
        yield asked
        server.shutdown()
        thread.join()


def test_downloads_what_is_missing_once(served: list[str], toy: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    shutil.copytree(toy / "omniglot", new / "omniglot", ignore=lambda _folder, _names: ["images_evaluation.zip"])
    for _ in range(2):
        assert_same(load(new, tmp_path / "cache", download=True), load(toy, tmp_path / "cache2"))
    assert served == ["/images_evaluation.zip"]
    names = {path.name for path in (new / "omniglot").iterdir() if not path.name.startswith(".")}
    assert names == {"images_background.zip", "images_evaluation.zip"}


def test_download_with_another_checksum_is_refused(served: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pooch.core.time.sleep", lambda _seconds: None)
    monkeypatch.setitem(MD5, "images_background", "0" * 32)
    message = failure(tmp_path / "new", tmp_path / "cache", download=True)
    assert "the file is not the one expected" in message
    assert "0" * 32 in message
    assert not list((tmp_path / "new").rglob("*.zip"))
