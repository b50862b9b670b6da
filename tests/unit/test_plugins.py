"""Plug-in packages: how they are found, which of their classes may be built, and errors for missing ones."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_line import composed

from fsl_cli.cli import main
from fsl_cli.errors import FslError
from fsl_cli.results import environment
from fsl_cli.run.plan import check
from fsl_cli.settings import build, plugins
from fsl_cli.settings.conf_files import choices, members

METHOD = """
from fsl_cli.algos.common.algorithm import Algorithm
class Mine(Algorithm):
    loss = predict = lambda self, episodes: None
    def __init__(self, backbone, *, scale: float = 1.0):
        super().__init__()
        self.scale = scale
"""
YAML = "# @package _global_\n# Mine: as it is.\nalgo:\n  name: {name}\n  _target_: {target}\n  scale: 2.0\n"


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Only the plug-ins of the test; their modules are unloaded afterwards."""
    monkeypatch.delenv(plugins.VARIABLE, raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    plugins._installed.cache_clear()
    yield
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]
    plugins._installed.cache_clear()


@pytest.fixture
def package(tmp_path: Path) -> Callable[..., Path]:
    """Writes ``folder/name``, a package with a method and its YAML file; returns the folder."""

    def write(name: str, member: str = "mine", folder: str = "work") -> Path:
        place = tmp_path / folder / name
        (place / "conf" / "algo").mkdir(parents=True)
        (place / "__init__.py").touch()
        (place / "method.py").write_text(METHOD)
        (place / "conf" / "algo" / f"{member}.yaml").write_text(YAML.format(name=member, target=f"{name}.method.Mine"))
        return place.parent

    return write


def node(name: str) -> dict:
    return {"_target_": f"{name}.method.Mine", "scale": 3.0}


def test_without_plug_ins_there_is_fsl_alone():
    assert plugins.plugins() == []
    assert {member.plugin for member in members("algo").values()} == {None}


def test_a_folder_brings_its_packages(package, monkeypatch):
    monkeypatch.setenv(plugins.VARIABLE, str(package("ours")))
    assert members("algo")["mine"].plugin == "ours"
    assert composed("algo=mine")["algo"]["scale"] == 2.0
    check(["algo=mine", "algo.scale=3"])
    assert build.build(node("ours"), "algo", {"backbone": None}).scale == 3.0
    assert build.check(node("ours") | {"scale": "no"}, "algo", {"backbone"}) != []


def test_a_folder_may_be_the_package_itself_or_hold_modules_and_a_conf(package, monkeypatch, tmp_path):
    itself = package("itself") / "itself"
    loose = tmp_path / "loose"
    (loose / "conf" / "algo").mkdir(parents=True)
    (loose / "single.py").write_text(METHOD)
    (loose / "conf" / "algo" / "other.yaml").write_text(YAML.format(name="other", target="single.Mine"))
    monkeypatch.setenv(plugins.VARIABLE, os.pathsep.join([str(itself), str(loose)]))
    assert [member.plugin for name, member in members("algo").items() if name in ("mine", "other")] == ["itself", "loose"]
    assert build.check(node("itself"), "algo", {"backbone"}) == []
    assert build.check({"_target_": "single.Mine"}, "algo", {"backbone"}) == []


def test_a_package_that_python_finds_is_named_without_its_folder(package, monkeypatch):
    monkeypatch.syspath_prepend(package("findable"))
    assert "mine" not in choices("algo")
    monkeypatch.setenv(plugins.VARIABLE, "findable")
    assert members("algo")["mine"].plugin == "findable"
    assert build.check(node("findable"), "algo", {"backbone"}) == []


def test_an_installed_package_declares_itself_and_is_listed_once(package, monkeypatch):
    site = package("installed", folder="site")
    information = site / "some_name-1.2.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: some-name\nVersion: 1.2\n")
    (information / "entry_points.txt").write_text("[fsl.plugins]\nwhatever = installed\n")
    monkeypatch.syspath_prepend(site)
    importlib.invalidate_caches()
    assert members("algo")["mine"].plugin == "installed"
    assert build.check(node("installed"), "algo", {"backbone"}) == []
    (described,) = map(environment.plugin_version, plugins.plugins())
    assert described["version"] == "1.2"
    monkeypatch.setenv(plugins.VARIABLE, str(site))
    assert [plugin.distribution for plugin in plugins.plugins()] == ["some-name"]


