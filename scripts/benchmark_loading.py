"""Rows of `scripts/benchmark.py` about image files: packing them, drawing episodes from them, and training from a pack.

    FSL_DATA_DIR=... python scripts/benchmark.py --suite loading

Packing reads the 60,000 pictures of CIFAR-100 (``cifar_fs/cifar100.zip`` in FSL_DATA_DIR; otherwise as many drawn ones), from
the zip file and extracted. Episodes are 5-way 5-shot with 15 queries per class, of 84 x 84 pictures, drawn by each side from
the same JPEG files; fsl draws from the pack that it has made of them. The sides alternate, after one warm-up turn; times are
medians, of drawing those of one episode.
"""

from __future__ import annotations

import os
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import benchmark_peer as peer
import numpy as np
import torch
from benchmark_processes import Pair, in_turns
from benchmark_rows import settings
from PIL import Image

from fsl_cli.algos.protonet import ProtoNet
from fsl_cli.backbones.conv4 import Conv4
from fsl_cli.compute import hardware
from fsl_cli.datasets import parallel
from fsl_cli.datasets.cifar100 import Cifar100, class_split
from fsl_cli.datasets.folder import Folder
from fsl_cli.episodes import EpisodeSampler, Task
from fsl_cli.episodes.class_images import ClassImages
from fsl_cli.training import Training

TASK = Task(5, 5, 15)
SIZE = 84
DRAWN = 20  # episodes of a peer in one turn; fsl draws ten times as many


def loading(repeats: int, classes: int = 40, per_class: int = 40, small: int = 600) -> Iterator[Pair]:
    """All rows.

    Args:
        repeats: timed turns of each side.
        classes: classes of 84 x 84 pictures.
        per_class: pictures in each.
        small: pictures of 32 x 32 in each class of CIFAR-100, if they are drawn.
    """
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        yield from _packing(root, repeats, small)
        _write_pictures(root / "jpeg", classes, per_class)
        images = _folder(root / "jpeg", root / "cache", SIZE).split("train")
        yield from _drawing(root / "jpeg", images, repeats)
        yield _training(images, repeats)


def _packing(root: Path, repeats: int, small: int) -> Iterator[Pair]:
    """Packing 60,000 pictures of 32 x 32, with all cores and with one thread."""
    data = Path(os.environ.get("FSL_DATA_DIR", "."))
    archive = data / "cifar_fs" / "cifar100.zip"
    if not archive.is_file():
        data, archive = root / "drawn", root / "drawn" / "cifar_fs" / "cifar100.zip"
        _write_archive(archive, small)
    with zipfile.ZipFile(archive) as file:
        file.extractall(root / "extracted")
    (apple,) = (path for path in (root / "extracted").rglob("apple") if path.is_dir())
    for name, make in {
        "pack_zip": lambda cache: Cifar100(data, cache, download=False),
        "pack_files": lambda cache: _folder(apple.parent, cache, 32),
    }.items():

        def run(threads: int, make: Callable[[Path], Any] = make) -> float:
            with tempfile.TemporaryDirectory(dir=root) as cache, mock.patch.object(parallel, "cores", return_value=threads):
                dataset = make(Path(cache))
                started = time.perf_counter()
                for split in ("train", "val", "test"):
                    dataset.split(split)
                return time.perf_counter() - started

        sides = {"all threads": partial(run, parallel.cores()), "one thread": partial(run, 1)}
        yield in_turns(name, f"packing the pictures of CIFAR-100, {name.removeprefix('pack_')}", sides, repeats)


def _drawing(files: Path, images: ClassImages, repeats: int) -> Iterator[Pair]:
    """Drawing an episode, beside learn2learn's and easyfsl's loaders."""
    sampler, start = EpisodeSampler(images, "train", TASK, 0), count(0, 10 * DRAWN)

    def mine() -> float:
        started, first = time.perf_counter(), next(start)
        for index in range(first, first + 10 * DRAWN):
            sampler.batch(index, 1)
        return (time.perf_counter() - started) / (10 * DRAWN)

    def theirs(draw: Callable[[], Any]) -> Callable[[], float]:
        def run() -> float:
            started = time.perf_counter()
            for _ in range(DRAWN):
                draw()
            return (time.perf_counter() - started) / DRAWN

        return run

    workers = parallel.cores()
    peers = {
        "learn2learn": lambda: peer.tasks_of_folder(files, TASK),
        "easyfsl": lambda: peer.easyfsl_tasks(files, TASK, 0),
        f"easyfsl_{workers}_workers": lambda: peer.easyfsl_tasks(files, TASK, workers),
    }
    for name, make in peers.items():
        yield in_turns(f"draw_{name}", f"drawing an episode, {TASK}", {"fsl": mine, name: theirs(make())}, repeats)


def _training(images: ClassImages, repeats: int) -> Pair:
    """A training step of ProtoNet from the memory-mapped pack, whose pages are in the system's cache, and from memory."""

    def step(source: ClassImages) -> Callable[[], float]:
        torch.manual_seed(0)
        algorithm = ProtoNet(Conv4((3, SIZE, SIZE)))
        used = hardware.set_up("cpu", "fp32", None, True, "auto")
        chosen = settings().model_copy(update={"meta_batch": 1})
        sampler = EpisodeSampler(source, "train", TASK, 0)
        training = Training(algorithm, torch.optim.Adam(algorithm.parameters()), sampler, chosen, used)

        def run() -> float:
            started = time.perf_counter()
            for _ in range(5):
                training.step()
            return (time.perf_counter() - started) / 5

        return run

    sides = {
        "mapped": step(images),
        "in memory": step(replace(images, images=images.images.clone(), on_read=lambda read: None)),
    }
    return in_turns("step_mapped", f"a training step of ProtoNet, {TASK}, one episode", sides, 3 * repeats)


def _folder(root: Path, cache: Path, size: int) -> Folder:
    return Folder(root, cache, fractions=[0.6, 0.2, 0.2], size=size)


def _write_pictures(root: Path, classes: int, per_class: int) -> None:
    random = np.random.default_rng(0)
    for number in range(classes):
        (root / f"class{number:02d}").mkdir(parents=True)
        for index in range(per_class):
            coarse = Image.fromarray(random.integers(0, 256, (12, 12, 3), dtype=np.uint8))
            coarse.resize((SIZE, SIZE)).save(root / f"class{number:02d}" / f"{index:03d}.jpg", quality=90)


def _write_archive(path: Path, per_class: int) -> None:
    random = np.random.default_rng(0)
    path.parent.mkdir(parents=True)
    names = [name for classes in class_split("cifar_fs").values() for name in classes]
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            for index in range(per_class):
                coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
                with archive.open(f"cifar100/data/{name}/{index:03d}.png", "w") as file:
                    coarse.resize((32, 32)).save(file, "png")


SUITES = {"loading": (loading, 3, "pictures")}  # rows, timed turns, images
