"""`fsl train`: the files of a run, reproducibility, and interruption at any point."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shlex
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import composed, merged, metrics, results
from scipy import stats

from fsl_cli.errors import FslError
from fsl_cli.results.run_folder import RunFolder
from fsl_cli.settings.conf_files import choices

FILES = {
    "config.yaml",
    "env.json",
    "run.log",
    "metrics.jsonl",
    "results.json",
    "episodes.npz",
    "status.json",
    "checkpoints/best.pt",
    "checkpoints/last.pt",
}


def files(folder: Path) -> set[str]:
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if not name.startswith("wandb/")}


def options_of(algo: str) -> set[str]:
    return set(composed(f"algo={algo}")["algo"])


def weights(folder: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / f"{name}.pt", weights_only=True)["algo"]


def same_run(one: Path, other: Path) -> None:
    assert metrics(one) == metrics(other)
    for name in ("best", "last"):
        ours, theirs = weights(one, name), weights(other, name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert results(one) == results(other)


TRANSDUCTIVE = {
    *("maml", "fomaml", "anil", "boil", "metasgd", "mamlpp", "reptile", "imaml", "proto_maml", "meta_lstm"),
    "finetune",
}
SEQUENCES = {"ntm", "mann", "dnc"}  # which report the accuracy by instance too


@pytest.mark.parametrize("algo", choices("algo"))
def test_a_run_leaves_exactly_its_files_and_an_accuracy_with_its_interval(fsl, tmp_path, algo):
    folder, extra = tmp_path / "run", ["algo.train_ways=8"] if "train_ways" in options_of(algo) else []
    outcome = fsl("train", *merged((f"algo={algo}", *extra)), f"hydra.run.dir={folder}")
    assert outcome.code == 0, outcome.err
    assert files(folder) == FILES | ({"curves.png"} if algo in SEQUENCES else set())
    found, scores = results(folder), np.load(folder / "episodes.npz")
    assert (found["algo"], found["dataset"], found["seed"], found["split"]) == (algo, "glyphs", 0, "test")
    assert found["task"] == {"ways": 5, "shots": 1, "queries": 2}
    assert found["transductive"] is (algo in TRANSDUCTIVE)
    by_instance = found.get("curves", {}).get("instance", [])
    assert [point["at"] for point in by_instance] == ([1, 2, 3] if algo in SEQUENCES else [])
    assert all(point["n"] == 12 for point in by_instance)
    accuracy = found["accuracy"]
    low, high = stats.t.interval(0.95, 11, scores["accuracy"].mean(), stats.sem(scores["accuracy"]))
    assert accuracy["n"] == 12 == len(scores["accuracy"])
    assert accuracy["method"] == "t"
    assert accuracy["mean"] == pytest.approx((low + high) / 2)
    assert accuracy["ci95"] == pytest.approx((high - low) / 2)
    assert re.fullmatch(r"[0-9a-f]{64}", found["episodes_digest"])
    expected = f"test  12 episodes  accuracy {100 * accuracy['mean']:.2f} ± {100 * accuracy['ci95']:.2f} % (95% CI, t)"
    assert expected in outcome.out.splitlines()
    assert json.loads((folder / "status.json").read_text())["state"] == "done"
    header = next(line for line in outcome.out.splitlines() if "parameters" in line)
    for part in (algo, "glyphs", "5-way 1-shot", "mlp", f"{found['parameters']:,} parameters", "cpu", "seed 0"):
        assert part in header
    assert ("(transductive)" if algo in TRANSDUCTIVE else "(inductive)") in header
    assert str(folder) in outcome.out
    environment = json.loads((folder / "env.json").read_text())
    assert environment["packages"]["torch"] == importlib.metadata.version("torch")
    assert "fsl train" in environment["command"]


def test_the_same_seed_gives_the_same_run_and_another_does_not(small):
    one, two, other = small("one"), small("two"), small("other", "seed=1")
    same_run(one, two)
    assert metrics(one) != metrics(other)
    assert results(one)["episodes_digest"] == results(other)["episodes_digest"]


def test_the_test_split_is_not_touched_before_training_is_over(small, monkeypatch):
    from fsl_cli.datasets.glyphs import Glyphs
    from fsl_cli.training import Training

    events = []
    split, step = Glyphs.split, Training.step
    monkeypatch.setattr(Glyphs, "split", lambda self, name: events.append(name) or split(self, name))
    monkeypatch.setattr(Training, "step", lambda self: events.append("step") or step(self))
    small("run")
    assert events.count("test") == 1
    assert events.index("test") == len(events) - 1
    assert events.count("step") == 6
    assert set(events) == {"train", "val", "step", "test"}


def test_the_tested_checkpoint_is_the_best_by_validation(small):
    folder = small("run", "train.iterations=8")
    validated = {line["iteration"]: line["val/accuracy"] for line in metrics(folder) if "val/accuracy" in line}
    best = max(validated, key=lambda iteration: (validated[iteration], -iteration))
    assert results(folder)["iteration"] == best
    assert results(folder)["checkpoint"] == "best"
    assert torch.load(folder / "checkpoints/best.pt", weights_only=True)["progress"]["iteration"] == best


def test_a_validation_that_only_equals_the_best_is_not_called_the_best(fsl, tmp_path):
    still = ("train.optimizer.lr=0", "backbone.batch_norm=false")
    out = fsl("train", *merged(("algo=protonet", *still, f"hydra.run.dir={tmp_path / 'run'}"))).out
    assert [line.endswith("best so far") for line in out.splitlines() if line.startswith("val ")] == [True, False, False]


def test_killed_without_warning_it_resumes_bit_identically(small, warm, fsl, tmp_path):
    whole = small("whole", "train.iterations=40", "train.log_every=3", "train.val_every=4")
    folder = tmp_path / "killed"
    words = merged(("train.iterations=40", "train.log_every=3", "train.val_every=4", f"hydra.run.dir={folder}", "resume=auto"))
    process = warm.start("train", *words, cwd=tmp_path, log=tmp_path / "log")
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints/last.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (folder / "results.json").exists(), "it finished before it could be killed"
    finished = fsl("train", *words)
    assert finished.code == 0, finished.err
    assert "resume" in finished.out
    same_run(whole, folder)


def test_interrupted_it_saves_and_says_how_to_go_on(small, fsl, tmp_path, monkeypatch):
    from fsl_cli.training import Training

    whole = small("whole", "train.log_every=2")
    step = Training.step

    def interrupted(self):
        if self.progress.iteration == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        step(self)

    folder = tmp_path / "stopped"
    monkeypatch.setattr(Training, "step", interrupted)
    outcome = fsl("train", *merged(("train.log_every=2", f"hydra.run.dir={folder}")))
    monkeypatch.setattr(Training, "step", step)
    assert outcome.code == 143
    assert "resume=" in outcome.err
    assert json.loads((folder / "status.json").read_text()) == {"state": "interrupted", "iteration": 4, "exit_code": 143}
    assert not (folder / "results.json").exists()
    outcome = fsl("train", *merged(("train.log_every=2", f"hydra.run.dir={folder}", "resume=auto")))
    assert outcome.code == 0, outcome.err
    same_run(whole, folder)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the log."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.*")) if path.name != "run.log"}


def test_a_finished_run_that_goes_on_keeps_its_results_until_there_are_new_ones(small, fsl, monkeypatch):
    from fsl_cli.results import tables
    from fsl_cli.results.records import records
    from fsl_cli.training import Training

    folder = small("run", "algo=mann", "eval.checkpoint=last", "train.iterations=4")
    kept = ("results.json", "episodes.npz", "curves.png")
    before = [(folder / name).read_bytes() for name in kept]
    step = Training.step

    def interrupted(self):
        if self.progress.iteration == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        step(self)

    monkeypatch.setattr(Training, "step", interrupted)
    words = merged(("algo=mann", "eval.checkpoint=last", "train.iterations=8", f"hydra.run.dir={folder}", "resume=auto"))
    assert fsl("train", *words).code != 0
    assert [(folder / name).read_bytes() for name in kept] == before
    assert tables.row(folder, "run")["state"].startswith("interrupted")  # what is there is not the result of the run
    assert tables.row(folder, "run")["accuracy %"] == ""
    status = json.loads((folder / "status.json").read_text())
    assert (status["earlier"]["state"], status["earlier"]["iteration"]) == ("done", 4)
    assert records([folder])[0]["state"] == "interrupted; results of an earlier end"
    monkeypatch.setattr(Training, "step", lambda self: os.kill(os.getpid(), signal.SIGTERM))
    assert fsl("train", *words).code != 0
    assert json.loads((folder / "status.json").read_text())["earlier"] == status["earlier"]
    monkeypatch.setattr(Training, "step", step)
    assert fsl("train", *words).code == 0
    assert [(folder / name).read_bytes() for name in kept] != before
    assert "earlier" not in json.loads((folder / "status.json").read_text())
    same_run(folder, small("whole", "algo=mann", "eval.checkpoint=last", "train.iterations=8"))


@pytest.mark.parametrize("error", [RuntimeError("out of luck"), FslError("no data"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("place", ["experiment.start_wandb", "meta_test.evaluate"])
def test_a_finished_run_given_again_keeps_everything_when_that_fails(small, fsl, monkeypatch, error, place):
    folder = small("run", "algo=mann")
    before = contents(folder)

    def fails(*arguments, **options):
        raise error

    monkeypatch.setattr(f"fsl_cli.run.{place}", fails)
    outcome = fsl("train", *merged(("algo=mann", "eval.episodes=13", f"hydra.run.dir={folder}", "resume=auto")))
    assert outcome.code != 0
    after = contents(folder)
    status, earlier = (json.loads(each.pop("status.json")) for each in (after, before))
    assert after == before
    assert status.pop("refused")["exit_code"] == outcome.code
    assert status == earlier
    assert earlier["state"] == "done"


@pytest.mark.parametrize("lost", ["last.pt", "config.yaml"])
@pytest.mark.parametrize("other", [(), ("algo=maml",)], ids=["same", "other"])
def test_auto_does_not_begin_again_over_a_finished_run(small, fsl, lost, other):
    own = ("algo=protonet", "algo.train_ways=5")
    folder = small("run", *own)
    (folder / "checkpoints/last.pt").unlink()
    (folder / lost).unlink(missing_ok=True)
    before = contents(folder)
    outcome = fsl(
        "train", *merged((*(other or ("algo=protonet", "algo.train_ways=5")), f"hydra.run.dir={folder}", "resume=auto"))
    )
    assert outcome.code == 2
    assert "holds a finished run or test, and no checkpoints/last.pt to go on from" in outcome.err
    assert outcome.err.count("\n") == 1
    assert contents(folder) == before
    assert "already holds a run" in fsl("train", *merged((f"hydra.run.dir={folder}",))).err
    assert contents(folder) == before


def test_auto_does_not_begin_again_over_an_unfinished_run_of_another_method(small, fsl, monkeypatch):
    folder = small("run", "algo=protonet", "algo.train_ways=5")
    for name in ("results.json", "episodes.npz", "checkpoints/last.pt"):
        (folder / name).unlink()
    (folder / "status.json").write_text('{"state": "running"}')
    before = contents(folder)
    words = merged((f"hydra.run.dir={folder}", "resume=auto"))
    outcome = fsl("train", *words)
    assert outcome.code == 2
    assert "config.yaml: belongs to another configuration: algo._target_ was fsl_cli.algos.protonet.ProtoNet" in outcome.err
    assert contents(folder) == before
    (folder / "config.yaml").unlink()
    assert "holds a checkpoint of an unknown run" in fsl("train", *words).err
    same = small("same", "algo=protonet", "algo.train_ways=5")
    for path, content in before.items():
        (folder / path).write_bytes(content)
    small("run", "algo=protonet", "algo.train_ways=5", "resume=auto")  # killed before its first last.pt: it begins anew
    same_run(folder, same)


def test_auto_does_not_begin_over_a_test(small, fsl, tmp_path):
    run = small("run")
    assert fsl("eval", f"run={run}", f"hydra.run.dir={tmp_path / 'test'}").code == 0
    before = contents(tmp_path / "test")
    outcome = fsl("train", *merged((f"hydra.run.dir={tmp_path / 'test'}", "resume=auto")))
    assert outcome.code == 2
    assert contents(tmp_path / "test") == before


def test_resuming_from_another_folder_brings_its_history_along(small, fsl):
    whole = small("whole")
    half = small("half", "train.iterations=4")
    rest = small("rest", f"resume={half}")
    assert metrics(rest) == metrics(whole)
    assert all(torch.equal(value, weights(rest)[key]) for key, value in weights(whole).items())
    refused = fsl("train", *merged((f"resume={half}", "train.optimizer.lr=0.1", "algo.inner_lr=0.3")))
    assert refused.code == 2
    assert "algo.inner_lr was 0.4, now 0.3; train.optimizer.lr was 0.001, now 0.1" in refused.err


def test_a_finished_run_is_not_overwritten(small, fsl):
    folder = small("run")
    before = {name: (folder / name).read_bytes() for name in FILES}
    outcome = fsl("train", *merged((f"hydra.run.dir={folder}",)))
    assert outcome.code == 2
    assert "already holds a run" in outcome.err
    assert before == {name: (folder / name).read_bytes() for name in FILES}


def test_a_run_that_goes_on_from_another_does_not_overwrite_a_third(small, fsl, tmp_path):
    one, third = small("one", "train.iterations=4"), small("third", "seed=1")
    before = {path: path.read_bytes() for path in third.rglob("*") if path.is_file()}
    refused = fsl("train", *merged((f"resume={one}",)), f"hydra.run.dir={third}")
    assert refused.code == 2
    assert "already holds a run (go on with resume=auto, or choose another hydra.run.dir)" in refused.err
    assert {path: path.read_bytes() for path in third.rglob("*") if path.is_file()} == before


def test_a_folder_may_be_spelled_in_other_ways(small, fsl, tmp_path):
    half, whole = small("half", "train.iterations=4"), small("whole")
    (tmp_path / "link").symlink_to(half)
    words = merged((f"resume={tmp_path / 'link'}",))
    assert fsl("train", *words, f"hydra.run.dir={tmp_path / 'x' / '..' / 'half'}").code == 0
    same_run(half, whole)


def test_without_the_best_checkpoint_of_the_other_run_its_accuracy_does_not_count(small, tmp_path):
    one = small("one", "train.iterations=4")
    (one / "checkpoints/best.pt").unlink()
    rest = small("rest", f"resume={one}")
    assert (rest / "checkpoints/best.pt").is_file()
    assert results(rest)["iteration"] >= 4
    finished = small("finished", f"resume={one}", "train.iterations=4")  # it has nothing more to do than to validate
    assert results(finished)["iteration"] == 4


def test_auto_begins_again_where_a_run_has_ended_before_its_first_checkpoint(small, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").touch()
    same_run(small("whole"), small("run", "resume=auto"))


def test_auto_in_a_new_folder_names_the_command_that_goes_on(small, fsl, tmp_path):
    words = merged(("train.iterations=2", "seed=3", "resume=auto"))
    first = fsl("train", *words)
    assert first.code == 0, first.err
    assert first.err.startswith("warning: resume=auto finds nothing in a new folder; to be able to go on: fsl train ")
    small("outputs/train/other", "train.iterations=2", "seed=4")  # which is newer, and another run
    second = fsl("train", *words).err
    (run,) = [path.parent for path in sorted(tmp_path.glob("outputs/train/*/results.json"))[:1]]
    command = second.strip().partition("to go on with the newest run like this: ")[2]
    assert command.endswith(f" hydra.run.dir={run}")
    outcome = fsl(*shlex.split(command)[1:])
    assert (outcome.code, outcome.err) == (0, "")
    assert f"resume  {run / 'checkpoints/last.pt'}, iteration 2" in outcome.out
    assert fsl("train", *words, "hydra.run.dir=outputs/named").err == ""


def test_of_two_runs_in_one_folder_the_second_is_refused(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.claim()
    with pytest.raises(FslError, match="already holds a run"):
        RunFolder(tmp_path / "run").claim()


def test_early_stopping_stops(small):
    folder = small("run", "train.iterations=200", "train.val_every=1", "train.patience=2", "train.optimizer.lr=1e-9")
    assert 3 <= metrics(folder)[-1]["iteration"] < 200


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("algo", ["maml", "protonet"])
def test_conv4_trains_in_both_precisions(small, algo, precision):
    options = ["algo.train_ways=5"] if algo == "protonet" else []
    folder = small("run", f"algo={algo}", "backbone=conv4", "backbone.filters=8", f"hardware.precision={precision}", *options)
    assert 0 < results(folder)["accuracy"]["mean"] < 1
    assert all(value.dtype == torch.float32 for value in weights(folder).values())


def test_an_unexpected_failure_is_one_line_and_its_traceback_is_in_the_log(fsl, tmp_path, monkeypatch):
    from fsl_cli.training import Training

    def broken(self):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(Training, "step", broken)
    folder = tmp_path / "run"
    outcome = fsl("train", *merged((f"hydra.run.dir={folder}",)))
    assert outcome.code == 1
    assert outcome.err.count("\n") == 1
    assert "out of luck" in outcome.err
    assert "Traceback" in (folder / "run.log").read_text()
    assert json.loads((folder / "status.json").read_text())["state"] == "failed"


def test_memory_that_runs_out_is_one_warning(fsl, small, tmp_path, monkeypatch):
    from fsl_cli.algos.maml import MAML

    half, loss = small("half", "hardware.task_chunk=1"), MAML.loss

    def out_of_memory(self, episodes):
        if len(episodes) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return loss(self, episodes)

    monkeypatch.setattr(MAML, "loss", out_of_memory)
    outcome = fsl("train", *merged((f"hydra.run.dir={tmp_path / 'run'}",)))
    assert outcome.code == 0
    warning = "train: 2 episodes at once do not fit into the memory of cpu; going on with 1 (to start with that: hard"
    assert [line.startswith(f"warning: {warning}") for line in outcome.err.splitlines()] == [True]
    assert (tmp_path / "run" / "run.log").read_text().count(warning) == 1
    same_run(half, tmp_path / "run")
