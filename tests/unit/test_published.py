"""mini-ImageNet, tiered-ImageNet and CUB: every layout gives the published classes and pictures; the rest is one line."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import published_layouts as layouts
import pytest
from published_layouts import SIDE, SPLITS, Data, write, write_pickle

from fsl_cli.datasets import cub
from fsl_cli.datasets.class_splits import published_split
from fsl_cli.datasets.cub import CUB
from fsl_cli.datasets.mini_imagenet import MiniImageNet
from fsl_cli.datasets.published import Published
from fsl_cli.datasets.tiered_imagenet import TieredImageNet
from fsl_cli.errors import FslError

SETS = (MiniImageNet, TieredImageNet, CUB)
DATA = {each: layouts.random_pictures(published_split(each.name), 1 if each is TieredImageNet else 2) for each in SETS}

EVERY = [
    (MiniImageNet, "miniImagenet", layouts.class_dicts),
    (MiniImageNet, "mini-imagenet", layouts.short_class_dicts),
    (MiniImageNet, "mini_imagenet/miniImageNet_numpy", layouts.labelled),
    (MiniImageNet, "miniimagenet", layouts.hdf5),
    (MiniImageNet, "mini_imagenet", layouts.ravi_csv),
    (MiniImageNet, "mini_imagenet", layouts.easyfsl_csv),
    (MiniImageNet, "mini-ImageNet", layouts.class_folders),
    (MiniImageNet, "", layouts.images_folder),
    (MiniImageNet, "mini_imagenet", layouts.split_folders),
    (TieredImageNet, "tiered-imagenet", layouts.encoded),
    (TieredImageNet, "tieredimagenet", layouts.encoded_hdf5),
    (TieredImageNet, "tiered_imagenet", layouts.imagenet_folders),
    (TieredImageNet, "", layouts.split_folders),
    (CUB, "", layouts.released_cub),
    (CUB, "CUB_200_2011", layouts.images_folder),
    (CUB, "cub", layouts.released_cub),
    (CUB, "cub", layouts.encoded_hdf5),
    (CUB, "cub", layouts.archive),
    (CUB, "cub", layouts.split_folders),
]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sets have as many pictures as `DATA`."""
    for each, data in DATA.items():
        monkeypatch.setattr(each, "total", sum(len(pictures) for classes in data.values() for pictures in classes.values()))


def made(kind: type[Published], folder: Path, **options) -> Published:
    warnings: list[str] = []
    if kind is CUB:
        options = {"download": False} | options
    data = kind(folder, folder.parent / "cache", **{"size": SIDE, "warn": warnings.append} | options)
    data.warnings = warnings  # type: ignore[attr-defined]
    return data


def assert_all_there(made: Published, data: Data) -> None:
    for split in SPLITS:
        found = made.split(split)  # type: ignore[arg-type]
        assert list(found.names) == sorted(data[split])
        pictures = [data[split][name].transpose(0, 3, 1, 2) for name in found.names]
        expected = [
            each[sorted(range(len(each)), key=lambda i: hashlib.sha256(each[i].tobytes()).digest())] for each in pictures
        ]
        np.testing.assert_array_equal(found.images.numpy(), np.concatenate(expected))
        np.testing.assert_array_equal(made.counts(split), found.counts)  # type: ignore[arg-type]
    assert made.warnings == []  # type: ignore[attr-defined]


@pytest.mark.parametrize(("kind", "place", "writer"), EVERY, ids=lambda each: getattr(each, "__name__", None))
def test_every_layout_gives_the_published_classes_and_the_same_pictures(kind, place: str, writer, tmp_path: Path):
    writer(tmp_path / "data" / place, DATA[kind])
    assert_all_there(made(kind, tmp_path / "data"), DATA[kind])


@pytest.mark.parametrize(
    ("kind", "sizes"), [(MiniImageNet, [64, 16, 20]), (TieredImageNet, [351, 97, 160]), (CUB, [100, 50, 50])], ids=str
)
def test_the_published_splits_have_their_sizes(kind: type[Published], sizes: list[int]):
    split = published_split(kind.name)
    assert [len(split[each]) for each in SPLITS] == sizes
    assert len({name for names in split.values() for name in names}) == sum(sizes)


def test_the_split_of_cub_goes_by_the_number_of_the_class():
    number = {split: {(int(name[:3]) - 1) % 4 for name in names} for split, names in published_split("cub").items()}
    assert number == {"train": {0, 2}, "val": {1}, "test": {3}}


