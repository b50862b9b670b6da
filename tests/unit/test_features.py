"""Vectors with labels from files: what is read, how it is split and standardised, and what is refused."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler

from fsl_cli.datasets.features import Features
from fsl_cli.episodes import Task
from fsl_cli.errors import FslError

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(3, 5, (60, 4))
Y = np.array([f"class {i % 10}" for i in range(60)])


def write(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(str(row) for row in rows))
    return path


def lines(x: np.ndarray = X, y: np.ndarray = Y, separator: str = ",") -> list[str]:
    return [separator.join([name, *map(repr, row.tolist())]) for name, row in zip(y, x, strict=True)]


def values(data: Features) -> dict[str, np.ndarray]:
    """The rows of each class of all splits."""
    found = {}
    for split in ("train", "val", "test"):
        images = data.split(split)  # type: ignore[arg-type]
        np.testing.assert_array_equal(images.counts, data.counts(split))  # type: ignore[arg-type]
        parts = np.split(images.images.numpy(), np.cumsum(images.counts)[:-1])
        found |= dict(zip(images.names, parts, strict=True))
    return found


def parquet(path: Path, **columns: object) -> Path:
    """A Parquet file with these columns."""
    reason = "pyarrow is not installed"
    table = pytest.importorskip("pyarrow", reason=reason).table(columns)
    pytest.importorskip("pyarrow.parquet", reason=reason).write_table(table, path)
    return path


@pytest.mark.parametrize(
    "kind", ["npz", "npy", "npy and text", "csv", "no header", "tsv", "parquet", "parquet of vectors", "fixed-size vectors"]
)
def test_every_format_holds_the_same_classes(kind: str, tmp_path: Path):
    path, labels = tmp_path / "table.npz", None
    if kind == "npz":
        np.savez(path, x=X, y=Y)
    elif kind.startswith("npy"):
        np.save(path := tmp_path / "x.npy", X)
        labels = write(tmp_path / "y.txt", *Y, "")
        if kind == "npy":
            np.save(labels := tmp_path / "y.npy", Y)
    elif kind == "parquet":
        path = parquet(
            tmp_path / "x.parquet", a=X[:, 0], b=X[:, 1], target=Y, c=X[:, 2], d=X[:, 3], __index_level_0__=range(60)
        )
    elif kind == "parquet of vectors":
        path = parquet(tmp_path / "x.parquet", id=range(60), embedding=X.tolist(), label=Y, other=X[:, :2].tolist())
    elif kind == "fixed-size vectors":
        arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
        vectors = arrow.FixedSizeListArray.from_arrays(X.astype(np.float32).flatten(), 4)
        path = parquet(tmp_path / "x.parquet", anything=vectors, label=arrow.array(Y).dictionary_encode())
    elif kind == "csv":
        path = write(tmp_path / "table.csv", "name,a,b,c,d", *lines())
    elif kind == "no header":
        path = write(tmp_path / "letters.data", *lines())
    else:
        path = write(tmp_path / "table.tsv", "label\ta\tb\tc\td", *lines(separator="\t"))
    data = Features(path, labels=labels, standardize=False)
    assert data.example_shape == (4,)
    found = values(data)
    assert sorted(found) == sorted(set(Y))
    for name, rows in found.items():
        np.testing.assert_array_equal(rows, X[name == Y].astype(np.float32))


def test_the_training_classes_decide_the_scale(tmp_path: Path):
    np.savez(tmp_path / "x.npz", x=np.column_stack([X, np.full(60, 7.0)]), y=Y)  # the last feature is constant
    data = Features(tmp_path / "x.npz")
    training = list(data.split("train").names)
    assert len(training) == 6
    seen = np.isin(Y, training)
    expected = StandardScaler().fit(X[seen]).transform(X)
    for name, rows in values(data).items():
        np.testing.assert_allclose(rows[:, :4], expected[name == Y], atol=1e-5)
        assert (rows[:, 4] == 0).all()


def test_splits_come_from_a_column_a_file_or_fractions(tmp_path: Path):
    split = np.array([("train", "valid", "test")[i % 10 % 3] for i in range(60)])
    np.savez(tmp_path / "x.npz", embeddings=X, labels=Y, split=split)
    assert list(Features(tmp_path / "x.npz").split("val").names) == ["class 1", "class 4", "class 7"]
    names = write(tmp_path / "s.csv", "class,split", "class 0,train", "class 1,test", "class 2,val")
    seeded = Features(tmp_path / "x.npz", split_by="fractions")
    assert [len(seeded.split(each)) for each in ("train", "val", "test")] == [6, 2, 2]  # type: ignore[arg-type]
    by_file = Features(tmp_path / "x.npz", split_file=names)
    assert [list(by_file.split(each).names) for each in ("train", "val", "test")] == [["class 0"], ["class 2"], ["class 1"]]  # type: ignore[arg-type]
    np.savez(tmp_path / "y.npz", x=X, y=Y)
    drawn = {
        seed: [len(Features(tmp_path / "y.npz", split_seed=seed).split(each)) for each in ("train", "val", "test")]  # type: ignore[arg-type]
        for seed in (0, 1)
    }
    assert drawn == {0: [6, 2, 2], 1: [6, 2, 2]}


def test_a_class_in_two_splits_is_refused(tmp_path: Path):
    np.savez(tmp_path / "x.npz", x=X, y=Y, split=np.array(["train", "test"]).repeat(30))
    with pytest.raises(FslError, match=r"classes in more than one split: class 0, .* and 5 more \(a test needs classes that"):
        Features(tmp_path / "x.npz").split("train")


def test_missing_values_are_refused_or_filled_from_training_classes(tmp_path: Path):
    holes = X.copy()
    holes[[3, 17], 1] = np.nan
    holes[40, 2] = np.inf
    np.savez(tmp_path / "x.npz", x=holes, y=Y)
    with pytest.raises(FslError, match=r"values are missing or infinite in rows 4, 18, 41 \(complete or remove them, or set"):
        Features(tmp_path / "x.npz").split("train")
    data = Features(tmp_path / "x.npz", missing="mean", standardize=False)
    rows = np.isin(Y, list(data.split("train").names)) & np.isfinite(holes[:, 1])
    assert values(data)["class 3"][0, 1] == pytest.approx(holes[rows, 1].mean(), rel=1e-6)
    words = write(tmp_path / "x.csv", "label,a,b", "u,1,?", "v,2,NA", "w,,4")
    with pytest.raises(FslError, match="in rows 1, 2, 3"):
        Features(words).split("train")
    with pytest.raises(FslError, match="in rows 2"):
        Features(parquet(tmp_path / "x.parquet", a=[1, None, 3], label=["u", "v", "w"])).split("train")
    with pytest.raises(FslError, match="in rows 3"):
        Features(parquet(tmp_path / "x.parquet", x=[[1.0], [2.0], [None]], label=["u", "v", "w"])).split("train")


def test_episodes_have_the_rows_of_their_classes(tmp_path: Path):
    np.savez(tmp_path / "x.npz", x=X, y=np.arange(60) % 10)
    data = Features(tmp_path / "x.npz", standardize=False)
    episodes = data.sampler("train", Task(3, 2, 2), seed=0).batch(0, 5)
    assert episodes.support.x.shape == (5, 6, 4)
    names = np.array([int(name) for name in data.split("train").names])
    for task in range(5):
        for part in (episodes.support, episodes.query):
            for row, label in zip(part.x[task].numpy(), part.y[task].tolist(), strict=True):
                (index,) = np.flatnonzero((X.astype(np.float32) == row).all(1))
                assert index % 10 == names[episodes.classes[task, label]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", "a", "is no table that can be read (use .npz, "),
        ("x.csv", "a,b\n1,2\n3,4", "has no column of labels (it has a, b; expected one of label, class"),
        ("x.csv", "label,a\nu,1\nv,tall", "row 2 of the data: 'tall' in column a is not a number"),
        ("x.csv", "label,a\nu,1\nv,1,2", "row 3: has 3 values, and the first row has 2"),
        ("x.csv", "label,split\nu,train\nv,test", "has no columns of numbers"),
        ("x.csv", "label,a\nu,1\nv,2", "2 classes cannot be split into train, val and test"),
        ("x.csv", "", "is empty"),
        ("x.npz", "not a zip", "cannot be read"),
        ("x.parquet", "PAR1", "cannot be read"),
    ],
)
def test_errors_are_one_line(name: str, content: str, message: str, tmp_path: Path):
    with pytest.raises(FslError) as error:
        Features(write(tmp_path / name, content)).split("train")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": [1.0], "label": ["u"], "b": ["tall"]}, "column b has string, not numbers"),
        ({"x": [[1.0], [1.0, 2.0], None], "label": ["u", "v", "w"]}, "another length than the first in rows 2, 3"),
        ({"x": [["tall"]], "label": ["u"]}, "not vectors of numbers"),
        ({"x": [[1.0]], "y": [None]}, "has no y in rows 1"),
        ({"one": [[1.0]], "two": [[1.0]], "y": [0]}, "has no column of features (it has one, two; expected one of x, "),
        ({"x": [[1.0]]}, "has no column of labels (it has x; expected"),
        ({"label": ["u"], "split": ["train"]}, "has no columns of numbers, nor one of vectors"),
    ],
)
def test_errors_of_parquet_are_one_line(columns: dict, message: str, tmp_path: Path):
    with pytest.raises(FslError) as error:
        Features(parquet(tmp_path / "x.parquet", **columns)).split("train")
    assert message in str(error.value)


def test_parquet_without_its_package_says_what_to_install(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as if it were not installed
    with pytest.raises(FslError, match=r"x.parquet: needs pyarrow, which cannot be imported: .* \(pip install pyarrow\)"):
        Features(write(tmp_path / "x.parquet", "")).split("train")


def test_labels_of_arrays_are_in_a_second_file_of_as_many_rows(tmp_path: Path):
    np.save(tmp_path / "x.npy", X)
    labels = write(tmp_path / "y.txt", "u", "v")
    for given, message in (
        ({}, "dataset.labels: x.npy has no labels, which are in another file"),
        ({"labels": labels, "label": "y"}, "dataset.label: x.npy has no labels, which are in another file"),
        ({"labels": labels}, "has features float64 [60, 4] and 2 labels"),
        ({"labels": tmp_path / "z.txt"}, "z.txt: there is no such file"),
        ({"labels": tmp_path / "x.npy"}, "x.npy: has the shape [60, 4] (expected one label for each row"),
    ):
        with pytest.raises(FslError) as error:
            Features(tmp_path / "x.npy", **given).split("train")  # type: ignore[arg-type]
        assert message in str(error.value)
    with pytest.raises(FslError, match=r"only a \.npy file has its labels in another file"):
        Features(write(tmp_path / "x.csv", *lines()), labels=labels).split("train")


def test_a_file_that_would_run_code_is_refused(tmp_path: Path):
    class Attack:
        def __reduce__(self):
            return Path.touch, (tmp_path / "attacked",)

    np.savez(tmp_path / "x.npz", x=np.array([Attack()], dtype=object), y=np.array([1]))
    assert pickle.dumps(Attack())
    np.save(tmp_path / "x.npy", np.array([Attack()], dtype=object))
    for attack in (Features(tmp_path / "x.npz"), Features(tmp_path / "x.npy", labels=tmp_path / "x.npy")):
        with pytest.raises(FslError, match="cannot be read: Object arrays cannot be loaded"):
            attack.split("train")
    assert not (tmp_path / "attacked").exists()
