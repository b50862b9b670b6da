"""Normalised and augmented images through the command line: exact resuming, tests as trained, refusals in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Run, metrics, results
from PIL import Image

import fsl_cli
from fsl_cli.compute.hardware import Hardware
from fsl_cli.datasets.folder import Folder
from fsl_cli.episodes import Task
from fsl_cli.episodes.normalization import Normalization, NormalizedSampler
from fsl_cli.evaluation import evaluate

CHANGES = (
    "dataset.normalize=data",
    "train.augment.crop=1",
    "train.augment.resized_crop=0.3",
    "train.augment.flip=true",
    "train.augment.jitter=0.4",
)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five classes for each split, of 16 x 16 colour noise; training images are darker."""
    monkeypatch.setenv("FSL_CACHE_DIR", str(tmp_path / "cache"))  # their packs would be new ones every time
    for number in range(15):
        place = tmp_path / "photos" / ("train", "val", "test")[number // 5] / f"class{number}"
        place.mkdir(parents=True)
        pixels = np.random.default_rng(number).integers(0, 150 if number < 5 else 256, (4, 16, 16, 3), dtype=np.uint8)
        pixels[..., 0] //= 2
        for index, image in enumerate(pixels):
            Image.fromarray(image).save(place / f"{index}.png")
    return tmp_path / "photos"


def words(photos: Path, *more: str) -> tuple[str, ...]:
    return "dataset=folder", f"dataset.root={photos}", "dataset.size=16", "algo=protonet", "algo.train_queries=2", *more


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["algo"]


def test_training_goes_on_exactly_and_its_tests_are_normalised_by_its_own_numbers(
    fsl: Run, small: Callable[..., Path], photos: Path, tmp_path: Path
):
    mine = words(photos, *CHANGES, "train.augment.rotate_classes=true")
    whole = small("whole", *mine)
    small("parts", *mine, "train.iterations=3", "eval.episodes=0")
    small("parts", *mine, "resume=auto")
    assert metrics(tmp_path / "parts")[-1] == metrics(whole)[-1]
    for name, value in weights(whole).items():
        assert torch.equal(weights(tmp_path / "parts")[name], value), name
    assert results(tmp_path / "parts") == results(whole)

    paths = sorted((photos / "train").rglob("*.png"))
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths]) / 255
    numbers = results(whole)["normalization"]
    np.testing.assert_allclose(numbers["mean"], pixels.mean((0, 1, 2)), rtol=1e-9)
    np.testing.assert_allclose(numbers["std"], pixels.std((0, 1, 2)), rtol=1e-9)

    plain = small("plain", *words(photos))
    assert metrics(plain)[0] != metrics(whole)[0]
    assert results(plain)["episodes_digest"] == results(whole)["episodes_digest"]
    assert "normalization" not in results(plain)

    # another data set, with brighter training images: the numbers stay those of the training
    other = tmp_path / "other"
    other.mkdir()
    for name, split in (("val", "train"), ("train", "val"), ("test", "test")):
        (other / split).symlink_to(photos / name)
    again = ("dataset=folder", f"dataset.root={other}", "dataset.size=16", "eval.episodes=30")
    outcome = fsl("eval", f"run={whole}", *again, f"hydra.run.dir={tmp_path / 'again'}")
    assert outcome.code == 0, outcome.err
    assert "normalised by the mean" in outcome.out + outcome.err
    assert results(tmp_path / "again")["normalization"] == numbers
    model = fsl_cli.load(whole, again)
    sampler = Folder(other, tmp_path / "cache", size=16).sampler("test", Task(5, 1, 2), 0)
    scores = evaluate(
        model.algorithm,
        NormalizedSampler(sampler, Normalization.from_dict(numbers)),
        30,
        Hardware(torch.device("cpu"), "fp32", 8),
    )
    expected = np.load(tmp_path / "again" / "episodes.npz")
    np.testing.assert_allclose(scores["loss"], expected["loss"], rtol=1e-5)
    unchanged = evaluate(model.algorithm, sampler, 30, Hardware(torch.device("cpu"), "fp32", 8))
    assert not np.allclose(unchanged["loss"], expected["loss"], rtol=1e-3)

    # from Python, `predict` normalises what it is given
    episode = model.episodes("test", 1)
    assert torch.equal(episode.support.x, sampler.batch(0, 1).support.x)
    answer = model.predict(episode.support.x[0], episode.support.y[0].tolist(), episode.query.x[0])
    hits = np.mean(np.array(answer.labels) == episode.query.y[0].numpy())
    assert hits == pytest.approx(expected["accuracy"][0])


def test_what_cannot_be_is_one_line_and_leaves_nothing(fsl: Run, small: Callable[..., Path], photos: Path, tmp_path: Path):
    table = tmp_path / "table.csv"
    table.write_text("label,a,b\n" + "".join(f"{n % 30},{n},{n * n % 17}\n" for n in range(180)))
    features = ("dataset=features", f"dataset.file={table}", "task.queries=2", "wandb.mode=disabled")
    cases = {
        (*features, "dataset.normalize=data"): "dataset.normalize: is not valid: the examples are no images",
        (*features, "train.augment.flip=true"): "train.augment: is not valid: the examples are no images",
        words(photos, "task.queries=2", "dataset.normalize=[[0.5],[0.2]]"): "dataset.normalize: has numbers for 1 channels",
        (*words(photos)[:3], "algo=baseline", "task.queries=2", "train.augment.rotate_classes=true"): (
            "train.augment.rotate_classes: rotated classes are new ones"
        ),
    }
    for given, line in cases.items():
        outcome = fsl("train", *given, f"hydra.run.dir={tmp_path / 'run'}")
        assert outcome.code == 2
        assert line in outcome.err
        assert not (tmp_path / "run").exists()
    run = small("run", *words(photos, "dataset.normalize=[[0.5,0.5,0.5],[0.2,0.2,0.2]]"))
    outcome = fsl("eval", f"run={run}", f"dataset.root={photos}", "dataset.normalize=data")
    assert outcome.code == 2
    assert "dataset.normalize=data: belongs to training: the images of every test are normalised" in outcome.err
    assert results(run)["normalization"] == {"mean": [0.5] * 3, "std": [0.2] * 3}


def test_pre_training_is_augmented(small: Callable[..., Path], photos: Path):
    mine = ("dataset=folder", f"dataset.root={photos}", "dataset.size=16", "algo=baseline", "algo.test_epochs=1")
    plain, changed = small("plain", *mine), small("changed", *mine, "train.augment.flip=true")
    assert metrics(changed)[0]["train/loss"] != metrics(plain)[0]["train/loss"]
    assert results(changed)["episodes_digest"] == results(plain)["episodes_digest"]


def test_episodes_of_different_sizes_are_changed_too(small: Callable[..., Path], photos: Path, tmp_path: Path):
    mine = words(photos, *CHANGES, "task.shots=1..2", "algo.train_ways=3")
    whole = small("whole", *mine)
    small("parts", *mine, "train.iterations=3", "eval.episodes=0")
    small("parts", *mine, "resume=auto")
    assert metrics(tmp_path / "parts")[-1] == metrics(whole)[-1]
    assert results(tmp_path / "parts") == results(whole)
    assert results(small("plain", *words(photos, "task.shots=1..2", "algo.train_ways=3")))["loss"] != results(whole)["loss"]
