"""W&B of a run that goes on, and of runs whose calls leave to the environment what W&B should know."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from command_line import Run, merged
from wandb_file import WandbFile, read_wandb

from fsl_cli.results.tracking import read_metrics
from fsl_cli.training import Training


def written(folder: Path) -> list[Path]:
    """What W&B has written, oldest first."""
    return sorted(folder.rglob("*.wandb"))


def logged(run: WandbFile) -> list[dict[str, Any]]:
    """The metrics of a run without W&B's own, test and picture."""
    rows = [{key: value for key, value in row.items() if not key.startswith("_")} for row in run.history]
    return [row for row in rows if any(key.startswith(("train/", "val/accuracy")) for key in row)]


def sync_line(out: str) -> list[str]:
    (line,) = [line for line in out.splitlines() if line.startswith("W&B ")]
    return shlex.split(line.partition("upload with: ")[2])


def test_a_run_that_goes_on_offline_has_its_first_part_again(fsl: Run, tmp_path, monkeypatch):
    folder = tmp_path / "a run"
    words = merged(("wandb.mode=offline", "train.iterations=6", "resume=auto", f"hydra.run.dir='{folder}'"))
    step = Training.step

    def interrupted(self: Training) -> None:
        if self.progress.iteration == 5:
            raise KeyboardInterrupt
        step(self)

    monkeypatch.setattr(Training, "step", interrupted)
    assert fsl("train", *words).code == 130
    (first,) = written(folder)
    monkeypatch.setattr(Training, "step", step)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))  # the first part is in the run folder
    (tmp_path / "elsewhere").mkdir()
    outcome = fsl("train", *words)
    assert outcome.code == 0, outcome.err
    (second,) = written(tmp_path / "elsewhere")
    assert sync_line(outcome.out) == ["wandb", "sync", str(first.parent), str(second.parent)]
    one, other = read_wandb(first), read_wandb(second)
    assert one.run_id == other.run_id
    assert logged(other) == read_metrics(folder / "metrics.jsonl")
    assert logged(one) == logged(other)[: len(logged(one))]
    assert [row["iteration"] for row in logged(other) if "train/loss" in row] == [1, 2, 3, 4, 5, 6]
    assert (one.exit_code, other.exit_code) == (1, 0)


def test_the_environment_fills_what_a_call_leaves_open(fsl: Run, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    given = {"PROJECT": "theirs", "NAME": "named", "TAGS": "a,b c", "RUN_GROUP": "grouped", "DIR": str(elsewhere)}
    for name, value in given.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    words = merged(("wandb.mode=offline", "train.iterations=1", "eval.episodes=0"))
    assert fsl("train", *words, f"hydra.run.dir={tmp_path / 'run'}").code == 0
    assert not (tmp_path / "run" / "wandb").exists()
    (path,) = written(elsewhere)
    run = read_wandb(path)
    assert (run.project, run.name, run.tags, run.group) == ("theirs", "named", ["a", "b c"], "grouped")
    monkeypatch.delenv("WANDB_DIR")
    explicit = ("wandb.project=p", "wandb.name=n", "wandb.tags=[t]", "wandb.group=g")
    assert fsl("train", *words, *explicit, f"hydra.run.dir={tmp_path / 'other'}").code == 0
    run = read_wandb(tmp_path / "other")
    assert (run.project, run.name, run.tags, run.group) == ("p", "n", ["t"], "g")


@pytest.mark.parametrize(
    ("flags", "ids", "names"),
    [
        ((), ["mine"], ["tried"]),
        (("-m", "seed=0,1"), ["mine-0", "mine-1"], ["tried, job 0", "tried, job 1"]),
    ],
)
def test_jobs_of_a_sweep_do_not_share_the_id_and_name_of_the_environment(fsl: Run, tmp_path, monkeypatch, flags, ids, names):
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    monkeypatch.setenv("WANDB_NAME", "tried")
    words = merged(("wandb.mode=offline", "train.iterations=1", "eval.episodes=0"))
    assert fsl("train", *flags, *words).code == 0
    runs = [read_wandb(path) for path in written(tmp_path)]
    assert [run.run_id for run in runs] == ids
    assert [run.name for run in runs] == names


def test_an_algorithm_that_a_sweep_of_wandb_chooses_keeps_its_options(fsl: Run, tmp_path, monkeypatch):
    """W&B's agents put what they choose over the configuration, under the keys of the command line."""
    import wandb

    chosen = tmp_path / "chosen.yaml"
    chosen.write_text("wandb_version: 1\nalgo: {value: protonet}\ntask.ways: {value: 3}\n")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(chosen))
    wandb.teardown()  # W&B reads its environment once
    words = merged(("wandb.mode=offline", "train.iterations=1", "eval.episodes=0", "algo=protonet", "task.ways=3"))
    assert fsl("train", *words, f"hydra.run.dir={tmp_path / 'run'}").code == 0
    wandb.teardown()
    config = read_wandb(tmp_path / "run").config
    assert (config["algo"], config["task.ways"]) == ("protonet", 3)
    assert config["algo._target_"] == "fsl_cli.algos.protonet.ProtoNet"
