"""What stands beside the code is true: the example of CONTRIBUTING.md runs, and all versions agree."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def test_the_test_to_copy_passes():
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
