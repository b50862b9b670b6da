"""Imports follow one order, and commands that need no torch do not import it. Checked in new processes."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fsl_cli
from fsl_cli.cli import VERBS

PACKAGE = Path(fsl_cli.__file__).parent
MODULES = sorted(
    ".".join(["fsl_cli", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
)
# Every module imports from its own line or from those below it.
ORDER = (
    *(
        "__main__",
        "cli",
        "api",
        "commands",
        "run",
        "training",
        "evaluation",
        "algos",
        "inner",
        "datasets",
        "episodes",
        "backbones",
    ),
    *("results", "statistics", "compute", "settings", "show", "optional", "errors"),
)
LEAF_PACKAGES = ("training", "evaluation", "algos", "inner", "episodes", "backbones", "datasets", "statistics", "compute")
SERVANTS = ("hydra", "omegaconf", "wandb", "rich")

# What each module brings along that was not there before, one after the other in a fresh process.
BRINGS = """
import importlib, json, sys
request = json.loads(sys.argv[1])
loaded = lambda: {name.split(".")[0] for name in sys.modules} & set(request["forbidden"])
for module in request["modules"]:
    before = loaded()
    importlib.import_module(module)
    print(json.dumps([module, sorted(loaded() - before)]))
"""


def wing(module: str) -> str:
    """The part of the package that a module belongs to: ``fsl_cli.run.parts`` to ``run``."""
    return module.split(".")[1]


LEAVES = [name for name in MODULES if name != "fsl_cli" and wing(name) in LEAF_PACKAGES]


def brought_by(modules: list[str], forbidden: tuple[str, ...]) -> dict[str, list[str]]:
    """The forbidden packages that each module is the first to import."""
    request = json.dumps({"modules": modules, "forbidden": list(forbidden)})
    done = subprocess.run([sys.executable, "-c", BRINGS, request], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(line) for line in done.stdout.splitlines())


def test_low_level_modules_do_not_import_hydra_wandb_or_rich():
    assert {wing(name) for name in LEAVES} == set(LEAF_PACKAGES)
    assert len(LEAVES) >= 80
    brought = brought_by([*LEAVES, "fsl_cli.settings.resolve", "fsl_cli.show.console"], (*SERVANTS, "learn2learn"))
    assert brought.pop("fsl_cli.settings.resolve") == ["omegaconf"]  # the check sees what is there
    assert brought.pop("fsl_cli.show.console") == ["rich"]
    assert brought == {name: [] for name in LEAVES}


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
    [["--help"], [], ["--version"], ["trian"], ["ls"], ["ls", "algo", "dataset"], *([verb, "--help"] for verb in VERBS)],
    ids=" ".join,
)
def test_help_and_ls_do_not_import_large_libraries(words):
    done = subprocess.run([sys.executable, "-c", LIGHT, json.dumps(words)], capture_output=True, text=True, check=True)
    code, heavy = json.loads(done.stderr.splitlines()[-1])
    assert heavy == []
    assert code == (2 if words == ["trian"] else 0)
    assert done.stdout or code


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ["passive", "1000"]),
        ({"OMP_WAIT_POLICY": "active"}, ["active", "None"]),
        ({"GOMP_SPINCOUNT": "7"}, ["passive", "7"]),
    ],
    ids=str,
)
def test_threads_wait_passively_unless_the_user_decides(given, expected):
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    code = f"import os, sys, fsl_cli; print(*(os.environ.get(name) for name in {names}), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=environment | given, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [*expected, "False"]


# --- the source, as it is written


def imports(path: Path) -> set[str]:
    """Modules that a file imports, including imports inside functions."""
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
    """Modules that import a package."""
    return {name for name, found in SOURCES.items() if any(each.split(".")[0] == package for each in found)}


def of(*names: str) -> set[str]:
    return {f"fsl_cli.{name}" for name in names}


def test_each_library_is_imported_by_few_modules():
    assert len(SOURCES) > 80
    assert users("wandb") <= of("results.wandb_run", "results.wandb_environment", "commands.doctor")
    assert users("rich") == of("show.console")
    assert users("hydra") <= of("settings.overrides", "settings.compose", "settings.saved", "settings.words")
    assert users("omegaconf") <= users("hydra") | of("settings.resolve", "settings.plain_yaml", "run.plan", "run.train")
    assert users("learn2learn") == set()  # by name only, through fsl_cli.optional
    assert all(users(each) for each in ("wandb", "hydra", "omegaconf"))


@pytest.mark.parametrize("lower", ORDER)
def test_imports_run_one_way(lower):
    mine = {name: found for name, found in SOURCES.items() if wing(name) == lower}
    assert mine, f"there is no {lower}"
    above = ORDER[: ORDER.index(lower)]
    for name, found in mine.items():
        wrong = {each for each in found if each.startswith("fsl_cli.") and wing(each) in above}
        assert not wrong, f"{name} imports {wrong}"


def test_every_part_is_in_the_import_order():
    assert {wing(name) for name in MODULES if name != "fsl_cli"} == set(ORDER)