def test_the_code_of_a_plug_in_is_identified(package, monkeypatch):
    folder = package("ours")
    monkeypatch.setenv(plugins.VARIABLE, str(folder))
    (before,) = map(environment.plugin_version, plugins.plugins())
    (same,) = map(environment.plugin_version, plugins.plugins())
    (folder / "ours" / "method.py").write_text(METHOD + "# changed\n")
    (after,) = map(environment.plugin_version, plugins.plugins())
    assert before == same
    assert before["digest"] != after["digest"]
    assert (before["version"], before["git_commit"]) == (None, None)
    git = ["git", "-c", "user.name=x", "-c", "user.email=x", "-C", str(folder)]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *command], check=True)
    (committed,) = map(environment.plugin_version, plugins.plugins())
    assert len(committed["git_commit"] or "") == 40


def test_two_packages_with_a_member_of_the_same_name_are_an_error_that_names_both(package, monkeypatch, capsys):
    monkeypatch.setenv(plugins.VARIABLE, os.pathsep.join([str(package("ours")), str(package("theirs", folder="other"))]))
    for verb in (["ls", "algo"], ["train", "algo=mine"], ["train", "--help"]):
        assert main(verb) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: algo=mine: is both in ours (")
        assert "and in theirs (" in said
    monkeypatch.setenv(plugins.VARIABLE, str(package("replacing", member="maml", folder="third")))
    with pytest.raises(FslError, match=r"algo=maml: is both in fsl \(.*\) and in replacing"):
        choices("algo")


def test_two_packages_of_the_same_name_are_told_apart(package, monkeypatch):
    first, second = package("twin", member="one", folder="first"), package("twin", member="two", folder="second")
    monkeypatch.setenv(plugins.VARIABLE, str(first))
    assert build.check(node("twin"), "algo", {"backbone"}) == []
    monkeypatch.setenv(plugins.VARIABLE, str(second))
    (problem,) = build.check(node("twin"), "algo", {"backbone"})
    assert f"from {first}" in str(problem)
    assert f"not from {second}" in str(problem)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("nowhere/at/all", "FSL_PLUGINS: there is no folder or package nowhere/at/all"),
        ("json", "FSL_PLUGINS: package json has no conf folder"),
        ("{empty}", "holds no conf folder of a plug-in"),
    ],
)
def test_what_is_named_but_not_there_is_one_line(value, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(plugins.VARIABLE, value.format(empty=tmp_path))
    assert main(["ls"]) == 2
    assert said in capsys.readouterr().err


def test_a_configuration_does_not_decide_what_is_built(package, monkeypatch):
    folder = package("ours")
    monkeypatch.syspath_prepend(folder)  # importable, but nobody said that fsl may
    (problem,) = build.check(node("ours"), "algo", {"backbone"})
    assert "'ours.method.Mine' may not be built" in str(problem)
    assert "FSL_PLUGINS=ours" in str(problem)
    assert "ours" not in sys.modules
    monkeypatch.setenv(plugins.VARIABLE, str(folder))
    for target in ("ours.method.os.system", "os.system", "ours.method", "ours", "oursmethod.Mine", None):
        assert build.check({"_target_": target}, "algo", {"backbone"}) != []


def test_only_modules_that_its_configurations_name_are_imported(package, monkeypatch, tmp_path):
    """A received configuration may name any module of a plug-in, and importing one runs it."""
    folder = package("ours")
    (folder / "ours" / "clean_up.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n{METHOD}")
    monkeypatch.setenv(plugins.VARIABLE, str(folder))
    (problem,) = build.check({"_target_": "ours.clean_up.Mine"}, "algo", {"backbone"})
    assert "'ours.clean_up.Mine' may not be built: no configuration of plug-in ours names its module" in str(problem)
    assert not (tmp_path / "ran").exists()
    assert "ours.clean_up" not in sys.modules


def test_a_class_that_a_plug_in_only_imports_is_not_its_own(package, monkeypatch):
    folder = package("ours")
    (folder / "ours" / "method.py").write_text("from subprocess import Popen\n")
    monkeypatch.setenv(plugins.VARIABLE, str(folder))
    (problem,) = build.check({"_target_": "ours.method.Popen", "args": "true"}, "algo", set())
    assert "may not be built" in str(problem)


def test_ls_says_where_a_member_comes_from_and_a_misspelled_one_is_found(package, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv(plugins.VARIABLE, str(package("ours")))
    assert main(["ls", "algo"]) == 0
    assert "algo=mine\tMine: as it is. [from ours]" in capsys.readouterr().out
    main(["doctor"])
    assert f"plug-in ours\tFSL_PLUGINS: {tmp_path / 'work' / 'ours'}" in capsys.readouterr().out
    assert main(["train", "algo=mien"]) == 2
    assert "did you mean mine?" in capsys.readouterr().err
