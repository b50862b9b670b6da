"""Folders and CSV files of pictures: which picture is in which class and split, and what is said of the others."""

from __future__ import annotations

import csv
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fsl_cli.datasets.folder import Folder
from fsl_cli.datasets.omniglot import Omniglot, vinyals_split
from fsl_cli.episodes import Task
from fsl_cli.errors import FslError

SPLITS = ("train", "val", "test")


def save(path: Path, value: int) -> None:
    """A picture whose pixels all have one value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((9, 9), value, np.uint8)).save(path)


def write_csv(path: Path, *rows: tuple[str, ...]) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return str(path)


def classes(folder: Folder) -> dict[str, dict[str, list[int]]]:
    """For each split and class, the values of its pictures."""
    found: dict[str, dict[str, list[int]]] = {}
    for split in SPLITS:
        images = folder.split(split)  # type: ignore[arg-type]
        values = np.split(images.images[:, 0, 4, 4].numpy(), np.cumsum(images.counts)[:-1])
        found[split] = {name: each.tolist() for name, each in zip(images.names, values, strict=True)}
        np.testing.assert_array_equal(folder.counts(split), images.counts)  # type: ignore[arg-type]
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Ten classes of two pictures."""
    for number in range(10):
        for repeat in range(2):
            save(tmp_path / "pictures" / f"class {number}" / f"{repeat}.png", 10 * number + repeat)
    return tmp_path / "pictures"


def folder(root: Path, **options) -> Folder:
    warnings: list[str] = []
    made = Folder(str(root), root.parent / "cache", size=8, channels=1, warn=warnings.append, **options)
    made.warnings = warnings  # type: ignore[attr-defined]
    return made


def test_classes_are_drawn_for_the_splits(root: Path):
    drawn = classes(folder(root))
    assert {split: len(names) for split, names in drawn.items()} == {"train": 6, "val": 2, "test": 2}
    everything = {name: values for names in drawn.values() for name, values in names.items()}
    assert everything == {f"class {number}": [10 * number, 10 * number + 1] for number in range(10)}
    assert classes(folder(root)) == drawn
    assert classes(folder(root, split_seed=1)) != drawn
    assert [len(names) for names in classes(folder(root, fractions=[0.2, 0.4, 0.4])).values()] == [2, 4, 4]


def test_splits_are_folders(tmp_path: Path):
    for number, split in enumerate(("train", "valid", "test")):
        save(tmp_path / "pictures" / split / "same name" / "1.png", number)
    assert classes(folder(tmp_path / "pictures")) == {split: {"same name": [i]} for i, split in enumerate(SPLITS)}


def test_nested_folders_links_and_hidden_files(root: Path):
    save(root / "class 0" / "deeper" / "still" / "x.PNG", 99)
    save(root / "class 0" / ".hidden.png", 1)
    save(root / ".cache" / "x.png", 1)
    save(root / "__MACOSX" / "x.png", 1)
    (root / "class 0" / "notes.txt").write_text("not a picture")
    (root / "empty").mkdir()
    os.symlink(root / "class 0", root / "class 0" / "loop")
    os.symlink(root / "class 1", root / "linked")
    found = {name: values for names in classes(folder(root)).values() for name, values in names.items()}
    assert found["class 0"] == [0, 1, 99]
    assert found["linked"] == [10, 11]
    assert len(found) == 11


def test_a_csv_file_names_classes_and_splits(root: Path, tmp_path: Path):
    rows = [(f"class {i}/{k}.png", f"label {i % 5}", SPLITS[i % 5 % 3]) for i in range(10) for k in range(2)]
    with_splits = write_csv(tmp_path / "all.csv", ("filename", "label", "split"), *rows)
    assert classes(folder(root, csv=with_splits)) == {
        "train": {"label 0": [0, 1, 50, 51], "label 3": [30, 31, 80, 81]},
        "val": {"label 1": [10, 11, 60, 61], "label 4": [40, 41, 90, 91]},
        "test": {"label 2": [20, 21, 70, 71]},
    }
    without = write_csv(tmp_path / "short.csv", ("image_path", "class"), *(row[:2] for row in rows))
    assert [len(names) for names in classes(folder(root, csv=without)).values()] == [3, 1, 1]


def test_three_csv_files_as_of_mini_imagenet(root: Path, tmp_path: Path):
    for number, split in enumerate(SPLITS):
        write_csv(tmp_path / f"{split}.csv", ("filename", "label"), (f"class {number}/1.png", f"n{number}"))
    assert classes(folder(root, csv=str(tmp_path))) == {split: {f"n{i}": [10 * i + 1]} for i, split in enumerate(SPLITS)}


def test_a_file_names_the_split_of_each_class(root: Path, tmp_path: Path):
    rows = [(f"class {number}", ("train", "validation", "test")[number]) for number in range(3)]
    named = write_csv(tmp_path / "splits.csv", ("class", "split"), *rows)
    expected = {split: {f"class {i}": [10 * i, 10 * i + 1]} for i, split in enumerate(SPLITS)}
    assert classes(folder(root, split_by="file", split_file=named)) == expected
    for name, split in rows:
        (tmp_path / f"{split}.txt").write_text(f"{name}\n\n")
    assert classes(folder(root, split_file=str(tmp_path))) == expected