def test_classes_without_published_names_are_named_by_their_label(tmp_path: Path):
    layouts.labelled(tmp_path / "data", DATA[MiniImageNet], named=False)
    found = made(MiniImageNet, tmp_path / "data").split("val")
    assert list(found.names) == [f"class {label:03d}" for label in range(16)]
    assert {each.tobytes() for each in found.images[:2].numpy().transpose(0, 2, 3, 1)} == {
        each.tobytes() for each in next(iter(DATA[MiniImageNet]["val"].values()))
    }


def test_pictures_are_resized(tmp_path: Path):
    layouts.class_folders(tmp_path / "data" / "cub", DATA[CUB])
    layouts.class_dicts(tmp_path / "data" / "mini_imagenet", DATA[MiniImageNet])
    for kind in (CUB, MiniImageNet):
        large = made(kind, tmp_path / "data", size=30)
        assert large.image_shape == (3, 30, 30)
        assert large.split("test").images.shape[1:] == (3, 30, 30)


def test_a_picture_in_two_splits_is_reported(tmp_path: Path):
    data = {split: dict(classes) for split, classes in DATA[MiniImageNet].items()}
    train, val = (sorted(data[split])[0] for split in ("train", "val"))
    data["val"][val] = np.concatenate([data["train"][train][:1], data["val"][val][1:]])
    layouts.class_folders(tmp_path / "data", data)
    mini = made(MiniImageNet, tmp_path / "data")
    mini.split("train")
    (warning,) = mini.warnings  # type: ignore[attr-defined]
    assert "1 pictures are in two splits, so a test may have been seen in training: " in warning
    assert f"one of {val} (val) is in {train} (train)" in warning


def test_a_changed_file_is_packed_again(tmp_path: Path):
    layouts.class_dicts(tmp_path / "data", DATA[MiniImageNet])
    before = made(MiniImageNet, tmp_path / "data").split("test")
    changed = {s: {name: 255 - pictures for name, pictures in classes.items()} for s, classes in DATA[MiniImageNet].items()}
    layouts.class_dicts(tmp_path / "data", changed)
    os.utime(tmp_path / "data" / "mini-imagenet-cache-test.pkl", (1, 1))
    after = made(MiniImageNet, tmp_path / "data")
    assert not np.array_equal(after.split("test").images, before.images)
    assert_all_there(after, changed)


# --- what is refused


def refusal(kind: type[Published], folder: Path, **options) -> str:
    with pytest.raises(FslError) as error:
        made(kind, folder, **options).split("train")
    assert "\n" not in str(error.value)
    assert not list((folder.parent / "cache" / "packs").glob("*/index.json"))
    return str(error.value)


def without(kind: type[Published], split: str, many: int = 1) -> Data:
    return {s: dict(list(classes.items())[many if s == split else 0 :]) for s, classes in DATA[kind].items()}


@pytest.mark.parametrize("kind", SETS)
def test_missing_data_is_one_line_that_says_what_is_there_and_what_is_read(kind: type[Published], tmp_path: Path):
    write(tmp_path / "data" / kind.name / "notes.txt", b"")
    message = refusal(kind, tmp_path / "data")
    assert f"data_dir: {kind.name} not found; {tmp_path / 'data' / kind.name}: notes.txt; {tmp_path / 'data'}: " in message
    assert f"put into {tmp_path / 'data' / kind.name}: " in message
    assert "torchmeta" in message
    assert ("dataset.download is off" if kind is CUB else "ImageNet's terms must be accepted") in message
    assert "no folder" in refusal(kind, tmp_path / "nowhere")


def test_cub_is_downloaded_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def fetch(url: str, target: Path, *, md5: str, progress: object) -> None:
        asked.append((url, md5))
        layouts.archive(target.parent, DATA[CUB])

    monkeypatch.setattr(cub, "fetch", fetch)
    assert_all_there(made(CUB, tmp_path / "data", download=True), DATA[CUB])
    assert asked == [(cub.SOURCE, cub.MD5)]


