"""Run folders of earlier versions are opened, continued and tested; `tests/fixtures/README.md` says what they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from command_line import metrics, results

FIXTURES = Path(__file__).parents[1] / "fixtures"
TRAINED = (
    *("algo=maml", "algo.train_queries=2", "backbone.filters=4", "dataset=glyphs", "dataset.size=16", "dataset.drawings=6"),
    *("task.queries=3", "train.meta_batch=2", "train.log_every=1", "train.val_every=2", "train.val_episodes=4"),
    *("eval.episodes=10", "wandb.mode=disabled", "hardware.threads=1"),
)


@pytest.fixture
def old(tmp_path) -> Path:
    """A copy of a run folder written by version 0.1.0."""
    return Path(shutil.copytree(FIXTURES / "run_0.1.0", tmp_path / "run"))


def same_numbers(mine: dict, theirs: dict) -> bool:
    """Equal up to rounding: other CPUs add in another order."""
    numbers = {key: value for key, value in theirs.items() if not isinstance(value, str)}
    return all(mine[key] == pytest.approx(value, rel=1e-4) for key, value in numbers.items())


def test_it_is_evaluated_again(fsl, old, tmp_path):
    outcome = fsl("eval", f"run={old}", f"hydra.run.dir={tmp_path / 'again'}", "hardware.threads=1")
    assert outcome.code == 0, outcome.err
    before, after = results(old), results(tmp_path / "again")
    assert same_numbers(after["accuracy"], before["accuracy"])
    assert same_numbers(after["loss"], before["loss"])
    assert after["episodes_digest"] == before["episodes_digest"]
    assert {
        key: after[key] for key in ("algo", "dataset", "parameters", "checkpoint", "iteration", "transductive", "task")
    } == {key: before[key] for key in ("algo", "dataset", "parameters", "checkpoint", "iteration", "transductive", "task")}


def test_it_is_evaluated_on_another_task(fsl, old, tmp_path):
    outcome = fsl("eval", f"run={old}", f"hydra.run.dir={tmp_path / 'again'}", "task.ways=3")
    assert outcome.code == 0, outcome.err
    expected = json.loads((FIXTURES / "run_0.1.0_3way.json").read_text())
    assert same_numbers(results(tmp_path / "again")["accuracy"], expected["accuracy"])


def test_it_resumes_like_a_current_run(fsl, old):
    outcome = fsl("train", *TRAINED, "train.iterations=6", f"hydra.run.dir={old}", "resume=auto")
    assert outcome.code == 0, outcome.err
    expected = [json.loads(line) for line in (FIXTURES / "run_0.1.0_continued.jsonl").read_text().splitlines()]
    expected = [{key: value for key, value in line.items() if "second" not in key} for line in expected]
    assert len(metrics(old)) == len(expected) == 9
    assert all(same_numbers(mine, theirs) for mine, theirs in zip(metrics(old), expected, strict=True))


def test_an_option_it_did_not_have_counts_as_its_default(fsl, old):
    options = ("backbone.negative_slope=0.1", "train.iterations=6", f"hydra.run.dir={old}", "resume=auto")
    outcome = fsl("train", *TRAINED, *options)
    assert outcome.code == 2
    assert "backbone.negative_slope was 0.0, now 0.1 (" in outcome.err


def test_it_appears_in_tables(old, tmp_path):
    from fsl_cli.results import tables

    row = tables.row(old, "old")
    assert (row["algo"], row["dataset"], row["ways"], row["state"]) == ("maml", "glyphs", "5", "done")
    assert row["accuracy %"] == "33.33"
