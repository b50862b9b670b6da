"""`fsl data`: what is said of data sets, and the pictures of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from command_line import Run
from PIL import Image

from fsl_cli.settings.conf_files import choices

ROOT = ("dataset=folder", "dataset.root=photos", "dataset.size=8")
SMALL_TASK = ("task.ways=2", "task.shots=1", "task.queries=2")


@pytest.fixture
def photos(fsl: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three splits of three classes of four pictures, each of one colour, and a cache folder of its own."""
    monkeypatch.setenv("FSL_CACHE_DIR", str(tmp_path / "cache"))
    for number, split in enumerate(("train", "val", "test")):
        for label in range(3):
            for k in range(4):
                save(
                    tmp_path / "photos" / split / f"Klasse ä{3 * number + label}" / f"{k}.png", 60 * label + 10 * k, 80 * number
                )
    return tmp_path / "photos"


def save(path: Path, red: int, blue: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 9), (red, 0, blue)).save(path)


def table(out: str) -> list[list[str]]:
    return [line.split("\t") for line in out.splitlines() if "\t" in line]


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


# --- ls


def test_ls_lists_every_data_set_and_touches_nothing(fsl: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FSL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("FSL_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    done = fsl("data", "ls")
    assert (done.code, done.err) == (0, "")
    header, *rows = table(done.out)
    assert header[:3] == ["data set", "state", "classes train/val/test"]
    found = {row[0]: row[1:] for row in rows}
    assert sorted(found) == choices("dataset")
    assert found["folder"][0] == "missing"
    assert "add dataset.root=" in found["folder"][-1]
    assert found["omniglot"][:3] == ["missing", "4,112 / 688 / 1,692", "129,840"]
    assert f"downloaded at first use: {tmp_path / 'data' / 'omniglot'}" in found["omniglot"][-1]
    assert found["cifar_fs"][:3] == ["missing", "64 / 16 / 20", "60,000"]
    assert found["sinusoid"] == ["here", "", "", "", "", "needs no files"]
    assert files(tmp_path) == []


def test_ls_of_one_data_set_before_and_after_prepare(fsl: Run, photos: Path):
    def row() -> list[str]:
        return table(fsl("data", "ls", *ROOT).out)[1]

    assert row() == ["folder", "here", "3 / 3 / 3", "36", row()[4], "", "photos"]
    done = fsl("data", "prepare", *ROOT)
    assert (done.code, done.err) == (0, "")
    assert table(done.out)[1:] == [[split, "3", "12"] for split in ("train", "val", "test")]
    (pack,) = (photos.parent / "cache" / "packs").glob("folder-*")
    assert re.search(rf"packed in \d+:\d\d: {pack} \(\d", done.out)
    assert row()[1] == "packed"
    assert row()[5].endswith("kB")
    again = fsl("data", "prepare", *ROOT)
    assert f"is packed: {pack} (" in again.out


def test_a_plugin_and_a_broken_file_are_lines_of_the_list(fsl: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert fsl("new", "dataset", "ours", "in=mine").code == 0
    monkeypatch.setenv("FSL_PLUGINS", str(tmp_path / "mine"))
    (tmp_path / "omniglot").mkdir()
    (tmp_path / "omniglot" / "images_background.zip").write_bytes(b"no zip")
    done = fsl("data", "ls", f"data_dir={tmp_path}")
    assert done.code == 0, done.err
    found = {row[0]: row[1:] for row in table(done.out)}
    assert found["ours [from mine]"][0] == "here"
    assert found["omniglot"][0] == "unreadable"
    assert "images_background.zip: not a whole zip file" in found["omniglot"][-1]
    prepared = fsl("data", "prepare", "dataset=ours")
    assert prepared.code == 0, prepared.err
    assert prepared.out.endswith("needs no packing\n")


# --- verify


def test_verify_of_a_sound_folder(fsl: Run, photos: Path):
    done = fsl("data", "verify", *ROOT, *SMALL_TASK)
    assert (done.code, done.err) == (0, "")
    assert table(done.out)[1:] == [[split, "3", "12", "4", "4"] for split in ("train", "val", "test")]
    assert done.out.endswith("nothing is damaged\n")
    assert not (photos.parent / "cache").exists()


def test_verify_reports_everything_that_is_wrong(fsl: Run, photos: Path):
    (photos / "train" / "Klasse ä0" / "broken.png").write_bytes(b"no picture")
    (photos / "train" / "Klasse ä1" / "3.png").unlink()
    save(photos / "train" / "Klasse ä2" / "within.png", 120, 0)  # as 0.png there
    save(photos / "train" / "Klasse ä2" / "across.png", 0, 0)  # as train/ä0/0.png
    save(photos / "test" / "Klasse ä8" / "leak.png", 60, 0)  # as train/ä1/0.png
    done = fsl("data", "verify", *ROOT, "task.ways=3", "task.shots=2", "task.queries=2", "json=report.json")
    assert done.code == 1
    lines = done.err.splitlines()
    warnings = [line for line in lines if line.startswith("warning: ")]
    for line, where, one, other in zip(
        warnings,
        ("in a class", "in two classes", "in two splits"),
        ("train/Klasse ä2/within.png (train)", "train/Klasse ä2/across.png (train)", "test/Klasse ä8/leak.png (test)"),
        ("train/Klasse ä2/0.png (train)", "train/Klasse ä0/0.png (train)", "train/Klasse ä1/0.png (train)"),
        strict=True,
    ):
        assert line == f"warning: 1 examples are twice {where}: photos/{one} is photos/{other}"
    errors = [line for line in lines if line.startswith("error: ")]
    assert errors[0].startswith("error: photos/train/Klasse ä0/broken.png: not a picture")
    assert "2 shots + 2 queries, but a class of the train split has 3 images" in errors[1]
    assert errors[2] == "error: 1 classes with fewer than 4 examples: Klasse ä1 (train): 3"
    assert len(errors) == 3
    report = json.loads((photos.parent / "report.json").read_text())
    assert report["counts"]["train"] == {"Klasse ä0": 4, "Klasse ä1": 3, "Klasse ä2": 6}
    assert not report["ok"]
    assert {where: len(items) for where, items in report["twice"].items()} == {
        "in a class": 1,
        "in two classes": 1,
        "in two splits": 1,
    }


def test_duplicates_alone_are_no_damage(fsl: Run, photos: Path):
    save(photos / "train" / "Klasse ä2" / "within.png", 120, 0)
    done = fsl("data", "verify", *ROOT, *SMALL_TASK)
    assert done.code == 0
    assert "1 examples are twice in a class" in done.err


def test_a_damaged_pack_is_found(fsl: Run, photos: Path):
    fsl("data", "prepare", *ROOT)
    (images,) = (photos.parent / "cache").rglob("images.npy")
    content = bytearray(images.read_bytes())
    content[-1] ^= 255
    images.write_bytes(content)
    done = fsl("data", "verify", *ROOT, *SMALL_TASK)
    assert done.code == 1
    assert "error: test split of the pack: damaged" in done.err
    assert "train split" not in done.err


def test_verify_of_vectors_and_of_curves(fsl: Run, tmp_path: Path):
    x = np.arange(240.0).reshape(120, 2)
    x[7] = x[37]  # both are of class 7
    np.savez(tmp_path / "x.npz", x=x, y=np.arange(120) % 30)
    done = fsl("data", "verify", "dataset=features", "dataset.file=x.npz", "task.queries=3")
    assert done.code == 0, done.err
    assert "1 examples are twice in a class: 7 number 2" in done.err
    sinusoid = fsl("data", "verify", "dataset=sinusoid")
    assert (sinusoid.code, sinusoid.out) == (0, "nothing is damaged\n")


def test_verify_does_not_download(fsl: Run, tmp_path: Path):
    (tmp_path / "data").mkdir()
    done = fsl("data", "verify", "dataset=omniglot", "data_dir=data")
    assert done.code == 2
    assert "dataset=omniglot: is not here (downloaded at first use" in done.err


# --- show


def picture(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def has(pixels: np.ndarray, *colour: int) -> bool:
    """Whether an image has a square of a colour that is not a letter's."""
    same = (pixels == colour).all(-1)
    return bool((same[:-8, :-8] & same[8:, 8:] & same[8:, :-8] & same[:-8, 8:]).any())


def test_show_some_classes(fsl: Run, photos: Path):
    done = fsl("data", "show", *ROOT, "split=val")
    assert (done.code, done.err) == (0, "")
    assert table(done.out)[1:] == [[f"Klasse ä{k}", "val", "4"] for k in (3, 4, 5)]
    assert done.out.endswith("written: folder_val.png\n")
    drawn = picture(photos.parent / "folder_val.png")
    assert all(has(drawn, 60 * label + 10 * k, 0, 80) for label in range(3) for k in range(4))
    assert not has(drawn, 60, 0, 0)


def test_show_one_class(fsl: Run, photos: Path):
    done = fsl("data", "show", *ROOT, "class=Klasse ä7", "to=pictures/one.png")
    assert done.code == 0, done.err
    assert table(done.out)[1:] == [["Klasse ä7", "test", "4"]]
    drawn = picture(photos.parent / "pictures" / "one.png")
    assert all(has(drawn, 60 + 10 * k, 0, 160) for k in range(4))
    assert not has(drawn, 0, 0, 160)


def test_show_an_episode(fsl: Run, photos: Path):
    words = (*ROOT, "task.ways=3", "task.shots=1", "task.queries=3", "split=test")
    done = fsl("data", "show", *words, "episode=2", "to=a.png")
    assert done.code == 0, done.err
    rows = table(done.out)[1:]
    assert {row[1] for row in rows} == {"Klasse ä6", "Klasse ä7", "Klasse ä8"}
    assert all(row[2:] == ["1", "3"] for row in rows)
    drawn = picture(photos.parent / "a.png")
    assert all(has(drawn, 60 * label + 10 * k, 0, 160) for label in range(3) for k in range(4))
    fsl("data", "show", *words, "episode=3", "to=b.png")
    assert picture(photos.parent / "b.png").tobytes() != drawn.tobytes()
    fsl("data", "show", *words, "episode=2", "to=again.png")
    np.testing.assert_array_equal(picture(photos.parent / "again.png"), drawn)


def test_show_vectors_and_a_curve(fsl: Run, tmp_path: Path):
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(120, 3)), y=np.arange(120) % 30)
    features = ("dataset=features", "dataset.file=x.npz")
    for words in (("class=7",), ("episode=0", "task.queries=3"), ()):
        done = fsl("data", "show", *features, *words, "to=map.png")
        assert done.code == 0, done.err
        assert len(np.unique(picture(tmp_path / "map.png").reshape(-1, 3), axis=0)) > 3
        (tmp_path / "map.png").unlink()
    done = fsl("data", "show", "dataset=sinusoid", "episode=1", "to=curve.png")
    assert done.code == 0, done.err
    assert len(table(done.out)) == 11
    assert picture(tmp_path / "curve.png").shape == (400, 600, 3)


# --- mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "fsl data: what shall be done? (one of ls, prepare, verify, show)"),
        (("lss",), "fsl data: there is no fsl data lss (did you mean ls?"),
        (("ls", "--all"), "--all: is not a flag of fsl data ls"),
        (("ls", "dataset.size=9"), "dataset.size=9: of which data set? (add dataset=NAME"),
        (("prepare", "dataset=omnglot"), "dataset=omnglot: there is no dataset omnglot (did you mean omniglot?"),
        (("prepare", "dataset=glyphs,omniglot"), "fsl data prepare: these overrides make 2 jobs (one data set at a time)"),
        (("prepare", "dataset=folder"), "dataset.root: is missing"),
        (("verify", "dataset=glyphs", "dataset.sise=9"), "dataset.sise=9: there is no such key (did you mean dataset.size?"),
        (("verify", "task.shots=0"), "task.shots: 0 is not valid"),
        (("show", "split=tset"), "split=tset: is no split (did you mean test?"),
        (("show", "episode=-1"), "episode=-1: is no number of an episode"),
        (("show", "episode=1", "class=a"), "class=a: an episode has its own classes"),
        (("show", "to=a.jpg"), "to=a.jpg: is no PNG file"),
        (("show", "class=a", "class=b"), "class=b: is given twice"),
        (("show", "dataset=sinusoid"), "dataset=sinusoid: has no classes that could be listed (episode=0 shows an episode)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_mistakes_are_one_line(fsl: Run, tmp_path: Path, words: tuple[str, ...], message: str):
    done = fsl("data", *words)
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1
    assert files(tmp_path) == []


def test_an_unknown_class_has_a_close_match(fsl: Run, photos: Path):
    done = fsl("data", "show", *ROOT, "class=Klasse a7")
    assert done.code == 2
    assert "class=Klasse a7: there is no such class (did you mean Klasse ä7?" in done.err
