"""A run folder that somebody else made is data: opening it changes no file, reads no environment and no folder of theirs."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml


def edited(run: Path, **sections: object) -> Path:
    """The run with other sections in its saved configuration."""
    saved = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(saved | sections))
    return run


@pytest.mark.parametrize("section", ["dataset", "backbone", "algo"])
def test_a_configuration_cannot_name_a_class_that_destroys_a_file(small, fsl, tmp_path, section):
    precious = tmp_path / "precious.jsonl"
    precious.write_text('{"iteration": 1}\n')
    node = {"_target_": "fsl_cli.results.tracking.JsonLines", "name": "glyphs", "path": str(precious), "upto": 0}
    outcome = fsl("eval", f"run={edited(small('run'), **{section: node})}")
    assert precious.read_text() == '{"iteration": 1}\n'
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: {section}._target_: 'fsl_cli.results.tracking.JsonLines' may not be built here")
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "outputs").exists()
