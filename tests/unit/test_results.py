"""Results are read back as written, including those of version 0.1.0."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from fsl_cli.errors import FslError
from fsl_cli.results import tables
from fsl_cli.results.results import VERSION, CurvePoint, Results, read_results
from fsl_cli.results.run_folder import RunFolder
from fsl_cli.statistics.intervals import MeanInterval
from fsl_cli.statistics.scores import ACCURACY, MSE

OLD = Path(__file__).parent.parent / "fixtures" / "run_0.1.0" / "results.json"
REGRESSION = Results(
    algo="maml",
    dataset="sinusoid",
    backbone="mlp",
    parameters=1761,
    seed=0,
    split="test",
    checkpoint="best",
    iteration=600,
    transductive=True,
    task={"shots": 10, "queries": 100},
    headline=MSE,
    scores={"mse": MeanInterval(0.159, 0.0129, 1000, "t")},
    curves={
        "inner_steps": [
            CurvePoint(0, MeanInterval(3.2, 0.2, 1000, "t")),
            CurvePoint(10, MeanInterval(0.159, 0.0129, 1000, "t")),
        ]
    },
    episodes_seed=0,
    episodes_digest="abc",
)


def test_what_is_written_is_what_is_read():
    content = json.loads(json.dumps(REGRESSION.to_json()))
    assert (content["version"], content["headline"], content["scores"]["mse"]["mean"]) == (VERSION, "mse", 0.159)
    assert "accuracy" not in content
    assert Results.from_json(content) == REGRESSION
    assert read_results(OLD).folder == OLD.parent


def test_results_of_version_0_1_0_are_read():
    content = json.loads(OLD.read_text())
    results = read_results(OLD)
    assert results.headline == ACCURACY
    assert (results.score.mean, results.scores["loss"].as_dict()) == (content["accuracy"]["mean"], content["loss"])
    assert (results.task, results.curves) == (content["task"], {})
    written = results.to_json()
    assert written["accuracy"] == written["scores"]["accuracy"] == content["accuracy"]
    assert {key: written[key] for key in content} == content


def test_results_that_cannot_be_read_say_why(tmp_path):
    path = tmp_path / "results.json"
    assert read_results(path) is None
    for changed, reason in (
        ({"version": VERSION + 1}, "version"),
        ({"scores": {}}, "mse"),
        ({"task": None}, "NoneType"),
        ({"curves": [1]}, "list"),
    ):
        path.write_text(json.dumps(REGRESSION.to_json() | changed))
        with pytest.raises(FslError, match=reason):
            read_results(path)


def folder_with(path: Path, results: Results) -> Path:
    run = RunFolder(path)
    run.write_json(run.results, results.to_json())
    run.write_status("done")
    return path


def test_tables_have_a_column_for_each_headline_score(tmp_path):
    one = folder_with(tmp_path / "0", REGRESSION)
    other = folder_with(tmp_path / "1", read_results(OLD))
    rows = [tables.row(one, "0"), tables.row(other, "1")]
    assert (rows[0]["mse"], rows[0]["± 95% CI"], rows[0]["ways"], rows[1]["accuracy %"]) == ("0.1590", "0.0129", "", "33.33")
    assert "mse" in tables.named(tables.COLUMNS, rows[:1])
    assert "accuracy %" not in tables.named(tables.COLUMNS, rows[:1])
    assert [name for name in tables.named(tables.COLUMNS, rows) if name in ("mse", "accuracy %")] == ["accuracy %", "mse"]
    assert tables.named(tables.COLUMNS, rows[1:]) == tables.named(tables.COLUMNS, []) == tables.COLUMNS
    assert tables.report(rows, tmp_path / "t.md", tmp_path / "t.csv") == 0
    assert "| 0.1590 |" in (tmp_path / "t.md").read_text()


def test_the_best_come_first_whichever_way_is_better(tmp_path, monkeypatch):
    worse = dataclasses.replace(REGRESSION, scores={"mse": MeanInterval(3.0, 0.1, 1000, "t")})
    nowhere = dataclasses.replace(REGRESSION, scores={"mse": MeanInterval(float("nan"), float("nan"), 1000, "t")})
    each = {"a": worse, "nan": nowhere, "damaged": REGRESSION, "b": REGRESSION}
    folders = [folder_with(tmp_path / name, results) for name, results in each.items()]
    (tmp_path / "damaged" / "results.json").write_text('{"version": 2}')
    words = [word for folder in folders for word in ("--row", folder.name, str(folder))]
    files = ["--markdown", str(tmp_path / "t.md"), "--csv", str(tmp_path / "t.csv")]
    monkeypatch.setattr("sys.argv", ["tables", *words, *files, "--best-first"])
    assert tables.main() == 1
    lines = (tmp_path / "t.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["run", "b", "a", "nan", "damaged"]
    assert "failed: " in lines[-1]


@pytest.mark.parametrize("content", [b"", b"algo: [", b"\xff"])
def test_a_damaged_configuration_does_not_take_the_table_away(tmp_path, content):
    (tmp_path / "config.yaml").write_bytes(content)
    RunFolder(tmp_path).write_status("failed", error="the disk is full", task={"ways": 5})
    row = tables.row(tmp_path, "0")
    assert (row["algo"], row["ways"], row["state"]) == ("", "5", "failed: the disk is full")


@pytest.mark.parametrize(
    ("accuracy", "half", "loss", "expected"),
    [
        (0.2, 0.01, 2.3e9, True),
        (0.205, 0.01, 17.0, True),
        (0.3, 0.01, 2.3e9, True),
        (0.3, 0.01, 2.3e3, False),
        (0.2, 0.01, 1.61, False),
    ],
)
def test_a_huge_loss_and_a_large_one_at_chance_are_a_training_that_has_diverged(accuracy, half, loss, expected):
    scores = {"accuracy": MeanInterval(accuracy, half, 100, "t"), "loss": MeanInterval(loss, 0.1, 100, "t")}
    found = dataclasses.replace(REGRESSION, task={"ways": 5, "shots": 1, "queries": 15}, headline=ACCURACY, scores=scores)
    assert found.diverged is expected
    assert not REGRESSION.diverged
