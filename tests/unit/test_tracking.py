"""metrics.jsonl and W&B: an offline run's ``.wandb`` file is read back and holds the same numbers."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import composed
from problems import striped_classes
from wandb_file import WandbFile, find_wandb, read_wandb

from fsl_cli.algos.protonet import ProtoNet
from fsl_cli.backbones.mlp import MLP
from fsl_cli.compute.hardware import Hardware
from fsl_cli.datasets.dataset import ImageClasses
from fsl_cli.episodes import Task
from fsl_cli.errors import FslError
from fsl_cli.results.tracking import JsonLines, read_metrics
from fsl_cli.results.wandb_run import flat
from fsl_cli.run import experiment
from fsl_cli.run.lifecycle import lifecycle
from fsl_cli.run.parts import Parts
from fsl_cli.run.plan import Job
from fsl_cli.settings.resolve import validate

# --- metrics.jsonl


def logged(path: Path, *rows: tuple[int, dict[str, float]], upto: int = 0) -> None:
    lines = JsonLines(path, upto)
    for iteration, values in rows:
        lines.log(iteration, values)
    lines.finish()


def test_a_line_is_one_json_object(tmp_path):
    path = tmp_path / "metrics.jsonl"
    logged(path, (1, {"a": 0.1}), (2, {"b": 1 / 3, "c": 2}))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == read_metrics(path) == [{"iteration": 1, "a": 0.1}, {"iteration": 2, "b": 1 / 3, "c": 2}]


def test_a_line_is_written_at_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = JsonLines(path, 0)
    lines.log(1, {"a": 0.1})
    assert read_metrics(path) == [{"iteration": 1, "a": 0.1}]
    lines.finish()


def test_what_is_not_finite_is_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    logged(path, (1, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 0.5}))
    assert "NaN" not in path.read_text()
    assert read_metrics(path) == [{"iteration": 1, "a": None, "b": None, "c": None, "d": 0.5}]


@pytest.mark.parametrize("upto", [0, 4, 5, 6, 100])
def test_lines_after_the_point_of_resumption_are_dropped(tmp_path, upto):
    path = tmp_path / "metrics.jsonl"
    rows = [(5, {"a": 1.0}), (5, {"val": 0.5}), (6, {"a": 2.0}), (10, {"a": 3.0})]
    logged(path, *rows)
    logged(path, (7, {"a": 9.0}), upto=upto)
    kept = [{"iteration": iteration, **values} for iteration, values in rows if iteration <= upto]
    assert read_metrics(path) == [*kept, {"iteration": 7, "a": 9.0}]


def test_a_last_line_that_was_cut_off_is_left_out_and_the_next_run_goes_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    logged(path, (1, {"a": 1.0}), (2, {"a": 2.0}))
    whole = path.read_text()
    second = whole.index("\n") + 1
    for length in range(second, len(whole) - 1):
        path.write_text(whole[:length])
        assert read_metrics(path) == [{"iteration": 1, "a": 1.0}]
    logged(path, (2, {"a": 3.0}), upto=2)
    assert read_metrics(path) == [{"iteration": 1, "a": 1.0}, {"iteration": 2, "a": 3.0}]


def test_a_crash_while_dropping_lines_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    logged(path, (1, {"a": 1.0}), (2, {"a": 2.0}))

    def crash(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(KeyboardInterrupt):
        JsonLines(path, 1)
    assert [line["iteration"] for line in read_metrics(path)] == [1, 2]


def test_a_missing_metrics_file_has_no_lines(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


# --- a whole run, read back from W&B's own file


class Striped(ImageClasses):
    """A data set of three splits that needs no files."""

    name = "striped"
    image_shape = (1, 12, 12)

    def counts(self, split: str) -> Any:
        return self.split(split).counts

    def split(self, name: str) -> Any:
        return striped_classes(classes=8, seed=["train", "val", "test"].index(name))


def parts(settings: Any, **ignored: Any) -> Parts:
    torch.manual_seed(settings.seed)
    algorithm = ProtoNet(MLP((1, 12, 12), widths=[8]), train_ways=None, train_queries=None)
    task = Task(settings.task.ways, settings.task.shots, settings.task.queries)
    return Parts(Striped(), algorithm, Hardware(torch.device("cpu"), "fp32", 4), task, task)


WORDS = [
    *("algo=protonet", "task.ways=3", "task.queries=2", "train.iterations=7", "train.log_every=2", "train.val_every=3"),
    *("train.val_episodes=5", "eval.episodes=20", "wandb.project=mine", "wandb.tags=[one,two]", "wandb.mode=offline"),
]


def run(folder: Path, *words: str, group: str | None = None) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Train into ``folder``; returns the configuration, the results and the id of the W&B run."""
    config = composed(*WORDS, *words)
    sweep = folder.parent / group if group else None
    job = Job(validate(config), config, folder, "fsl train", words, sweep=sweep)
    with lifecycle(folder) as life:
        done = experiment.Experiment(job, life)
        return config, done.run().to_json(), str(done.wandb_id)


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    """Two jobs of a sweep in one process, with their folders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "assemble", parts)
        folder = tmp_path_factory.mktemp("sweep")
        return [
            (folder / "0", *run(folder / "0", "seed=0", group="sweep of two")),
            (folder / "1", *run(folder / "1", "seed=1", "wandb.name=mine", group="sweep of two")),
        ]


@pytest.fixture(scope="module")
def first(two_runs) -> tuple[Path, dict[str, Any], dict[str, Any], WandbFile]:
    folder, config, results, _ = two_runs[0]
    return folder, config, results, read_wandb(folder)


def without_its_own(row: dict[str, Any]) -> dict[str, Any]:
    """Metrics without the keys that W&B adds."""
    return {key: value for key, value in row.items() if not key.startswith("_")}


def test_wandb_has_the_numbers_of_metrics_jsonl(first):
    folder, _, results, run = first
    lines = read_metrics(folder / "metrics.jsonl")
    history = [without_its_own(row) for row in run.history]
    assert history[: len(lines)] == lines
    test, picture = history[len(lines) :]
    assert test == {"iteration": 7, "test/accuracy": results["accuracy"]["mean"]}
    assert picture["iteration"] == 7
    assert [line["iteration"] for line in lines] == [2, 3, 3, 4, 6, 6, 7, 7]
    assert {"train/loss", "train/accuracy", "train/lr", "val/accuracy", "val/loss"} <= {key for row in lines for key in row}


def test_metrics_share_one_axis(first):
    *_, run = first
    assert run.metrics == {"iteration": "", "*": "iteration"}
    assert list(run.column("val/accuracy")) == [3, 6, 7]


def test_summary_has_the_test_accuracy_and_its_interval(first):
    folder, _, results, run = first
    assert json.loads((folder / "results.json").read_text()) == results
    for name in ("accuracy", "loss"):
        for key in ("mean", "ci95", "n"):
            assert run.summary[f"test/{name}_{key}"] == results[name][key]
    assert results["accuracy"]["n"] == 20
    assert results["accuracy"]["ci95"] > 0


def test_configuration_group_name_and_end(first):
    _, config, _, run = first
    assert {key: value for key, value in run.config.items() if key != "_wandb"} == flat(config)
    assert (run.project, run.group, run.tags) == ("mine", "sweep of two", ["one", "two"])
    assert run.name == "protonet glyphs 3w1s seed 0"
    assert run.exit_code == 0


def test_the_best_checkpoint_is_an_artifact(first):
    _, _, results, run = first
    artifact = run.artifacts[f"checkpoint-{run.run_id}"]
    assert artifact["type"] == "model"
    assert "best" in artifact["aliases"]
    expected = {"test_accuracy": results["accuracy"]["mean"], "ways": 3, "shots": 1, "queries": 2}
    assert artifact["metadata"] == expected


def test_there_is_a_picture_of_an_episode(first):
    folder, *_, run = first
    (path,) = [row["val/episode.path"] for row in run.history if "val/episode.path" in row]
    assert (find_wandb(folder).parent / "files" / path).read_bytes().startswith(b"\x89PNG")


def test_the_next_job_is_another_run_of_the_same_group(two_runs):
    (folder, config, _, identity), (other_folder, other_config, other_results, other_identity) = two_runs
    one, other = read_wandb(folder), read_wandb(other_folder)
    assert (one.run_id, other.run_id) == (identity, other_identity)
    assert identity != other_identity
    assert one.group == other.group == "sweep of two"
    assert (one.config["seed"], other.config["seed"]) == (0, 1)
    assert other.name == "mine"
    assert len(one.history) == len(other.history)
    assert one.column("train/loss") != other.column("train/loss")
    assert other.summary["test/accuracy_mean"] == other_results["accuracy"]["mean"]
    assert (config["seed"], other_config["seed"]) == (0, 1)


def test_a_run_that_fails_is_closed_as_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "assemble", parts)
    loss = ProtoNet.loss

    def diverged(self: ProtoNet, episodes: Any) -> Any:
        step = loss(self, episodes)
        return dataclasses.replace(step, loss=step.loss * math.nan)

    monkeypatch.setattr(ProtoNet, "loss", diverged)
    with pytest.raises(FslError, match="the loss is nan at iteration 2"):
        run(tmp_path)
    content = read_wandb(tmp_path)
    assert content.exit_code == 1
    assert "test/accuracy_mean" not in content.summary


def test_disabled_works_and_leaves_nothing_of_wandb(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "assemble", parts)
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it fails: it takes a start of a run a quarter of a second
    _, results, _ = run(tmp_path, "wandb.mode=disabled")
    assert results["accuracy"]["n"] == 20
    assert not (tmp_path / "wandb").exists()
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 8


def test_a_damaged_file_is_detected(first):
    """Tests the file reader that the other tests use."""
    folder, *_ = first
    log = bytearray(find_wandb(folder).read_bytes())
    log[len(log) // 2] ^= 1
    from wandb_file import records

    with pytest.raises(AssertionError, match=r"checksum|cut off|kind"):
        list(records(bytes(log)))
