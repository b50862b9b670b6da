"""Several processes, started by torchrun: same results as one, output from the first only, and no hanging process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import two_processes
from command_line import merged, metrics, results, shell
from warm import Warm

from fsl_cli.compute.processes import Processes

# Two chunks of two episodes: each process computes one of them, and their sum is the same in any order.
WORDS = ("algo=protonet", "algo.train_ways=8", "train.meta_batch=4", "hardware.task_chunk=2", "train.iterations=6")


def torchrun(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    launcher = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone")
    return shell(*launcher, *words, cwd=cwd, PYTHONPATH=path)


def both(warm: Warm, module: str, *words: str, cwd: Path) -> str:
    """Standard error and output of two forks connected like torchrun's processes, those of the first process first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    logs = [cwd / f"{rank}.log" for rank in (0, 1)]
    forks = [
        warm.start(*words, module=module, cwd=cwd, log=log, RANK=str(rank), LOCAL_RANK=str(rank), **common)
        for rank, log in enumerate(logs)
    ]
    for fork in forks:
        fork.wait()
    return "".join(log.read_text() for log in logs)


def weights(folder: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / f"{name}.pt", weights_only=True)["algo"]


def assert_same_run(one: Path, two: Path) -> None:
    """The same weights; running averages and test results up to rounding."""
    for mine, theirs in zip(metrics(one), metrics(two), strict=True):
        assert theirs == pytest.approx(mine, rel=1e-5)
    for name in ("best", "last"):
        ours, theirs = weights(one, name), weights(two, name)
        for key, value in ours.items():
            torch.testing.assert_close(theirs[key], value, rtol=1e-5, atol=1e-6 if "running" in key else 0)
    mine, theirs = results(one), results(two)
    assert theirs["accuracy"] == mine["accuracy"]
    assert theirs["loss"]["mean"] == pytest.approx(mine["loss"]["mean"], rel=1e-4)
    compared = {"accuracy": 0, "loss": 0, "scores": 0}  # the loss to rounding, and the accuracy above
    assert {**theirs, **compared} == {**mine, **compared}
    ours, others = np.load(one / "episodes.npz"), np.load(two / "episodes.npz")
    assert np.array_equal(ours["accuracy"], others["accuracy"])
    np.testing.assert_allclose(ours["loss"], others["loss"], rtol=1e-4)


def test_torchrun_gives_the_run_of_one_process(small, tmp_path):
    one, folder = small("one", *WORDS), tmp_path / "two"
    done = torchrun("-m", "fsl_cli", "train", *merged(WORDS), f"hydra.run.dir={folder}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same_run(one, folder)
    assert sorted(each.name for each in folder.iterdir()) == sorted(each.name for each in one.iterdir())
    assert done.stdout.count("seed 0") == 1
    assert "2 processes on cpu" in done.stdout
    assert done.stdout.strip().splitlines()[-1].startswith("test  12 episodes")
    assert (folder / "run.log").read_text().count("trained 6 iterations") == 1
    assert json.loads((folder / "env.json").read_text())["processes"] == 2


@pytest.fixture(scope="module")
def checked(warm, tmp_path_factory) -> tuple[Path, str]:
    """Runs everything in `two_processes` once."""
    folder = tmp_path_factory.mktemp("two")
    common = [*merged(WORDS)]
    half = ["train.iterations=4" if word.startswith("train.iterations=") else word for word in common]
    lines = [
        ["train", *half, f"hydra.run.dir={folder / 'run'}"],
        ["train", *common, f"hydra.run.dir={folder / 'run'}", "resume=auto"],
        ["eval", f"run={folder / 'run'}", f"hydra.run.dir={folder / 'eval'}", "eval.episodes=30"],
        ["train", *common, f"hydra.run.dir={folder / 'run'}"],
        ["eval", f"run={folder / 'run'}", f"hydra.run.dir={folder / 'eval'}"],
        ["train", *common, f"hydra.run.dir={folder / 'bad'}", "task.ways=5000"],
        ["train", "algo=protonetz"],
        ["train", "-m", *common, "seed=0,1"],
        ["train", *half, "hydra.run.dir=${now:%f}_${now:%H}"],
    ]
    (folder / "commands.json").write_text(json.dumps(lines))
    return folder, both(warm, "two_processes", str(folder), cwd=folder)


@pytest.mark.parametrize("name", [each.__name__ for each in two_processes.CHECKS])
def test_two_processes(checked, name):
    folder, said = checked
    for rank in (0, 1):
        failed = folder / f"{name}.{rank}.failed"
        assert not failed.exists(), failed.read_text()
        assert (folder / f"{name}.{rank}.passed").exists(), said


def test_resumed_and_tested_by_two_processes(checked, small, fsl):
    folder, _ = checked
    one = small("one", *WORDS)
    assert_same_run(one, folder / "run")
    outcome = fsl("eval", f"run={one}", f"hydra.run.dir={one.parent / 'eval'}", "eval.episodes=30")
    assert outcome.code == 0, outcome.err
    mine, theirs = np.load(one.parent / "eval" / "episodes.npz"), np.load(folder / "eval" / "episodes.npz")
    assert len(mine["accuracy"]) == 30
    assert np.array_equal(mine["accuracy"], theirs["accuracy"])
    np.testing.assert_allclose(mine["loss"], theirs["loss"], rtol=1e-4)


def test_errors_are_printed_once_and_stop_all_processes(checked):
    folder, printed = checked
    assert json.loads((folder / "codes.json").read_text()) == [[0, 0]] * 3 + [[2, 2]] * 5 + [[0, 0]]
    said = [line for line in printed.splitlines() if line.startswith("error:")]
    for line, part in zip(
        said,
        (
            "already holds a run",
            "already holds a run",
            "5000 ways",
            "there is no algo protonetz",
            "a sweep runs in one process",
        ),
        strict=True,
    ):
        assert part in line
    assert not (folder / "bad").exists()


def test_they_agree_on_a_folder_whose_name_is_the_time(checked):
    folder, _ = checked
    assert len([each for each in folder.iterdir() if (each / "config.yaml").exists()]) == 3  # run, eval and this one


@pytest.mark.parametrize(("count", "size", "unit"), [(10, 2, 1), (3, 2, 1), (1, 3, 1), (0, 2, 1), (61, 3, 8), (7, 4, 8)])
def test_shares_partition_the_range_in_order_and_the_first_is_not_empty(count, size, unit):
    shares = []
    for rank in range(size):
        process = Processes()
        process.rank, process.size = rank, size
        shares.append(process.share(count, unit))
    assert [index for share in shares for index in share] == list(range(count))
    assert all(share.start % unit == 0 for share in shares if share)
    blocks = [-(-len(share) // unit) for share in shares]
    assert max(blocks) - min(blocks) <= 1
    assert bool(shares[0]) == (count > 0)
