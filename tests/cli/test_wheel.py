"""The wheel carries everything a run needs: it is built, unpacked and used from another folder."""

from __future__ import annotations

import sys
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
    assert "fsl = fsl_cli.cli:main" in next(site.glob("*.dist-info/entry_points.txt")).read_text()

    where = shell(sys.executable, "-c", "import fsl_cli; print(fsl_cli.__file__)", cwd=work, PYTHONPATH=str(site))
    assert where.stdout.startswith(str(site))
    listed = shell(*command("ls", "dataset"), cwd=work, PYTHONPATH=str(site))
    assert "dataset=glyphs" in listed.stdout
    run = shell(*command("train", *merged(("hydra.run.dir=run",))), cwd=work, PYTHONPATH=str(site))
    assert run.returncode == 0, run.stderr
    assert results(work / "run")["accuracy"]["n"] == 12
