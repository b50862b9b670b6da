"""Help, lists and the doctor."""

from __future__ import annotations

import sys

import pytest
from command_line import shell

from fsl_cli.cli import VERBS
from fsl_cli.settings.conf_files import GROUPS, choices


def test_the_list_of_commands_is_complete():
    assert set(VERBS) == {"train", "eval", "data", "ls", "new", "doctor", "completion"}


def test_help_shows_examples_and_every_command(fsl):
    text = fsl("--help").out
    for verb in VERBS:
        assert f"  {verb}" in text
        assert "examples:" in fsl(verb, "--help").out
        assert fsl("--help", verb).out == fsl(verb, "--help").out
    assert "fsl train algo=maml dataset=omniglot" in text


def test_train_help_lists_every_group_and_setting(fsl):
    text = fsl("train", "--help").out
    for group in GROUPS:
        assert f"{group}={'|'.join(choices(group))}" in text
    for setting in ("ways: 5", "patience: null", "episodes: 1000", "resume: false"):
        assert setting in text


def test_ls_lists_every_member_with_its_line(fsl):
    everything = fsl("ls").out
    listed = 0
    for group in GROUPS:
        for name in choices(group):
            (line,) = [line for line in everything.splitlines() if line.startswith(f"{group}={name}\t")]
            assert len(line.split("\t")[1]) > 10
            listed += 1
    assert listed >= 20
    assert "maml" not in fsl("ls", "dataset").out


def test_version(fsl):
    from importlib.metadata import version

    assert fsl("--version").out == f"fsl {version('fsl-cli')}\n"


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--cfg", "job", "algo=anil", "seed=7"],
        ["train", "algo=anil", "--cfg", "job", "seed=7"],
        ["train", "algo=anil", "seed=7", "--cfg=job"],
        ["--cfg", "job", "train", "algo=anil", "seed=7"],
    ],
)
def test_flags_may_be_anywhere(fsl, tmp_path, words):
    shown = fsl(*words)
    assert shown.code == 0, shown.err
    assert "adapt: head" in shown.out
    assert "\nseed: 7\n" in shown.out
    assert not list(tmp_path.iterdir())


def test_doctor_reports_and_succeeds(fsl, tmp_path, monkeypatch):
    monkeypatch.setenv("FSL_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "data" / "omniglot").mkdir(parents=True)
    outcome = fsl("doctor")
    assert outcome.code == 0, outcome.err
    for expected in (
        "torch\t",
        "devices\tcpu",
        f"{tmp_path / 'data'}: omniglot",
        "wandb.mode=auto means offline",
        "no API key",
    ):
        assert expected in outcome.out
    assert outcome.out.strip().splitlines()[-1] == "everything a run needs is here"


def test_doctor_fails_when_a_run_could_not_work(fsl, monkeypatch):
    from fsl_cli.commands import doctor

    monkeypatch.setenv("FSL_CACHE_DIR", "/dev/null/cache")
    monkeypatch.setattr(doctor, "version", lambda name: None if name == "rich" else "1.0")
    outcome = fsl("doctor")
    assert outcome.code == 1
    assert "rich is not installed" in outcome.err
    assert "/dev/null/cache: cannot be written" in outcome.err


def test_doctor_says_that_torch_is_missing(tmp_path):
    code = "import sys; sys.modules['torch'] = None; from fsl_cli.cli import main; sys.exit(main(['doctor']))"
    done = shell(sys.executable, "-c", code, cwd=tmp_path)
    assert done.returncode == 1
    assert "error: torch does not import: " in done.stderr
    assert "unexpected" not in done.stderr
