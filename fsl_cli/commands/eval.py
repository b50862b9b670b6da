"""`fsl eval`: meta-test a trained run, with its saved configuration and overrides on top."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fsl_cli.compute import processes
from fsl_cli.errors import FslError
from fsl_cli.results.run_folder import known_runs
from fsl_cli.run.trained import TestJob, plan_test, test_again
from fsl_cli.settings import overrides
from fsl_cli.settings.words import folder_in


def main(arguments: Sequence[str]) -> int:
    """Run the verb. Returns the exit code."""
    flags, words = overrides.split_flags(arguments)
    if flags:
        raise FslError("is not a flag of fsl eval", where=flags[0], hint="scripts/meta_test.sh tests many tasks")
    test_again(processes.current().from_first(lambda: _planned(words)))
    return 0


def _planned(words: Sequence[str]) -> TestJob:
    named = [word.partition("=")[2] for word in words if word.startswith("run=")]
    if not named or not named[0]:
        raise FslError("is missing", where="run", hint=f"fsl eval run=FOLDER; {known_runs()}")
    run = folder_in(named[0])
    if len(named) > 1 or ("," in run and not Path(run).exists()):
        raise FslError("names several runs", where=" ".join(f"run={each}" for each in named), hint="test one at a time")
    return plan_test(run, [word for word in words if not word.startswith("run=")])
