"""Default folders: runs, tests and sweeps that start in the same second do not share one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import merged, results

from fsl_cli.results.run_folder import RunFolder, make_new

WORDS = ("algo=protonet", "algo.train_ways=5", "train.iterations=2")
A_YEAR = "at_${now:%Y}"  # a name that all processes have in common, as two that start in one second do


def start(warm, cwd: Path, number: int, *words: str):
    return warm.start(*words, cwd=cwd, log=cwd / f"log{number}")


def logs(cwd: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(cwd.glob("log*")))


@pytest.mark.parametrize("resume", ["resume=false", "resume=auto", "another"])
def test_runs_of_several_processes_get_folders_of_their_own(warm, small, tmp_path, resume):
    words = merged((*WORDS, resume))
    if resume == "another":
        words = merged((*WORDS[:2], "train.iterations=3", f"resume={small('first', *WORDS)}"))
    started = [start(warm, tmp_path, number, "train", *words) for number in range(4)]
    assert [process.wait() for process in started] == [0] * 4, logs(tmp_path)
    folders = list((tmp_path / "outputs/train").iterdir())
    assert len(folders) == 4
    assert all(results(folder)["algo"] == "protonet" for folder in folders)


def test_sweeps_and_tests_of_several_processes_get_folders_of_their_own(warm, small, tmp_path):
    run = small("run", *WORDS)
    sweep = ("train", "-m", *merged((*WORDS, "seed=0,1", f"hydra.sweep.dir=sweep/{A_YEAR}")))
    test = ("eval", f"run={run}", f"hydra.run.dir=eval/{A_YEAR}")
    started = [start(warm, tmp_path, number, *words) for number, words in enumerate((sweep, sweep, sweep, test, test, test))]
    assert [process.wait() for process in started] == [0] * 6, logs(tmp_path)
    for place in ("sweep", "eval"):
        first, *others = sorted(path.name for path in (tmp_path / place).iterdir())
        assert others == [f"{first}_2", f"{first}_3"]
    for folder in (tmp_path / "sweep").iterdir():
        assert {path.name for path in folder.iterdir()} == {"0", "1", "multirun.yaml", "results.md", "results.csv"}
        assert [results(folder / job)["seed"] for job in "01"] == [0, 1]
        assert f"folder  {folder}/1" in (folder / "1" / "run.log").read_text()
    assert all(results(folder)["algo"] == "protonet" for folder in (tmp_path / "eval").iterdir())


def test_a_folder_named_after_the_day_is_one_to_continue_in(fsl, tmp_path):
    words = merged((*WORDS, f"hydra.run.dir=out/{A_YEAR}", "resume=auto"))
    for iterations in (2, 3):
        outcome = fsl("train", *[word for word in words if "iterations" not in word], f"train.iterations={iterations}")
        assert outcome.code == 0, outcome.err
    (folder,) = (tmp_path / "out").iterdir()
    assert json.loads((folder / "status.json").read_text())["state"] == "done"
    assert "resume  " in outcome.out


def test_a_command_that_is_refused_leaves_no_folder(fsl, small, tmp_path):
    assert fsl("train", *merged((*WORDS, "task.ways=5000"))).code == 2
    assert fsl("train", "-m", *merged((*WORDS, "seed=0,-1"))).code == 2
    run = small("run", *WORDS)
    (run / "checkpoints/best.pt").unlink()
    assert fsl("eval", f"run={run}").code == 2
    assert not [path for path in (tmp_path / "outputs").rglob("*") if path.parent.name in ("train", "eval", "sweep")]


def test_names_of_new_folders(tmp_path):
    made = [make_new(tmp_path / "a" / "run") for _ in range(3)]
    assert [path.name for path in made] == ["run", "run_2", "run_3"]
    assert all(path.is_dir() for path in made)
    RunFolder(made[0]).claim()
    (tmp_path / "file").touch()
    from fsl_cli.errors import FslError

    with pytest.raises(FslError, match="cannot be written"):
        make_new(tmp_path / "file" / "run")
