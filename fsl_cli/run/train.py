"""A planned run, trained and tested; and every job of a sweep, with the table that it ends with."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fsl_cli.compute import processes
from fsl_cli.compute.signals import exit_code
from fsl_cli.errors import FslError
from fsl_cli.results import tables
from fsl_cli.results.files import read_json
from fsl_cli.results.results import Results
from fsl_cli.results.run_folder import RunFolder
from fsl_cli.run.experiment import Experiment
from fsl_cli.run.lifecycle import Life, lifecycle
from fsl_cli.run.plan import Job, Plan, plan_job
from fsl_cli.settings.compose import current_job
from fsl_cli.settings.overrides import swept
from fsl_cli.show import console
from fsl_cli.show.streams import lasting_streams


def train(plan: Plan) -> Results | None:
    """Run the one job of a plan.

    Returns:
        The results of its test; None if the test split stays closed.
    """
    plan = processes.current().from_first(plan.placed)
    (job,) = plan.jobs
    done: list[Results | None] = []

    def run(config: DictConfig) -> None:
        with lifecycle(job.folder, resume_hint=f"go on with the same command and resume={job.folder}") as life:
            done.append(_train(job, life)[1])

    plan.composer.start(plan.config, run)
    return done[0]


def train_sweep(plan: Plan) -> int:
    """Run all jobs of a sweep, and print and write its table, which is read from the folders of the jobs.

    Returns:
        The exit code: that of the worst job.
    """
    interrupted, plan = 0, plan.placed()
    try:
        plan.composer.start_sweep(plan.config, SweepTask(plan))
    except KeyboardInterrupt as interrupt:
        interrupted = exit_code(interrupt)
    finally:  # also when a sweeper gives up: what its jobs have found is not lost
        code = _table(plan)
    return max(code, interrupted)


class SweepTask:
    """One job of a sweep, as Hydra calls it; it can be sent to another process or machine.

    Args:
        plan: the sweep.
    """

    def __init__(self, plan: Plan) -> None:
        self._jobs = {job.number: job for job in plan.jobs}
        self._sweep, self._launch, self._command = plan.folder, plan.launch, plan.command

    @lasting_streams()
    def __call__(self, config: DictConfig) -> float:
        """Run the job that Hydra has started.

        Returns:
            The best validation score, which sweepers go by; NaN when the job has failed. Never a test score.
        """
        folder, number, words = current_job()
        console.say(f"job {number}  {' '.join(words)}", style="bold cyan")
        hint = f"go on with the same command, hydra.sweep.dir={self._sweep} and resume=auto"
        identity = {"launch": self._launch, "job": number, "overrides": words}
        try:
            with lifecycle(folder, identity=identity, resume_hint=hint) as life:
                job = self._jobs.get(number) or plan_job(config, folder, words, number, self._sweep, self._command)
                best = _train(job, life)[0].training.progress.best_score
                return math.nan if best is None else best
        except FslError as error:  # the other jobs go on
            console.fail(str(error))
            return math.nan


def _train(job: Job, life: Life) -> tuple[Experiment, Results | None]:
    experiment = processes.current().together(lambda: Experiment(job, life))
    results = experiment.run()
    life.done(**(results.status() if results else {"tested": False}))
    return experiment, results


def _table(plan: Plan) -> int:
    """The table of a sweep. Returns the exit code: 0 if every job is done, else that of the worst."""
    folders = [job.folder for job in plan.jobs] or _started(plan)
    statuses = [_status(folder, plan.launch) for folder in folders]
    values = swept([job.overrides for job in plan.jobs] or [status["overrides"] for status in statuses])
    columns = tables.with_columns(values[0] if values else ())
    rows = [
        tables.row(folder, os.path.relpath(folder, plan.folder), status.get("error"))
        | {key: value for key, value in each.items() if key in columns}  # others have a column already
        for folder, status, each in zip(folders, statuses, values, strict=True)
    ]
    for row, job in zip(rows, plan.jobs, strict=False):  # also of a job that has failed before it wrote what it is
        row |= tables.described(job.config)
    tables.report(rows, plan.folder / "results.md", plan.folder / "results.csv", columns)
    return max((int(status["exit_code"]) for status in statuses), default=0)


def _status(folder: Path, launch: str) -> Mapping[str, Any]:
    """How a job of this sweep has ended; a job that has left no end counts as failed."""
    status = _left(folder, launch)
    if not status:
        return {"error": "it was not started", "exit_code": 1}
    if "exit_code" not in status:
        return {**status, "error": f"it has not ended: its status is {status['state']}", "exit_code": 1}
    return status


def _left(folder: Path, launch: str) -> Mapping[str, Any]:
    """What this launch of a job has left in ``status.json``; empty: nothing, at most an earlier launch has."""
    status = read_json(RunFolder(folder).status) or {}
    attempts = (status, status.get("refused", {}))
    return next((each for each in attempts if each.get("launch") == launch), {})


def _started(plan: Plan) -> Sequence[Path]:
    """Folders of the jobs that a sweeper has started, in the order of their numbers."""
    found = {path.parent: _left(path.parent, plan.launch) for path in plan.folder.rglob("status.json")}
    return sorted((folder for folder, left in found.items() if left), key=lambda folder: found[folder]["job"])