@pytest.mark.parametrize(
    ("kind", "writer", "change", "message"),
    [
        (MiniImageNet, layouts.class_folders, lambda p: shutil.rmtree(p / "n02110341"), "1 of 100 classes have no folder, for"),
        (
            MiniImageNet,
            layouts.class_folders,
            lambda p: next((p / "n02110341").iterdir()).unlink(),
            "has 199 pictures, not the",
        ),
        (
            MiniImageNet,
            layouts.class_dicts,
            lambda p: (p / "mini-imagenet-cache-validation.pkl").unlink(),
            "but not mini-imagenet",
        ),
        (MiniImageNet, layouts.ravi_csv, lambda p: (p / "val.csv").unlink(), "has train.csv and test.csv, but not val.csv"),
        (MiniImageNet, layouts.hdf5, lambda p: (p / "val_labels.json").unlink(), "but not val_labels.json"),
        (MiniImageNet, layouts.hdf5, lambda p: write(p / "val_labels.json", b'["'), "val_labels.json: is not JSON"),
        (MiniImageNet, layouts.hdf5, lambda p: write(p / "val_labels.json", b"{}"), "is not a list of the names of classes"),
        (MiniImageNet, layouts.hdf5, lambda p: write(p / "val_labels.json", b'["n1"]'), "there is no 'n1' in '/datasets'"),
        (TieredImageNet, layouts.encoded, lambda p: (p / "val_labels.pkl").unlink(), "but not val_labels.pkl"),
        (
            TieredImageNet,
            layouts.encoded,
            lambda p: write_pickle(p / "train_images_png.pkl", [1]),
            "picture for each label: 1 pic",
        ),
        (
            TieredImageNet,
            layouts.encoded,
            lambda p: write_pickle(p / "val_labels.pkl", {}),
            "with classes: there is no 'labels'",
        ),
        (
            CUB,
            layouts.released_cub,
            lambda p: write(p / "CUB_200_2011/images/002.Laysan_Albatross/0.jpg", b"?"),
            "not the 400 of",
        ),
        (
            CUB,
            layouts.released_cub,
            lambda p: write(p / "CUB_200_2011/images/002.Laysan_Albatross/002.Laysan_Albatross_0.jpg", b"?"),
            "002.Laysan_Albatross_0.jpg: is not a usable picture: not a picture",
        ),
    ],
)
def test_incomplete_and_damaged_sets_are_one_line(kind, writer, change, message: str, tmp_path: Path):
    writer(tmp_path / "data", DATA[kind])
    change(tmp_path / "data")
    assert message in refusal(kind, tmp_path / "data")


BLACK = np.zeros((2, SIDE, SIDE, 3), np.uint8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "with classes: there is no 'image_data'"),
        ([], "does not hold pictures with classes: "),
        (
            {"image_data": BLACK[0], "class_dict": {}},
            "pictures are uint8 [N, H, W, 3], not uint8 [9, 9, 3]",
        ),
        ({"image_data": [1], "class_dict": {}}, "pictures are uint8 [N, H, W, 3], not list"),
        ({"image_data": BLACK, "class_dict": {"n1": [0, 2]}}, "a row that is not among the 2"),
        (
            {"image_data": BLACK, "class_dict": {"n1": [0, 1]}},
            "has 1, 16 and 20 classes for train, val",
        ),
    ],
)
def test_other_pickles_are_one_line(content: object, message: str, tmp_path: Path):
    layouts.class_dicts(tmp_path / "data", DATA[MiniImageNet])
    write_pickle(tmp_path / "data" / "mini-imagenet-cache-train.pkl", content)
    assert message in refusal(MiniImageNet, tmp_path / "data")


def test_another_split_is_refused(tmp_path: Path):
    train, val = (sorted(published_split("mini_imagenet")[split])[0] for split in ("train", "val"))
    swapped = {train: val, val: train}
    data = {s: {swapped.get(n, n): each for n, each in classes.items()} for s, classes in DATA[MiniImageNet].items()}
    layouts.class_dicts(tmp_path / "data", data)
    assert f"class {val} is in train, but in val of the published split" in refusal(MiniImageNet, tmp_path / "data")


class Attack:
    def __reduce__(self):
        return os.system, ("touch attacked",)


