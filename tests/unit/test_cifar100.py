"""CIFAR-FS and FC100: the same episodes from every layout, and one line for data that is not theirs."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fsl_cli.datasets import cifar100
from fsl_cli.datasets.cifar100 import Cifar100, class_split
from fsl_cli.episodes import Task
from fsl_cli.errors import FslError

NAMES = sorted(name for classes in class_split("cifar_fs").values() for name in classes)
PIXELS = np.random.default_rng(0).integers(0, 256, (100, 4, 3, 32, 32), dtype=np.uint8)


@pytest.fixture(autouse=True)
def four_pictures_per_class(monkeypatch, request):
    if "real" not in request.node.name:
        monkeypatch.setattr(cifar100, "PICTURES", 4)


def made(folder: Path, split: str = "cifar_fs") -> Cifar100:
    return Cifar100(folder, folder / "cache", split=split, download=False)  # type: ignore[arg-type]


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, "png")
    return buffer.getvalue()


def pngs() -> dict[str, bytes]:
    return {f"{name}/{name}_{k}.png": png(PIXELS[i, k]) for i, name in enumerate(NAMES) for k in range(4)}


def pickles() -> dict[str, bytes]:
    """Three quarters of each class in the training file, as in CIFAR-100, in an order of their own."""
    order = np.random.default_rng(1).permutation(100)
    rows = {"train": range(1, 4), "test": range(1)}
    files = {
        part: {"fine_labels": [int(i) for k in each for i in order], "data": np.concatenate([PIXELS[order, k] for k in each])}
        for part, each in rows.items()
    }
    for content in files.values():
        content["data"] = content["data"].reshape(-1, 3072)
    return {part: pickle.dumps(each, 2) for part, each in {**files, "meta": {"fine_label_names": NAMES}}.items()}


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"cifar-100-python/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def test_every_layout_gives_the_same_episodes(tmp_path: Path):
    folders = {name: tmp_path / name for name in ("zip", "folders", "pickles", "tar")}
    for folder in folders.values():
        folder.mkdir()
    with zipfile.ZipFile(folders["zip"] / "cifar100.zip", "w") as archive:
        for name, data in pngs().items():
            archive.writestr(f"cifar100/data/{name}", data)
    write(folders["folders"] / "cifar_fs" / "cifar100" / "data", pngs())
    write(folders["pickles"] / "cifar-100-python", pickles())
    write_tar(folders["tar"] / "cifar-100-python.tar.gz", pickles())
    for split in ("cifar_fs", "fc100"):
        samplers = [made(folder, split).sampler("test", Task(5, 1, 2), 0) for folder in folders.values()]
        assert len({sampler.digest(20) for sampler in samplers}) == 1
        classes = made(folders["tar"], split).split("test")
        assert list(classes.names) == class_split(split)["test"]
        pictures = {each.tobytes() for each in classes.images[: classes.counts[0]].numpy()}
        assert pictures == {each.tobytes() for each in PIXELS[NAMES.index(classes.names[0])]}


def test_the_class_splits():
    fs, fc = class_split("cifar_fs"), class_split("fc100")
    assert [len(fs[split]) for split in ("train", "val", "test")] == [64, 16, 20]
    assert [len(fc[split]) for split in ("train", "val", "test")] == [60, 20, 20]
    for each in (fs, fc):
        assert sorted(name for classes in each.values() for name in classes) == NAMES
    assert len(set(NAMES)) == 100


class Attack:
    def __reduce__(self):
        return os.system, ("touch attacked",)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "cifar-100-python", pickles() | {"test": pickle.dumps({"data": Attack()})})
    with pytest.raises(FslError, match=r"cifar-100-python/test: not a pickle of arrays: names posix\.system"):
        made(tmp_path).split("train")
    assert not (tmp_path / "attacked").exists()


def test_damaged_and_missing_data_is_said_in_one_line(tmp_path: Path):
    def refusal() -> str:
        with pytest.raises(FslError) as error:
            made(tmp_path).split("test")
        return str(error.value)

    assert "neither cifar100.zip, cifar100/data nor cifar-100-python found; dataset.download is off" in refusal()
    archive = tmp_path / "cifar-100-python.tar.gz"
    write_tar(archive, pickles())
    archive.write_bytes(archive.read_bytes()[:100_000])
    assert "not a whole cifar-100-python.tar.gz" in refusal()
    archive.unlink()
    write(tmp_path / "cifar-100-python", {"train": b"", "test": b"", "meta": b""})
    assert "not a pickle of arrays: Ran out of input" in refusal()
    write(tmp_path / "cifar-100-python", {name: pickle.dumps({}) for name in ("train", "test", "meta")})
    assert "not CIFAR-100: KeyError('fine_label_names')" in refusal()
    write(tmp_path / "cifar100" / "data", {name: data for name, data in pngs().items() if not name.startswith("baby/")})
    assert "there is no class baby" in refusal()
    write(tmp_path / "cifar100" / "data", {"baby/1.png": png(PIXELS[0, 0])})
    assert "class baby has 1 pictures, not 4" in refusal()
    write(tmp_path / "cifar100" / "data", {"baby/1.png": png(PIXELS[0, 0][:, :20])})
    assert "a picture of class baby has 32 x 20 pixels" in refusal()


@pytest.mark.data
def test_real_pictures(omniglot_dir: Path, tmp_path: Path):
    archive = omniglot_dir / "cifar_fs" / "cifar100.zip"
    if not archive.is_file():
        pytest.skip("needs CIFAR-100 beside Omniglot")
    data = Cifar100(omniglot_dir, tmp_path, download=False)
    assert [len(data.counts(split)) for split in ("train", "val", "test")] == [64, 16, 20]  # type: ignore[arg-type]
    train = data.split("train")
    assert set(train.counts) == {600}
    everything = np.concatenate([data.split(split).images.numpy() for split in ("train", "val", "test")])  # type: ignore[arg-type]
    np.testing.assert_allclose(everything.mean((0, 2, 3)) / 255, [0.5074, 0.4867, 0.4411], atol=1e-4)
    with zipfile.ZipFile(archive) as file:
        name = next(each for each in file.namelist() if "/data/apple/" in each and each.endswith(".png"))
        apple = np.asarray(Image.open(file.open(name))).transpose(2, 0, 1)
    assert (train.images[:600].numpy() == apple).all((1, 2, 3)).sum() == 1
