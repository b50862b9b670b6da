"""Files of texts with labels: what is read from each kind, and what is refused."""

from __future__ import annotations

import csv
import json
import zipfile
from pathlib import Path

import pytest

from fsl_cli.datasets.text_files import read_texts
from fsl_cli.errors import FslError

TEXTS = ["fly me to Köln, please", 'she said "no"', "two\nlines", "play\ta song", "0"]
LABELS = ["flight", "talk", "talk", "music", "7"]


def write(path: Path, kind: str) -> Path:
    """A file of `TEXTS` and `LABELS`."""
    file = path / f"intents.{kind.split()[0]}"
    objects = [{"id": 1, "utterance": text, "intent": label} for text, label in zip(TEXTS, LABELS, strict=True)]
    pairs = [list(each) for each in zip(TEXTS, LABELS, strict=True)]
    if kind in ("csv", "tsv"):
        with file.open("w", encoding="utf-8-sig", newline="") as opened:
            writer = csv.writer(opened, delimiter="\t" if kind == "tsv" else ",")
            writer.writerows([["label", "text"], *([label, text] for text, label in pairs)])
    elif kind == "parquet":
        reason = "pyarrow is not installed"
        table = pytest.importorskip("pyarrow", reason=reason).table({"text": TEXTS, "label": LABELS})
        pytest.importorskip("pyarrow.parquet", reason=reason).write_table(table, file)
    elif kind == "json of CLINC150":
        content = {"oos_val": [["what is this", "oos"]], "val": pairs[3:], "train": pairs[:1], "test": pairs[1:3]}
        file.write_text(json.dumps({**content, "oos_train": []}))
    elif kind == "json list":
        file.write_text(json.dumps(pairs[:2] + objects[2:]))
    elif kind == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("clinc150/LICENSE", "free")
            archive.writestr("__MACOSX/clinc150/._data.json", "x")
            archive.writestr("clinc150/data.json", json.dumps({"train": pairs}))
    else:  # lines
        file.write_text("\n".join(json.dumps(each) for each in objects) + "\n\n")
    return file


KINDS = ["csv", "tsv", "parquet", "json of CLINC150", "json list", "json lines", "jsonl", "ndjson", "zip"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_holds_the_same_texts(kind: str, tmp_path: Path):
    table = read_texts(write(tmp_path, kind))
    assert sorted(zip(table.texts, table.labels, strict=True)) == sorted(zip(TEXTS, LABELS, strict=True))
    assert table.splits is None


def test_columns_are_named_and_the_split_is_kept(tmp_path: Path):
    (tmp_path / "x.csv").write_text("text;title;topic;split\na;b;c;train\nd;e;f;test\n")
    table = read_texts(tmp_path / "x.csv", text="title", label="topic")
    assert (table.texts, table.labels, table.splits) == (["b", "e"], ["c", "f"], ["train", "test"])
    (tmp_path / "x.jsonl").write_text('{"text": "a", "label": 3, "split": "val"}')
    assert read_texts(tmp_path / "x.jsonl") == type(table)(["a"], ["3"], ["val"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.docx", "a", "is no file of texts that can be read (use .csv, "),
        ("x.csv", "a,b\nc,d", "has no column text (its columns are a, b; accepted: text, sentence, "),
        ("x.csv", "text,label\na, b,c\n", "line 2: has another number of values than the 2 columns"),
        ("x.csv", 'text,label\n"a,b\n', "cannot be read: "),
        ("x.csv", "text,label\n,b\nc,\n", "has no text in rows 1"),
        ("x.csv", "text,label\nc,\n", "has no label in rows 1"),
        ("x.csv", "text,label\n", "is empty"),
        ("x.csv", b"text,label\n\xff,b\n", "cannot be read: 'utf-8' codec"),
        ("x.jsonl", '["a", "b"]\n{"text"', "line 2: is no JSON"),
        ("x.jsonl", '["a", "b", "c"]', "item 1 is no text with a label"),
        ("x.jsonl", '{"text": "a"}', "has no column label (its columns are text; accepted: label, "),
        ("x.jsonl", '{"text": "a", "label": "b", "split": "train"}\n["c", "d"]', "has no split in rows 2"),
        ("x.json", "3", "is no list of texts"),
        ("x.zip", "a", "not a whole zip file"),
    ],
)
def test_errors_are_one_line(name: str, content: str | bytes, message: str, tmp_path: Path):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FslError) as error:
        read_texts(tmp_path / name)
    assert message in str(error.value)


def test_a_zip_file_has_one_file_of_texts_of_a_reasonable_size(tmp_path: Path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.csv", "text,label\na,b\n")
        archive.writestr("b.csv", "text,label\na,b\n")
    with pytest.raises(FslError, match="has 2 files of texts"):
        read_texts(tmp_path / "x.zip")
    monkeypatch.setattr("fsl_cli.datasets.text_files._LARGEST", 50)
    with pytest.raises(FslError, match="has a file of more than 1 GiB"):
        read_texts(write(tmp_path, "zip"))
