"""W&B fails: its server vanishes, its service dies, it cannot start. A server on the loopback, killed when it hurts."""

from __future__ import annotations

import shlex
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import Outcome, Run, merged, shell
from wandb_server import WandbServer

from fsl_cli.results import wandb_run
from fsl_cli.results.files import read_json
from fsl_cli.results.wandb_run import WandbRun
from fsl_cli.training import Training


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[WandbServer]:
    """A server that W&B is going to use, in a fresh service with short times to wait."""
    import wandb

    server = WandbServer(tmp_path / "requests")
    wandb.teardown()  # W&B reads its environment once
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "0.5")
    monkeypatch.setattr(wandb_run, "_ARTIFACT", 0.5)
    yield server
    server.kill()
    wandb.teardown()


def service() -> Any:
    """The process of W&B's service."""
    import wandb

    return wandb.setup()._connection._proc._process


def start(folder: Path, mode: str = "online", **options: Any) -> WandbRun:
    values = {"project": "p", "entity": None, "group": None, "name": "n", "tags": [], **options}
    return WandbRun(folder, {"a": 1}, mode=mode, **values)


def train(
    fsl: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, at_iteration_3: Callable[[], object], *words: str
) -> Outcome:
    """A run in which something happens at iteration 3."""
    step = Training.step

    def disturbed(self: Training) -> None:
        if self.progress.iteration == 3:
            at_iteration_3()
        step(self)

    monkeypatch.setattr(Training, "step", disturbed)
    return fsl("train", *merged(("wandb.mode=online", *words, f"hydra.run.dir='{folder}'")))


def test_a_run_is_uploaded_with_flat_options(server, tmp_path):
    run = WandbRun(
        tmp_path,
        {"algo": {"name": "maml", "_target_": "x", "inner_lr": 0.4}, "task": {"ways": 5}},
        **{"mode": "online", "project": "p", "entity": None, "group": None, "name": "n", "tags": []},
    )
    run.log(1, {"a": 0.5})
    run.finish(0)
    assert server.config() == {"algo": "maml", "algo._target_": "x", "algo.inner_lr": 0.4, "task.ways": 5}
    ((_, line),) = server.history()
    assert (line["iteration"], line["a"]) == (1, 0.5)


@pytest.mark.parametrize("what", ["the service dies", "the server vanishes", "the server hangs"])
def test_what_happens_to_wandb_is_one_warning(fsl, server, tmp_path, monkeypatch, what):
    happens: dict[str, Callable[[], object]] = {
        "the service dies": lambda: service().kill(),
        "the server vanishes": server.kill,
        "the server hangs": server.stop,
    }
    seen: list[str] = []
    finish = WandbRun.finish

    def finishing(self: WandbRun, exit_code: int) -> None:
        seen.append((read_json(folder / "status.json") or {})["state"])
        began = time.monotonic()
        finish(self, exit_code)
        assert time.monotonic() - began < 12  # limits above: 3 seconds; the rest is for a busy machine

    monkeypatch.setattr(WandbRun, "finish", finishing)
    folder = tmp_path / "a run"
    outcome = train(fsl, folder, monkeypatch, happens[what])
    assert outcome.code == 0, outcome.err
    assert seen == ["done"]  # before W&B can hold anything up
    assert (folder / "results.json").is_file()
    (warning,) = [line for line in outcome.err.splitlines() if line.startswith("warning:")]
    assert warning.startswith("warning: W&B has failed (")
    *_, line = warning.partition(" with: ")
    (written,) = folder.glob("wandb/run-*")
    assert shlex.split(line) == ["wandb", "sync", str(written)]
    assert warning.removeprefix("warning: ") in (folder / "run.log").read_text()


def test_the_next_job_of_a_sweep_has_wandb_again(server, tmp_path):
    first = start(tmp_path / "0")
    service().kill()
    first.log(1, {"a": 1.0})
    time.sleep(0.2)  # until the socket is known to be closed
    first.log(2, {"a": 1.0})
    first.finish(0)
    second = start(tmp_path / "1")
    second.log(7, {"a": 0.25})
    second.finish(0)
    assert [line["iteration"] for line in server.history()[-1][1:]] == [7]


def test_auto_goes_offline_under_the_id_of_the_run(server, tmp_path):
    server.kill()
    run = start(tmp_path, "auto", run_id="theid123", goes_on=True)
    run.finish(0)
    assert run.id == "theid123"
    assert run.where.startswith("offline (")
    (written,) = tmp_path.glob("wandb/*run-*")  # nothing of the start that failed
    assert shlex.split(run.sync_command) == ["wandb", "sync", str(written)]


def test_online_that_cannot_start_leaves_the_folder_free(fsl, server, tmp_path):
    server.kill()
    folder = tmp_path / "run"
    words = merged(("wandb.mode=online", f"hydra.run.dir={folder}"))
    outcome = fsl("train", *words)
    assert outcome.code == 2
    (line,) = outcome.err.splitlines()
    assert line.startswith("error: wandb.mode: W&B cannot start online: ")
    assert not folder.exists()
    outcome = fsl("train", *merged(("wandb.mode=disabled", f"hydra.run.dir={folder}")))
    assert outcome.code == 0, outcome.err


def test_a_service_that_hangs_is_not_waited_for_again(server, tmp_path, monkeypatch):
    run = start(tmp_path)
    process = service()
    process.send_signal(signal.SIGSTOP)
    try:
        monkeypatch.setattr(run, "_patience", 0.3)
        began = time.monotonic()
        run.finish(0)
        run.log(1, {"a": 1.0})
        run.finish(0)
        assert time.monotonic() - began < 12  # without the limit it would never end
    finally:
        process.kill()


def test_an_upload_of_both_parts_of_a_run_has_every_metric(server, tmp_path):
    folder = tmp_path / "a run"
    folder.mkdir()
    first = start(folder, "offline", run_id="theid123")
    for iteration in (1, 2, 3):
        first.log(iteration, {"a": float(iteration)})
    first.finish(1)
    time.sleep(1.1)  # W&B names folders by the second: in the same one the second part would replace the first
    second = start(folder, "offline", run_id="theid123", goes_on=True)  # from iteration 2
    second.replay([{"iteration": 1, "a": 1.0}, {"iteration": 2, "a": 2.0}])
    second.log(3, {"a": 30.0})
    command = second.sync_command
    second.finish(0)
    done = shell("sh", "-c", command, cwd=tmp_path, **server.environment, WANDB_SERVICE="")
    assert done.returncode == 0, done.stderr
    assert [row["a"] for row in server.history()[-1][1:]] == [1.0, 2.0, 30.0]  # from line 0 on: it replaces the first part
    assert server.history()[-1][0] == {"offset": 0}
