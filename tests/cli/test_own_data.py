"""Pictures and vectors of one's own, from the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command_line import SMALL, results
from PIL import Image


@pytest.fixture
def photos(tmp_path: Path, monkeypatch) -> Path:
    """12 classes of four colour photos of different sizes; each class has a hue of its own."""
    random = np.random.default_rng(0)
    for number in range(12):
        folder = tmp_path / "my photos" / f"Klasse ä{number}"
        folder.mkdir(parents=True)
        for k in range(4):
            noise = random.integers(0, 60, (20 + k, 30 - k, 3))
            Image.fromarray((noise + random.permutation(180)[number % 3] + [0, 8 * number, 90]).astype(np.uint8)).save(
                folder / f"{k}.jpg"
            )
    monkeypatch.chdir(tmp_path)
    return tmp_path / "my photos"


def test_it_trains_and_is_evaluated_again(fsl, photos: Path, tmp_path: Path):
    (photos / "Klasse ä3" / "5.jpg").write_bytes(b"damaged")
    own = ("dataset=folder", "dataset.root=my photos", "dataset.size=16", "dataset.fractions=[0.4,0.3,0.3]")
    words = [word for word in SMALL if not word.startswith(("dataset", "task"))]
    task = ("task.ways=3", "task.shots=1", "task.queries=2", "algo=protonet", "algo.train_queries=2")
    done = fsl("train", *words, *own, *task, "dataset.max_unreadable=0.1", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.code == 0, done.err
    assert "1 unreadable pictures left out" in done.err
    assert "Klasse ä3/5.jpg: not a picture" in done.err
    assert "training with 4 ways instead of 60: the training split has no more classes" in done.err
    trained = results(tmp_path / "run")
    again = ("eval", f"run={tmp_path / 'run'}", f"hydra.run.dir={tmp_path / 'again'}")
    refused = fsl(*again)
    said = "dataset.root: is missing: a test takes no folders from a saved run, where it was my photos (add dataset.root=...)"
    assert (refused.code, refused.err) == (2, f"error: {said}\n")
    assert fsl(*again, "dataset.root=my photos").code == 0
    assert results(tmp_path / "again")["accuracy"] == trained["accuracy"]
    assert results(tmp_path / "again")["episodes_digest"] == trained["episodes_digest"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "dataset.root: is missing (it has no default: add dataset.root=...)"),
        (("dataset.root=nowhere",), "nowhere: there is no such folder"),
        (("dataset.root=my photos", "dataset.csv=x.csv"), "x.csv: cannot be read: No such file"),
        (("dataset.root=my photos", "task.queries=9"), "task.shots, task.queries: 1 shots + 9 queries, but a class of the"),
        (
            ("dataset.root=my photos",),
            "task.shots, algo.train_queries: 1 shots + 5 queries, but a class of the train split has 4",
        ),
        (("dataset.root=my photos", "dataset.fit=squeeze"), "dataset.fit: 'squeeze' is not valid"),
        (("dataset.root=my photos", "dataset.fractions=[0.5,0.5,0.5]"), "add up to 1.5, not to 1"),
    ],
)
def test_mistakes_are_one_line(fsl, photos: Path, words: tuple[str, ...], message: str, tmp_path: Path):
    done = fsl(
        "train",
        "algo=protonet",
        "dataset=folder",
        *words,
        "task.ways=2",
        "wandb.mode=disabled",
        f"hydra.run.dir={tmp_path / 'run'}",
    )
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("algo", ["algo=maml", "algo=anil backbone=identity", "algo=r2d2", "algo=nearest", "algo=relationnet"])
def test_vectors_are_learned(algo: str, fsl, tmp_path: Path):
    """Classes are far apart: an untrained network already tells most of them apart."""
    random = np.random.default_rng(0)
    centres = random.normal(0, 3, (30, 8)).repeat(10, 0)
    np.savez(tmp_path / "x.npz", x=centres + random.normal(size=centres.shape), y=np.arange(30).repeat(10))
    words = [word for word in SMALL if not word.startswith(("dataset", "backbone", "train.iterations", "train.val_every"))]
    given = (
        "dataset=features",
        f"dataset.file={tmp_path / 'x.npz'}",
        *algo.split(),
        "train.iterations=20",
        "train.val_every=20",
    )
    done = fsl("train", *words, *given, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.code == 0, done.err
    assert results(tmp_path / "run")["accuracy"]["mean"] > 0.4


def test_a_backbone_that_leaves_nothing_to_learn_is_refused(fsl, tmp_path: Path):
    np.savez(tmp_path / "x.npz", x=np.arange(600.0).reshape(300, 2), y=np.arange(30).repeat(10))
    words = ("algo=protonet", "dataset=features", f"dataset.file={tmp_path / 'x.npz'}", "backbone=identity", "task.queries=5")
    done = fsl("train", *words, "wandb.mode=disabled", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.code == 2
    assert "backbone: leaves the algorithm nothing to learn (use backbone=mlp" in done.err


@pytest.fixture
def intents(tmp_path: Path) -> str:
    """``dataset.file=`` of 15 classes of ten texts, most of whose words are those of the class."""
    random = np.random.default_rng(0)
    rows = [
        f"{'' if row % 3 else 'Please, '}word{3 * label + random.integers(3)} word{random.integers(60)},class{label}"
        for label in range(15)
        for row in range(10)
    ]
    rows = [row if row[0] != "P" else f'"{row.rpartition(",")[0]}",{row.rpartition(",")[2]}' for row in rows]
    (tmp_path / "intents.csv").write_text("\n".join(["text,label", *rows]))
    return f"dataset.file={tmp_path / 'intents.csv'}"


OF_TEXTS = [word for word in SMALL if not word.startswith(("dataset", "backbone"))]


def test_words_of_texts_are_learned_and_tested_again(fsl, intents: str, tmp_path: Path):
    words = ("dataset=text", intents, "dataset.encoder=tokens", "backbone=text_cnn", "backbone.filters=8", "task.ways=3")
    trained = fsl("train", *OF_TEXTS, *words, "algo=protonet", "algo.train_ways=5", f"hydra.run.dir={tmp_path / 'run'}")
    assert trained.code == 0, trained.err
    again = fsl("eval", f"run={tmp_path / 'run'}", intents, f"hydra.run.dir={tmp_path / 'again'}")
    assert again.code == 0, again.err
    assert results(tmp_path / "again")["accuracy"] == results(tmp_path / "run")["accuracy"]
    assert results(tmp_path / "again")["episodes_digest"] == results(tmp_path / "run")["episodes_digest"]
    other = fsl("eval", f"run={tmp_path / 'run'}", intents, "dataset.max_words=5", f"hydra.run.dir={tmp_path / 'other'}")
    assert other.code == 2
    assert "it was trained with another vocabulary" in other.err


def test_the_vectors_of_texts_are_kept(fsl, intents: str, tmp_path: Path, monkeypatch):
    pytest.importorskip("wordllama", reason="wordllama is not installed")
    monkeypatch.setenv("FSL_CACHE_DIR", str(tmp_path / "cache"))
    for name in ("one", "two"):
        words = ("algo=nearest", "dataset=text", intents, "task.ways=3", f"hydra.run.dir={tmp_path / name}")
        done = fsl("train", *OF_TEXTS, *words)
        assert done.code == 0, done.err
        monkeypatch.setattr("fsl_cli.datasets.text_encoders._wordllama", None)  # is not loaded again
    assert results(tmp_path / "one")["accuracy"] == results(tmp_path / "two")["accuracy"]
    assert results(tmp_path / "one")["accuracy"]["mean"] > 0.5
    assert len(list((tmp_path / "cache" / "texts").glob("wordllama-*.npz"))) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("dataset=text dataset.encoder=tokens", "backbone: mlp does not work on words, and dataset.encoder is tokens"),
        ("dataset=text dataset.encoder=tokens backbone=conv4", "backbone: conv4 does not work on words"),
        ("dataset=text dataset.encoder=tfidf backbone=text_cnn", "text_cnn works on words, and an example of text has"),
        ("dataset=glyphs backbone=text_cnn", "backbone: text_cnn works on words, and an example of glyphs has the shape"),
        ("dataset=text dataset.encoder=tokens backbone=text_cnn algo=nearest", "algo: nearest compares the numbers of words"),
        ("dataset=text dataset.encoder=glove", "dataset.encoder: glove is no encoder"),
        ("dataset=text dataset.encoder=tfidf dataset.split_by=column", "intents.csv: has no column split"),
    ],
)
def test_mistakes_with_texts_are_one_line(words: str, message: str, fsl, intents: str, tmp_path: Path):
    given = words.split() + ([intents] if "dataset=text" in words else [])
    given += [] if "algo=" in words else ["algo=protonet"]
    done = fsl("train", *given, "task.ways=3", "task.queries=5", "wandb.mode=disabled", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.code == 2
    assert message in done.err
    assert len(done.err.splitlines()) == 1
