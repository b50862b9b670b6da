"""`fsl train`: meta-train, validate and test one run, or every job of a sweep."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from fsl_cli.compute import processes
from fsl_cli.compute.signals import held_back
from fsl_cli.errors import FslError, Problems, first_line, keep_traceback, raise_all
from fsl_cli.results.run_folder import RunFolder, check_writable
from fsl_cli.settings import overrides
from fsl_cli.settings.conf_files import conf_dir
from fsl_cli.settings.resolve import resolve, validate
from fsl_cli.show import console

if TYPE_CHECKING:
    from fsl_cli.run.experiment import Experiment

INTERRUPTED = 130


@dataclass
class Outcome:
    """How a job ended: its folder, exit code, and why if there is nothing to be read there."""

    folder: Path
    code: int = INTERRUPTED
    error: str | None = None


def main(arguments: Sequence[str]) -> int:
    """Run the verb. Returns the exit code."""
    flags, words = overrides.split_flags(arguments)
    multirun = "-m" in flags or "--multirun" in flags
    overrides.check("train", words)
    outcomes: list[Outcome] = []
    if not {flag.split("=")[0] for flag in flags} <= {"-m", "--multirun"}:  # Hydra's own: they only show something
        _hydra_main([*flags, *words], outcomes)
        return 0
    several = processes.current()
    folder = several.from_first(lambda: _check_everything(words, multirun))
    if several.size > 1:
        words.append(f"hydra.run.dir='{folder}'")  # each process would read its own clock
    every_job = overrides.jobs(words)
    if multirun:
        words.append(f"hydra.sweep.dir='{folder}'")  # Hydra would read the clock again
    interrupted = False
    try:
        _hydra_main([*flags, *words], outcomes)
    except KeyboardInterrupt:
        interrupted = True
    code = max([INTERRUPTED * interrupted, *(each.code for each in outcomes)])
    return max(code, _report(folder, outcomes, overrides.swept(every_job))) if multirun else code


def _report(folder: Path, outcomes: Sequence[Outcome], swept: Sequence[dict[str, str]]) -> int:
    """The table of a sweep. Returns 1 if a job has failed, else 0."""
    from fsl_cli.results import tables as summary

    rows = []
    for outcome, values in zip(outcomes, swept, strict=False):  # an interrupted sweep has not come to all of them
        rows.append(summary.row(outcome.folder, os.path.relpath(outcome.folder, folder), outcome.error) | values)
    columns = summary.with_columns(swept[0])
    return summary.report(rows, folder / "results.md", folder / "results.csv", columns)


def _check_everything(words: Sequence[str], multirun: bool) -> Path:
    """Check the configuration of every job before any work. Returns the folder the run or sweep writes to."""
    if multirun and processes.launched():
        raise FslError("a sweep runs in one process", where="fsl train -m", hint="start each job with torchrun")
    every_job = overrides.jobs(words)
    if len(every_job) > 1 and not multirun:
        raise FslError(f"these overrides make {len(every_job)} jobs", where="fsl train", hint="add -m to run them all")
    problems: list[FslError] = []
    for job in every_job:
        try:
            validate(resolve(overrides.compose_config("train", job)))
        except Problems as error:
            problems += error.problems
        except FslError as error:
            problems.append(error)
    raise_all(problems)
    folder = overrides.output_folder("train", every_job[0], multirun=multirun)
    check_writable(folder)
    return folder


def _hydra_main(arguments: Sequence[str], outcomes: list[Outcome]) -> None:
    def job(config: DictConfig) -> None:
        outcomes.append(Outcome(Path(HydraConfig.get().runtime.output_dir)))
        run_job(config, outcomes[-1])

    sys.argv = ["fsl train", *arguments]
    hydra.main(version_base="1.3", config_path=str(conf_dir().absolute()), config_name="train")(job)()


def run_job(config: DictConfig, outcome: Outcome) -> None:
    """One run inside Hydra, and how it ended; what goes wrong is printed, logged and in ``status.json``."""
    hydra_config = HydraConfig.get()
    folder = RunFolder(outcome.folder)
    in_sweep = hydra_config.mode is RunMode.MULTIRUN
    group = Path(hydra_config.sweep.dir).name if in_sweep else None
    if in_sweep:
        console.say(f"job {hydra_config.job.num}  {' '.join(hydra_config.overrides.task)}", style="bold cyan")
    try:
        outcome.code = _train(resolve(config), folder, group)
        return
    except FslError as error:
        outcome.code, outcome.error = 2, str(error)
    except Exception as error:  # before there was a run with a log
        outcome.code, outcome.error = 1, keep_traceback(error)
    console.fail(outcome.error)
    if processes.current().first:
        if in_sweep and not folder.config.exists():  # the table at the end says why there is no result
            folder.write_status("failed", error=outcome.error)
        elif folder.path.is_dir() and not any(folder.path.iterdir()):  # Hydra makes it before the run is checked
            folder.path.rmdir()


def _train(config: dict[str, Any], folder: RunFolder, group: str | None) -> int:
    from fsl_cli.run.experiment import Experiment

    started = time.perf_counter()
    several = processes.current()
    experiment = several.together(lambda: Experiment(validate(config), config, folder, group))
    if not several.first:
        return _follow(experiment)
    log_file = _log_to(folder)
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        results = experiment.run()
        folder.write_status("done", seconds=round(time.perf_counter() - started, 1), accuracy=results["accuracy"])
        return 0
    except KeyboardInterrupt:
        iteration = experiment.training.progress.iteration
        with held_back():  # an impatient second Ctrl-C
            folder.write_status("interrupted", iteration=iteration)
            console.warn(f"interrupted at iteration {iteration}; {_how_to_go_on(folder)}")
        raise
    except FslError as error:
        folder.write_status("failed", error=str(error))
        raise
    except Exception as error:
        console.log.exception("the run failed")
        folder.write_status("failed", error=f"{type(error).__name__}: {error}")
        console.fail(f"{type(error).__name__}: {first_line(error)} (traceback: {folder.log})")
        return 1
    finally:
        signal.signal(signal.SIGTERM, previous)
        console.log.removeHandler(log_file)
        log_file.close()


def _how_to_go_on(folder: RunFolder) -> str:
    if not folder.last.is_file():
        return "nothing has been saved yet"
    if HydraConfig.get().mode is RunMode.MULTIRUN:
        return f"go on with the same command, hydra.sweep.dir={HydraConfig.get().sweep.dir} and resume=auto"
    return f"go on with the same command and resume={folder.path}"


def _follow(experiment: Experiment) -> int:
    """The part of a process that neither writes nor prints; what goes wrong unexpectedly is left to the caller."""
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        experiment.run()
        return 0
    finally:
        signal.signal(signal.SIGTERM, previous)


def _log_to(folder: RunFolder) -> logging.Handler:
    folder.path.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder.log, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    console.log.setLevel(logging.INFO)
    console.log.propagate = False
    console.log.addHandler(handler)
    return handler


def _interrupt(number: int, frame: FrameType | None) -> None:
    """A job scheduler's SIGTERM is treated like Ctrl-C: save, then stop."""
    raise KeyboardInterrupt
