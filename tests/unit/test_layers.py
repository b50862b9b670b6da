"""Imports run one way, and light things stay light. What is imported is seen in fresh processes."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import fsl_cli

PACKAGE = Path(fsl_cli.__file__).parent
MODULES = sorted(
    ".".join(["fsl_cli", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
)
TOPS = {
    *("__main__", "cli", "config", "build", "overrides", "run_folder", "checkpoint", "tracking", "console"),
    *("experiment", "assembly", "training", "environment", "summary", "report"),
}
LEAVES = [name for name in MODULES if name.split(".")[1:2] not in [[top] for top in (*TOPS, "commands")]]
SERVANTS = ("hydra", "omegaconf", "wandb", "rich")

# Each module in a fork of one process that has torch and what scientists use, which is slow to import, and nothing else.
FORKS = """
import importlib, json, os, sys
import matplotlib, numpy, PIL.Image, scipy.stats, torch
request = json.loads(sys.argv[1])
assert not [name for name in sys.modules if name.split(".")[0] in request["forbidden"] + ["fsl_cli"]]
for module in request["modules"]:
    if os.fork() == 0:
        importlib.import_module(module)
        loaded = sorted({name.split(".")[0] for name in sys.modules} & set(request["forbidden"]))
        print(json.dumps([module, loaded]), flush=True)
        os._exit(0)
    _, status = os.wait()
    assert status == 0, module
"""


def loaded_by(modules: list[str], forbidden: tuple[str, ...]) -> dict[str, list[str]]:
    """Which of the forbidden packages each module brings along."""
    request = json.dumps({"modules": modules, "forbidden": list(forbidden)})
    done = subprocess.run([sys.executable, "-c", FORKS, request], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.skipif(sys.platform == "win32", reason="needs os.fork")
def test_leaves_know_neither_hydra_nor_wandb_nor_rich():
    assert len(LEAVES) >= 25
    for package in ("algos", "backbones", "inner", "datasets"):
        assert sum(name.startswith(f"fsl_cli.{package}.") for name in LEAVES) >= 3
    assert {f"fsl_cli.{name}" for name in ("episodes", "stats", "metrics", "hardware", "evaluation")} <= set(LEAVES)
    loaded = loaded_by([*LEAVES, "fsl_cli.config", "fsl_cli.console"], (*SERVANTS, "learn2learn"))
    assert loaded.pop("fsl_cli.config") == ["omegaconf"]  # the check sees what is there
    assert loaded.pop("fsl_cli.console") == ["rich"]
    assert loaded == {name: [] for name in LEAVES}


LIGHT = """
import json, sys
sys.path_hooks  # nothing is imported yet
import fsl_cli.cli
code = fsl_cli.cli.main(json.loads(sys.argv[1]))
heavy = {"torch", "hydra", "omegaconf", "wandb", "numpy", "scipy", "matplotlib", "learn2learn", "pydantic"}
print(json.dumps([code, sorted({name.split(".")[0] for name in sys.modules} & heavy)]), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "words",
    [["--help"], [], ["ls"], ["ls", "algo", "dataset"], ["train", "--help"], ["eval", "-h"], ["--version"], ["trian"]],
    ids=" ".join,
)
def test_help_and_ls_are_light(words):
    done = subprocess.run([sys.executable, "-c", LIGHT, json.dumps(words)], capture_output=True, text=True, check=True)
    code, heavy = json.loads(done.stderr.splitlines()[-1])
    assert heavy == []
    assert code == (2 if words == ["trian"] else 0)
    assert done.stdout or code


# --- the source, as it is written


def imports(path: Path) -> set[str]:
    """Modules that a file imports, those inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


SOURCES = {
    name: imports(PACKAGE.joinpath(*name.split(".")[1:]).with_suffix(".py"))
    for name in MODULES
    if PACKAGE.joinpath(*name.split(".")[1:]).with_suffix(".py").is_file() and name != "fsl_cli"
}


def users(package: str) -> set[str]:
    return {name for name, found in SOURCES.items() if any(each.split(".")[0] == package for each in found)}


def of(*names: str) -> set[str]:
    return {f"fsl_cli.{name}" for name in names}


def test_each_servant_has_few_masters():
    assert len(SOURCES) > 35
    assert users("wandb") <= of("tracking", "commands.doctor")
    assert users("rich") == of("console")
    assert users("hydra") <= of("overrides", "commands.train", "commands.eval")
    assert users("omegaconf") <= of("overrides", "config", "run_folder", "commands.train", "commands.eval")
    assert users("learn2learn") == set()  # by name only, through fsl_cli.optional
    assert all(users(each) for each in ("wandb", "hydra", "omegaconf"))


@pytest.mark.parametrize(
    ("lower", "upper"),
    [
        ("inner", ("algos", "datasets", "training", "evaluation", "commands", "experiment", "hardware")),
        ("backbones", ("algos", "inner", "episodes", "training", "evaluation", "commands", "experiment", "hardware")),
        ("datasets", ("algos", "inner", "backbones", "episodes", "training", "evaluation", "commands", "experiment")),
        ("algos", ("datasets", "training", "evaluation", "commands", "experiment", "hardware", "config", "build")),
        ("metrics", ("",)),
        ("stats", ("",)),
        ("errors", ("",)),
        ("episodes", ("algos", "inner", "backbones", "training", "evaluation", "hardware", "commands", "experiment")),
        ("evaluation", ("training", "commands", "experiment", "config", "build", "console")),
        ("training", ("commands", "experiment", "console", "tracking", "build", "run_folder", "checkpoint")),
        ("console", ("commands", "experiment", "training", "config")),
        ("assembly", ("commands", "experiment", "training", "evaluation", "tracking")),
        ("experiment", ("commands", "cli")),
    ],
)
def test_imports_run_one_way(lower, upper):
    mine = {name: found for name, found in SOURCES.items() if f"{name}.".startswith(f"fsl_cli.{lower}.")}
    assert mine
    for name, found in mine.items():
        wrong = {each for each in found for top in upper if f"{each}.".startswith(f"fsl_cli.{top}" + (top and "."))}
        assert not wrong, f"{name} imports {wrong}"
