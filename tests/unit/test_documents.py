"""Documents match the code: the example of CONTRIBUTING.md runs, and all version numbers agree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


def test_the_example_test_passes():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.S)
    namespace: dict = {}
    exec(code, namespace)
    tests = [value for name, value in namespace.items() if name.startswith("test_")]
    assert len(tests) == 1
    tests[0]()


def test_files_that_are_named_exist():
    for document in ("CONTRIBUTING.md", "README.md"):
        named = re.findall(r"`((?:fsl_cli|tests|scripts|conf|outputs)/[\w/]+\.\w+)`", (ROOT / document).read_text())
        assert named, document
        assert not [name for name in named if "NAME" not in name and "mine" not in name and not (ROOT / name).exists()]


def test_the_hooks_before_a_commit_and_the_citation_are_well_formed():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert [hook["entry"].split()[0] for hook in hooks] == [".venv/bin/ruff", ".venv/bin/ruff", ".venv/bin/mypy"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()


def test_makefile_and_pyproject_ask_for_the_same_uv():
    required = re.search(r'required-version = ">=(\d+)\.(\d+)\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    assert required
    assert "{}.{}.{} or later".format(*required.groups()) in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize(
    ("version", "taken"),
    [("0.4.30", False), ("0.8.9", False), ("0.8.10", True), ("0.13.9", True), ("1.0.0", True), (None, False)],
)
def test_make_setup_takes_the_uv_on_the_path_if_it_is_new_enough(version, taken, tmp_path):
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    uv = tmp_path / "bin" / "uv"
    uv.parent.mkdir()
    uv.write_text(f"#!/bin/sh\necho 'uv {version} (abc 2025-01-01)'\n")
    uv.chmod(0o755 if version else 0o644)
    environment = {**os.environ, "PATH": f"{uv.parent}{os.pathsep}{os.defpath}"}
    plan, without_cuda = (
        subprocess.run(["make", "-n", "setup", *words], cwd=tmp_path, env=environment, capture_output=True, text=True).stdout
        for words in ([], ["TORCH=cpu"])
    )
    assert f"UV_COMPILE_BYTECODE=1 {uv if taken else '.tools/bin/uv'} sync" in plan
    assert ("fetching uv" in plan) is not taken
    assert "pip install --no-progress --torch-backend=cpu -e '.[learn2learn]' --group dev" in without_cuda
