"""`fsl eval`: meta-test a trained run, with its saved configuration and overrides on top."""

from __future__ import annotations

from collections.abc import Sequence

from fsl_cli.compute import processes
from fsl_cli.errors import FslError
from fsl_cli.results.run_folder import known_runs
from fsl_cli.run.trained import TestJob, plan_test, test_again
from fsl_cli.settings import overrides


def main(arguments: Sequence[str]) -> int:
    """Run the verb. Returns the exit code."""
    flags, words = overrides.split_flags(arguments)
    if flags:
        raise FslError("is not a flag of fsl eval", where=flags[0], hint="scripts/meta_test.sh tests many tasks")
    test_again(processes.current().from_first(lambda: _planned(words)))
    return 0


def _planned(words: Sequence[str]) -> TestJob:
    parsed = overrides.parse(words)
    runs = [each for each in parsed if each.key_or_group == "run"]
    if not runs:
        raise FslError("is missing", where="run", hint=f"fsl eval run=FOLDER; {known_runs()}")
    if runs[0].is_sweep_override():
        raise FslError("names several runs", where=str(runs[0].input_line), hint="test one at a time")
    return plan_test(
        str(runs[0].value()), [word for word, each in zip(words, parsed, strict=True) if each.key_or_group != "run"]
    )