def test_what_is_left_out_or_doubtful_is_said(root: Path):
    (root / "class 3" / "broken.png").write_bytes(b"no")
    (root / "class 4" / "0.png").unlink()
    made = folder(root, max_unreadable=0.2, min_images=2)
    found = {name: values for names in classes(made).values() for name, values in names.items()}
    assert found["class 3"] == [30, 31]
    assert "class 4" not in found
    unreadable, small = made.warnings  # type: ignore[attr-defined]
    assert "1 unreadable pictures left out" in unreadable
    assert "broken.png: not a picture" in unreadable
    assert "1 classes with fewer than 2 pictures left out: class 4 (1)" in small


def test_a_picture_in_two_splits_is_said(root: Path):
    save(root / "class 0" / "again.png", 91)  # as class 9 has it
    said = set()
    for seed in range(8):
        made = folder(root, split_seed=seed)
        splits = {split for split, names in classes(made).items() for values in names.values() if 91 in values}
        warnings = [text for text in made.warnings if "in two splits" in text]  # type: ignore[attr-defined]
        assert len(warnings) == len(splits) - 1
        assert all("again.png" in text and "class 9/1.png" in text for text in warnings)
        said.add(len(warnings))
    assert said == {0, 1}


def test_a_changed_picture_is_packed_again(root: Path):
    before = classes(folder(root))
    save(root / "class 5" / "0.png", 255)
    after = classes(folder(root))
    assert after != before
    assert sorted(value for names in after.values() for values in names.values() for value in values)[-1] == 255


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split_by": "folders"}, "has no splits train and test (use dataset.split_by=fractions or file)"),
        ({"split_by": "file"}, "dataset.split_file: is missing"),
        ({"fractions": [0.02, 0.49, 0.49]}, "dataset.fractions: leave none"),
        ({"csv": "nowhere.csv"}, "nowhere.csv: cannot be read: No such file"),
    ],
)
def test_errors_say_what_to_do(root: Path, options: dict, message: str):
    with pytest.raises(FslError) as error:
        folder(root, **options).split("train")
    assert message in str(error.value)


def test_errors_of_files_name_the_line(root: Path, tmp_path: Path):
    for header, row, message in [
        (("file", "label"), ("class 0/7.png", "a"), "line 2: there is no 'class 0/7.png' (paths begin in"),
        (("picture", "label"), ("class 0/0.png", "a"), "has no column file (its columns are picture, label; accepted: file, "),
        (("file", "label", "split"), ("class 0/0.png", "a", "dev"), "line 2: 'dev' is not a split (use train, val or test)"),
    ]:
        with pytest.raises(FslError) as error:
            folder(root, csv=write_csv(tmp_path / "x.csv", header, row)).split("train")
        assert message in str(error.value)
    splits = write_csv(tmp_path / "splits.csv", ("class", "split"), ("class 11", "test"))
    with pytest.raises(FslError, match="line 2: there is no class 'class 11'"):
        folder(root, split_by="file", split_file=splits).split("train")


def test_too_many_unreadable_pictures_are_an_error(root: Path):
    (root / "class 3" / "broken.png").write_bytes(b"no")
    with pytest.raises(FslError, match=r"more than 1% of 21 pictures cannot be read, for example .*broken\.png: not a picture"):
        folder(root).split("train")
    assert not list((root.parent / "cache" / "packs").glob("folder-*"))


def test_a_missing_folder_and_one_without_classes(tmp_path: Path):
    with pytest.raises(FslError, match="there is no such folder"):
        folder(tmp_path / "nowhere").split("train")
    save(tmp_path / "flat" / "1.png", 1)
    with pytest.raises(FslError, match="has no folder with pictures in it"):
        folder(tmp_path / "flat").split("train")


@pytest.mark.data
@pytest.mark.slow
def test_omniglot_as_a_folder_gives_the_episodes_of_omniglot(omniglot_dir: Path, tmp_path: Path):
    for archive in ("images_background", "images_evaluation"):
        with zipfile.ZipFile(omniglot_dir / "omniglot" / f"{archive}.zip") as file:
            file.extractall(tmp_path)
    data = Omniglot(tmp_path, tmp_path / "cache", rotations=False, download=False)
    names = [f"{name}/{k}" for split in SPLITS for name in data.split(split).names for k in range(20)]  # type: ignore[arg-type]
    files = {
        f"{path.parent.parent.name}/{path.parent.name}": sorted(path.parent.iterdir())
        for path in tmp_path.glob("images_*/*/*/*.png")
    }
    split_of = vinyals_split()
    rows = []
    for name in names:
        character, _, k = name.rpartition("/")
        rows.append((str(files[character][int(k)].relative_to(tmp_path)), character, split_of[character]))
    table = write_csv(tmp_path / "omniglot.csv", ("file", "label", "split"), *rows)
    mine = Folder(str(tmp_path), tmp_path / "cache", csv=table, size=28, channels=1, invert=True)
    for split in SPLITS:
        ours, theirs = (each.sampler(split, Task(5, 1, 15), 0) for each in (mine, data))  # type: ignore[arg-type]
        assert ours.digest(50) == theirs.digest(50)