@pytest.mark.parametrize(
    ("kind", "writer", "file"),
    [
        (MiniImageNet, layouts.class_dicts, "mini-imagenet-cache-train.pkl"),
        (MiniImageNet, layouts.labelled, "miniImageNet_category_split_train_phase_train.pickle"),
        (TieredImageNet, layouts.encoded, "train_labels.pkl"),
        (TieredImageNet, layouts.encoded, "train_images_png.pkl"),
    ],
)
def test_a_pickle_that_runs_code_is_refused(kind, writer, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    writer(tmp_path / "data", DATA[kind])
    write_pickle(tmp_path / "data" / file, {"image_data": Attack()})
    assert f"{file}: not a pickle of arrays: names posix.system" in refusal(kind, tmp_path / "data")
    assert not (tmp_path / "attacked").exists()


def link(name: str, target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, target
    return member


def bomb() -> tarfile.TarInfo:
    member = tarfile.TarInfo("CUB_200_2011/images/a/b.jpg")
    member.size = 5 << 30
    return member


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (
            tarfile.TarInfo("CUB_200_2011/images/../../../climbed.jpg"),
            "has a path that leads out of it: CUB_200_2011/images/../",
        ),
        (tarfile.TarInfo("/tmp/climbed.jpg"), "has a path that leads out of it: /tmp/climbed.jpg"),
        (link("CUB_200_2011/images/001.a/b.jpg", "/etc/passwd"), "has a link or device: CUB_200_2011/images/001.a/b.jpg"),
    ],
)
def test_an_archive_that_climbs_out_is_refused(member: tarfile.TarInfo, message: str, tmp_path: Path):
    layouts.archive(tmp_path / "data", DATA[CUB], (member,))
    assert message in refusal(CUB, tmp_path / "data")
    assert not (tmp_path / "climbed.jpg").exists()


def test_an_archive_that_is_cut_short_or_claims_too_much_is_refused(tmp_path: Path):
    layouts.archive(tmp_path / "data", DATA[CUB])
    file = tmp_path / "data" / "CUB_200_2011.tgz"
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:20], b"", b"no archive"):
        file.write_bytes(damaged)
        assert "CUB_200_2011.tgz: not a whole CUB_200_2011.tgz: " in refusal(CUB, tmp_path / "data")
    layouts.archive(tmp_path / "data", {}, (bomb(),))
    assert "CUB_200_2011.tgz: holds more than 4 GB, which is not CUB" in refusal(CUB, tmp_path / "data")


def test_an_hdf5_file_that_is_cut_short_is_refused(tmp_path: Path):
    layouts.hdf5(tmp_path / "data", DATA[MiniImageNet])
    file = tmp_path / "data" / "train_data.hdf5"
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:100], b"", b"no HDF5"):
        file.write_bytes(damaged)
        assert "train_data.hdf5: not a whole HDF5 file: " in refusal(MiniImageNet, tmp_path / "data")


@pytest.mark.parametrize("attack", ["external link", "soft link", "virtual", "external storage", "objects", "too many pixels"])
def test_an_hdf5_file_that_reaches_elsewhere_is_refused(attack: str, tmp_path: Path):
    h5py = pytest.importorskip("h5py")
    layouts.hdf5(tmp_path / "data", DATA[MiniImageNet])
    with h5py.File(tmp_path / "other.hdf5", "w") as other:
        other["pictures"] = np.zeros((2, SIDE, SIDE, 3), np.uint8)
    name = sorted(DATA[MiniImageNet]["train"])[0]
    with h5py.File(tmp_path / "data" / "train_data.hdf5", "a") as file:
        group, shape = file["datasets"], (2, SIDE, SIDE, 3)
        del group[name]
        if attack == "external link":
            group[name] = h5py.ExternalLink(str(tmp_path / "other.hdf5"), "/pictures")
        elif attack == "soft link":
            group[name] = h5py.SoftLink("/datasets/elsewhere")
        elif attack == "virtual":
            layout = h5py.VirtualLayout(shape, np.uint8)
            layout[:] = h5py.VirtualSource(str(tmp_path / "other.hdf5"), "pictures", shape)
            group.create_virtual_dataset(name, layout)
        elif attack == "external storage":
            group.create_dataset(name, shape, np.uint8, external=[(str(tmp_path / "other.hdf5"), 0, h5py.h5f.UNLIMITED)])
        elif attack == "objects":
            group.create_dataset(name, (2,), dtype=h5py.string_dtype())
        else:
            group.create_dataset(name, (2, 100_000, 100_000, 3), np.uint8, chunks=(1, 100, 100, 3))
    message = refusal(MiniImageNet, tmp_path / "data")
    expected = "is a link to another place, which is not followed"
    assert (expected if attack not in ("objects", "too many pixels") else f"{name}: does not hold pictures, but ") in message
