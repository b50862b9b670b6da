"""A user's method outside the checkout: `fsl new` writes it, every command works with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_line import Run, metrics, results
from warm import Warm

from fsl_cli.settings import plugins

ROOT = Path(__file__).parents[2]


@pytest.fixture
def package(fsl: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A plug-in with a method, a backbone and a data set that FSL_PLUGINS names; forgotten afterwards."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    for kind, name in (("algo", "mine"), ("backbone", "wide"), ("dataset", "ours")):
        assert fsl("new", kind, name, f"in={tmp_path / 'research'}").code == 0
    monkeypatch.setenv(plugins.VARIABLE, str(tmp_path / "research"))
    yield tmp_path / "research"
    for name in [name for name in sys.modules if name.split(".")[0] == "research"]:
        del sys.modules[name]


def test_what_is_written_is_a_package_with_tests_that_pass(package: Path, warm: Warm, tmp_path: Path):
    written = {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()}
    assert written == {
        "pyproject.toml",
        "research/__init__.py",
        *("research/algos/__init__.py", "research/algos/mine.py", "research/conf/algo/mine.yaml", "tests/test_mine.py"),
        *("research/backbones/__init__.py", "research/backbones/wide.py", "research/conf/backbone/wide.yaml"),
        *("research/datasets/__init__.py", "research/datasets/ours.py", "research/conf/dataset/ours.yaml"),
        *("tests/test_wide.py", "tests/test_ours.py"),
    }
    log = tmp_path / "log"
    assert warm.start("-q", "-p", "no:cacheprovider", cwd=package, log=log, module="pytest").wait() == 0, log.read_text()
    assert "7 passed" in log.read_text()
    style = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--isolated",
        "--line-length=128",
        "--select=E,F,W,B,UP,SIM,RUF",
        str(package),
    ]
    checked = subprocess.run(style, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_a_broken_method_fails_its_test(package: Path, warm: Warm, tmp_path: Path):
    code = package / "research" / "algos" / "mine.py"
    code.write_text(code.read_text().replace("-distances", "distances"))
    assert (
        warm.start("-q", "tests/test_mine.py", "-k", "temperature", cwd=package, log=tmp_path / "log", module="pytest").wait()
        == 1
    )


def test_it_trains_resumes_and_is_evaluated(package: Path, fsl: Run, small: Callable[..., Path], tmp_path: Path):
    words = ("algo=mine", "backbone=wide", "dataset=ours", "backbone.features=8", "eval.checkpoint=last")
    whole = small("whole", *words, "train.iterations=6")
    assert results(whole)["algo"] == "mine"
    described = json.loads((whole / "env.json").read_text())["plugins"]["research"]
    assert len(described["digest"]) == 16
    small("half", *words, "train.iterations=3")
    resumed = small("half_on", *words, "train.iterations=6", f"resume={tmp_path / 'half'}")
    assert [line for line in metrics(resumed) if "train/loss" in line] == [
        line for line in metrics(whole) if "train/loss" in line
    ]
    assert results(resumed)["accuracy"] == results(whole)["accuracy"]
    evaluated = fsl("eval", f"run={whole}", f"hydra.run.dir={tmp_path / 'eval'}")
    assert evaluated.code == 0, evaluated.err
    assert results(tmp_path / "eval")["accuracy"] == results(whole)["accuracy"]


def test_a_sweep_over_it_and_one_of_fsl_has_both_rows(package: Path, fsl: Run, tmp_path: Path):
    words = (
        "dataset=ours",
        "backbone=wide",
        "train.iterations=2",
        "train.val_episodes=2",
        "eval.episodes=4",
        "wandb.mode=disabled",
    )
    swept = fsl("train", "-m", "algo=mine,nearest", *words, f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert swept.code == 0, swept.err
    table = (tmp_path / "sweep" / "results.csv").read_text()
    assert "mine" in table
    assert "nearest" in table


def test_without_it_one_line_says_what_is_missing_and_how_to_name_it(
    package: Path, fsl: Run, small: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = small("run", "algo=mine")
    monkeypatch.delenv(plugins.VARIABLE)
    for words in (("eval", f"run={run}", f"hydra.run.dir={tmp_path / 'eval'}"), ("train", "algo=mine")):
        refused = fsl(*words)
        assert refused.code == 2
        assert len(refused.err.splitlines()) == 1
        assert not (tmp_path / "eval").exists()
    assert "package research" in fsl("eval", f"run={run}").err
    assert "FSL_PLUGINS=research" in fsl("eval", f"run={run}").err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("algo", "maml"), "there is already algo=maml"),
        (("algo", "No-Name"), "No-Name is no name for Python"),
        (("algo", "class"), "class is no name for Python"),
        (("algo", "other", "in=a-b"), "a-b is no name for Python"),
        (("algo", "other", "in=torch"), "there is already a package torch"),
        (("alog", "other"), "did you mean algo?"),
        (("algo",), "takes a kind and a name"),
        (("algo", "other", "out=x"), "out: there is no such option"),
        (("algo", "other", "-x"), "-x: is not a flag of fsl new"),
    ],
)
def test_new_refuses_in_one_line_and_writes_nothing(words, said, fsl: Run, tmp_path: Path):
    refused = fsl("new", *words)
    assert refused.code == 2
    assert said in refused.err
    assert len(refused.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_new_replaces_no_file(package: Path, fsl: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(plugins.VARIABLE)
    code = package / "research" / "algos" / "mine.py"
    code.write_text("precious")
    refused = fsl("new", "algo", "mine", f"in={package}")
    assert refused.code == 2
    assert str(code) in refused.err
    assert code.read_text() == "precious"


@pytest.mark.slow
def test_several_processes_find_it(package: Path, tmp_path: Path):
    words = [
        "algo=mine",
        "backbone=wide",
        "train.iterations=2",
        "train.val_episodes=2",
        "eval.episodes=4",
        "wandb.mode=disabled",
    ]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "fsl_cli", "train"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*launch, *words, f"hydra.run.dir={tmp_path / 'run'}"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert results(tmp_path / "run")["algo"] == "mine"


@pytest.mark.slow
def test_jobs_of_a_launcher_find_it(package: Path, fsl: Run, tmp_path: Path):
    words = ("algo=mine", "dataset=ours", "backbone=wide", "train.iterations=2", "train.val_episodes=2", "eval.episodes=4")
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    swept = fsl("train", "-m", "seed=0,1", *words, "wandb.mode=disabled", *launcher)
    assert swept.code == 0, swept.err
    for job in "01":
        assert results(tmp_path / "sweep" / job)["algo"] == "mine"
