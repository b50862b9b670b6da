"""Small copies of published sets of pictures, written in every layout that people have."""

from __future__ import annotations

import csv
import io
import json
import pickle
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SIDE = 9
SPLITS = ("train", "val", "test")

Classes = dict[str, np.ndarray]  # uint8 [n, SIDE, SIDE, 3] of each class
Data = Mapping[str, Classes]  # of each split
Writer = Callable[[Path, Data], object]


def random_pictures(split: Mapping[str, list[str]], each: int = 2) -> dict[str, Classes]:
    """Pictures of random pixels for all classes, no two the same."""
    random = np.random.default_rng(0)
    return {s: {name: random.integers(0, 256, (each, SIDE, SIDE, 3), np.uint8) for name in split[s]} for s in SPLITS}


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png", compress_level=1)
    return buffer.getvalue()


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def write_pickle(path: Path, content: object, protocol: int = 2) -> Path:
    return write(path, pickle.dumps(content, protocol))


# --- folders


def class_folders(folder: Path, data: Data) -> None:
    for classes in data.values():
        for name, pictures in classes.items():
            for k, pixels in enumerate(pictures):
                write(folder / name / f"{name}_{k}.jpg", png(pixels))  # what a file is, its content says


def images_folder(folder: Path, data: Data) -> None:
    class_folders(folder / "images", data)


def imagenet_folders(folder: Path, data: Data) -> None:
    """All classes in train, others beside them, and a val with the same classes."""
    class_folders(folder / "train", data)
    class_folders(folder, {"train": {"train/n99999999": np.zeros((1, SIDE, SIDE, 3), np.uint8)}})
    class_folders(folder / "val", {"val": {name: pictures[:1] for name, pictures in data["val"].items()}})


def split_folders(folder: Path, data: Data) -> None:
    for split, classes in data.items():
        class_folders(folder / split, {split: classes})


def released_cub(folder: Path, data: Data) -> None:
    class_folders(folder / "CUB_200_2011" / "images", data)
    write(folder / "CUB_200_2011" / "classes.txt", b"")


# --- CSV files


def ravi_csv(folder: Path, data: Data) -> None:
    """All pictures in one folder."""
    for split, classes in data.items():
        rows = [(f"{name}{k:08d}.jpg", name, pixels) for name, each in classes.items() for k, pixels in enumerate(each)]
        for file, _, pixels in rows:
            write(folder / "images" / file, png(pixels))
        write_csv(folder / f"{split}.csv", [("filename", "label"), *(row[:2] for row in rows)])


def easyfsl_csv(folder: Path, data: Data) -> None:
    class_folders(folder / "images", data)
    for split, classes in data.items():
        rows = [(name, f"{name}_{k}.jpg") for name, each in classes.items() for k in range(len(each))]
        write_csv(folder / f"{split}.csv", [("class_name", "image_name"), *rows])


def write_csv(path: Path, rows: list[tuple[str, ...]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


# --- pickles


def mixed(classes: Classes) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The pictures in an order that mixes the classes, the class of each, and the names of the classes."""
    labels = np.repeat(np.arange(len(classes)), [len(each) for each in classes.values()])
    order = np.random.default_rng(1).permutation(len(labels))
    return np.concatenate(list(classes.values()))[order], labels[order], list(classes)


def class_dicts(folder: Path, data: Data, val: str = "validation") -> None:
    for split, classes in data.items():
        pictures, labels, names = mixed(classes)
        rows = {name: np.flatnonzero(labels == label).tolist() for label, name in enumerate(names)}
        file = folder / f"mini-imagenet-cache-{val if split == 'val' else split}.pkl"
        write_pickle(file, {"image_data": pictures, "class_dict": rows})


def short_class_dicts(folder: Path, data: Data) -> None:
    class_dicts(folder, data, val="val")


def labelled(folder: Path, data: Data, *, named: bool = True) -> None:
    names_of_files = {"train": "train_phase_train", "val": "val", "test": "test"}
    for split, classes in data.items():
        pictures, labels, names = mixed(classes)
        content: dict = {"data": pictures, "labels": labels.tolist()}
        if named:
            content["catname2label"] = {name: label for label, name in enumerate(names)}
        write_pickle(folder / f"miniImageNet_category_split_{names_of_files[split]}.pickle", content)


def encoded(folder: Path, data: Data) -> None:
    """As OpenCV encodes: each picture an array of bytes in one column."""
    for split, classes in data.items():
        pictures, labels, names = mixed(classes)
        files = [np.frombuffer(png(pixels), np.uint8)[:, None] for pixels in pictures]
        write_pickle(folder / f"{split}_images_png.pkl", files)
        write_pickle(
            folder / f"{split}_labels.pkl",
            {"label_specific": labels.astype(np.int32), "label_specific_str": names, "label_general": labels // 9},
        )


# --- HDF5


def hdf5(folder: Path, data: Data) -> None:
    h5py = pytest.importorskip("h5py")
    folder.mkdir(parents=True, exist_ok=True)
    for split, classes in data.items():
        with h5py.File(folder / f"{split}_data.hdf5", "w") as file:
            for name, pictures in classes.items():
                file.create_dataset(f"datasets/{name}", data=pictures)
        (folder / f"{split}_labels.json").write_text(json.dumps(sorted(classes)))


def encoded_hdf5(folder: Path, data: Data) -> None:
    h5py = pytest.importorskip("h5py")
    folder.mkdir(parents=True, exist_ok=True)
    for split, classes in data.items():
        with h5py.File(folder / f"{split}_data.hdf5", "w") as file:
            for name, pictures in classes.items():
                rows = file.create_dataset(f"datasets/{name}", (len(pictures),), dtype=h5py.special_dtype(vlen=np.uint8))
                for k, pixels in enumerate(pictures):
                    rows[k] = np.frombuffer(png(pixels), np.uint8)
        (folder / f"{split}_labels.json").write_text(json.dumps(sorted(classes)))


# --- archives


def archive(folder: Path, data: Data, extra: tuple[tarfile.TarInfo, ...] = ()) -> None:
    """With another file beside ``CUB_200_2011``, as released."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "CUB_200_2011.tgz", "w:gz", compresslevel=1) as file:
        add(file, "attributes.txt", b"")
        add(file, "CUB_200_2011/images.txt", b"")
        for classes in data.values():
            for name, pictures in classes.items():
                for k, pixels in enumerate(pictures):
                    add(file, f"CUB_200_2011/images/{name}/{k}.jpg", png(pixels))
        for member in extra:
            file.addfile(member)


def add(file: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    file.addfile(member, io.BytesIO(content))
