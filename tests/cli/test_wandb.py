"""W&B: the file of an offline run has the same values as the run folder; runs work without a network."""

from __future__ import annotations

import json

import pytest
from command_line import merged, results
from wandb_file import read_wandb


def test_the_offline_file_says_what_the_folder_says(small):
    folder = small("run", "wandb.mode=offline", "wandb.project=mine", "wandb.group=ours")
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    run = read_wandb(path)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logged = [{key: value for key, value in row.items() if not key.startswith("_")} for row in run.history]
    for line in lines:
        assert any(line.items() <= row.items() for row in logged), line
    assert len(lines) >= 9
    assert all("iteration" in row for row in logged)
    accuracy = results(folder)["accuracy"]
    assert run.summary["test/accuracy_mean"] == accuracy["mean"]
    assert run.summary["test/accuracy_ci95"] == accuracy["ci95"]
    assert run.summary["test/accuracy_n"] == accuracy["n"]
    assert (run.project, run.group, run.exit_code) == ("mine", "ours", 0)
    assert run.name == "maml glyphs 5w1s seed 0"
    assert (run.config["algo"], run.config["algo.inner_lr"]) == ("maml", 0.4)
    assert (run.config["dataset"], run.config["task.ways"], run.config["wandb.project"]) == ("glyphs", 5, "mine")
    assert [name.split("-")[0] for name in run.artifacts].count("checkpoint") == 1
    (picture,) = [row["val/episode.path"] for row in logged if "val/episode.path" in row]
    assert (path.parent / "files" / picture).read_bytes().startswith(b"\x89PNG")


def test_auto_goes_offline_when_the_server_cannot_be_reached(fsl, tmp_path, monkeypatch):
    import wandb

    real = wandb.init

    def unreachable(**options):
        if options["mode"] == "online":
            raise wandb.errors.CommError("no connection")
        return real(**options)

    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(wandb, "init", unreachable)
    outcome = fsl("train", *merged(("wandb.mode=auto", f"hydra.run.dir={tmp_path / 'auto'}")))
    assert outcome.code == 0, outcome.err
    assert "W&B     offline (no connection), upload with: wandb sync" in outcome.out
    outcome = fsl("train", *merged(("wandb.mode=online", f"hydra.run.dir={tmp_path / 'online'}")))
    assert outcome.code == 2
    assert "wandb.mode: W&B cannot start online: no connection (use wandb.mode=offline)" in outcome.err


@pytest.mark.parametrize(("configured", "expected"), [("offline", "offline"), ("disabled", "disabled")])
def test_auto_follows_the_environment(fsl, tmp_path, monkeypatch, configured, expected):
    monkeypatch.setenv("WANDB_MODE", configured)
    outcome = fsl("train", *merged(("wandb.mode=auto", f"hydra.run.dir={tmp_path / 'run'}")))
    assert outcome.code == 0, outcome.err
    assert f"W&B     {expected}" in outcome.out
