"""The wheel carries everything a run needs: it is built, unpacked and used from another folder."""

from __future__ import annotations

import re
import sys
import tarfile
import zipfile
from pathlib import Path

from command_line import command, merged, results, shell

ROOT = Path(__file__).parents[2]


def test_the_wheel_runs_from_another_folder(tmp_path):
    built = shell(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "dist", cwd=ROOT)
    assert built.returncode == 0, built.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    assert {path.name for path in (ROOT / "conf").rglob("*.yaml")} == {
        path.name for path in (site / "fsl_cli/conf").rglob("*.yaml")
    }
    assert (site / "fsl_cli/py.typed").is_file()
    assert "fsl = fsl_cli.cli:main" in next(site.glob("*.dist-info/entry_points.txt")).read_text()

    where = shell(sys.executable, "-c", "import fsl_cli; print(fsl_cli.__file__)", cwd=work, PYTHONPATH=str(site))
    assert where.stdout.startswith(str(site))
    listed = shell(*command("ls", "dataset"), cwd=work, PYTHONPATH=str(site))
    assert "dataset=glyphs" in listed.stdout
    written = shell(*command("new", "algo", "mine"), cwd=work, PYTHONPATH=str(site))
    assert written.returncode == 0, written.stderr
    assert (work / "my_fsl/my_fsl/algos/mine.py").is_file()
    run = shell(*command("train", *merged(("hydra.run.dir=run",))), cwd=work, PYTHONPATH=str(site))
    assert run.returncode == 0, run.stderr
    assert results(work / "run")["accuracy"]["n"] == 12


def test_the_source_archive_holds_what_the_readme_shows_and_links(tmp_path):
    built = shell(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path, cwd=ROOT)
    assert built.returncode == 0, built.stderr
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    linked = set(re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text()))
    assert {"outputs/demo.svg", "outputs/README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff"} <= linked
    assert linked | {"LICENSE", "Makefile", "fsl_cli/py.typed", "conf/train.yaml"} <= held
