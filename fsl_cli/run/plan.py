"""From the words of a command line to jobs: each composed once and checked once, before any work.

A run starts from its `Job`. A sweep whose jobs a sweeper chooses while it runs, such as Optuna, has no jobs beforehand: each
is planned when it is about to start, and only what its jobs have in common is checked before.
"""

from __future__ import annotations

import shlex
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fsl_cli.compute import processes
from fsl_cli.errors import FslError, Problems, raise_all
from fsl_cli.results.files import check_writable
from fsl_cli.results.run_folder import RunFolder, make_new
from fsl_cli.run.new_folder import warn_of_new_folder
from fsl_cli.settings import overrides
from fsl_cli.settings.compose import (
    Composer,
    grid_of_sweeper,
    has_own_sweeper,
    is_new,
    job_folder,
    run_folder,
    sweep_folder,
    without_hydra,
)
from fsl_cli.settings.resolve import resolve, validate
from fsl_cli.settings.saved import completed
from fsl_cli.settings.schema import Settings
from fsl_cli.settings.words import as_typed
from fsl_cli.show import console

_MANY_JOBS = 10  # checking more takes seconds, which a progress bar shows


@dataclass(frozen=True)
class Job:
    """One training run, checked.

    Attributes:
        settings: what it is going to do.
        config: the same as plain containers, which is saved in its folder.
        folder: where it writes.
        command: the command line that it is part of.
        overrides: the words that make it what it is.
        number: its number in a sweep, None for a run by itself.
        sweep: folder of the sweep, None for a run by itself.
    """

    settings: Settings
    config: dict[str, Any]
    folder: Path
    command: str
    overrides: tuple[str, ...]
    number: int | None = None
    sweep: Path | None = None

    def moved(self, old: Path, new: Path) -> Job:
        """The job of a run or a sweep whose folder is ``new`` instead of ``old``."""
        folder = new / self.folder.relative_to(old) if self.folder.is_relative_to(old) else self.folder
        return replace(self, folder=folder, sweep=new if self.sweep else None)


@dataclass(frozen=True)
class Plan:
    """What ``fsl train`` is going to do.

    Attributes:
        composer: what has composed the configurations, and starts the jobs.
        config: of the run with its ``hydra`` part; of a sweep, what its jobs have in common.
        jobs: the jobs in their order; none when a sweeper chooses them.
        folder: folder of the run or of the sweep.
        new: whether the folder is named after the time, and must be one that no other process has.
        command: the command line.
        launch: another one for every plan, so that what earlier jobs have left in a folder is not taken for a result of this.
    """

    composer: Composer
    config: DictConfig
    jobs: list[Job]
    folder: Path
    new: bool
    command: str
    launch: str = field(default_factory=lambda: uuid.uuid4().hex)

    def placed(self) -> Plan:
        """The plan in the folder that it is going to have; one that is named after the time is made here.

        Raises:
            FslError: the folder cannot be made.
        """
        if not self.new:
            return self
        folder = make_new(self.folder)
        self.composer.place(self.config, folder)
        return replace(self, folder=folder, jobs=[job.moved(self.folder, folder) for job in self.jobs])


def plan_run(words: Sequence[str]) -> Plan:
    """Plan one run.

    Raises:
        Problems: everything that is wrong with it.
    """
    composer, command, words = Composer("train"), shlex.join(["fsl", "train", *words]), as_typed(words)
    config = compose_one(composer, words, "fsl train", "add -m to run them all")
    folder, new = run_folder(config), is_new(config)
    job = _checked(config, folder, command, words)
    check_writable(folder)
    if new and job.settings.resume == "auto":
        warn_of_new_folder(command, "hydra.run.dir", folder, job.config)
    composer.place(config, folder)
    return Plan(composer, config, [job], folder, new, command)


def compose_one(composer: Composer, words: Sequence[str], command: str, hint: str) -> DictConfig:
    """The configuration of words that make one job, as `as_typed` returns them.

    Args:
        composer: composes it.
        words: overrides.
        command: of which they are the words, for messages.
        hint: what to do if they make several jobs.

    Raises:
        Problems: groups and keys that do not exist.
        FslError: they make several jobs, or Hydra cannot compose them.
    """
    every_job = overrides.jobs(_parsed(composer, words))
    if len(every_job) > 1:
        raise FslError(f"these overrides make {len(every_job)} jobs", where=command, hint=hint)
    return _composed(composer, words, lambda: composer.compose(words))


def plan_sweep(words: Sequence[str]) -> Plan:
    """Plan a sweep.

    Raises:
        Problems: everything that is wrong with any of its jobs.
    """
    if processes.launched():
        raise FslError("a sweep runs in one process", where="fsl train -m", hint="start each job with torchrun")
    composer, command, words = Composer("train"), shlex.join(["fsl", "train", "-m", *words]), as_typed(words)
    parsed = _parsed(composer, words)
    fixed = [word for word, each in zip(words, parsed, strict=True) if not each.is_sweep_override()]
    sweep = _composed(composer, fixed, lambda: composer.compose(words, multirun=True))
    folder, new = sweep_folder(sweep), is_new(sweep)
    check_writable(folder)
    composer.place(sweep, folder)
    of_sweeper = composer.parse(grid_of_sweeper(sweep))
    of_jobs = of_sweeper + [each for each in parsed if not overrides.is_hydras(each)]
    jobs = [] if has_own_sweeper(sweep) else _jobs(composer, sweep, folder, command, overrides.jobs(of_jobs))
    if new and jobs and jobs[0].settings.resume == "auto":
        warn_of_new_folder(command, "hydra.sweep.dir", folder, jobs[0].config, jobs[0].folder.relative_to(folder))
    return Plan(composer, sweep, jobs, folder, new, command)


def plan_job(config: DictConfig, folder: Path, words: Sequence[str], number: int, sweep: Path, command: str) -> Job:
    """The job that a sweeper has chosen; its configuration comes without its ``hydra`` part.

    Raises:
        Problems: everything that is wrong with it.
    """
    return _checked(config, folder, command, words, number=number, sweep=sweep)


def check(words: Sequence[str]) -> None:
    """Check the words of every job without planning it.

    Raises:
        Problems: groups and keys that do not exist.
    """
    composer, words = Composer("train"), as_typed(words)
    for job in overrides.jobs(_parsed(composer, words)):
        _composed(composer, job, partial(composer.compose, job))


def _jobs(composer: Composer, sweep: DictConfig, folder: Path, command: str, every_job: Sequence[Sequence[str]]) -> list[Job]:
    jobs: list[Job] = []
    problems: list[FslError] = []
    bar = console.progress(f"checking {len(every_job)} jobs", len(every_job)) if len(every_job) > _MANY_JOBS else _silent()
    with bar as advance:
        for number, words in enumerate(every_job):
            try:
                config = _composed(composer, words, partial(composer.compose_job, sweep, words, number))
                jobs.append(_checked(config, job_folder(config), command, words, number=number, sweep=folder))
                _check_folder(jobs[-1])
            except Problems as error:
                problems += error.problems
            except FslError as error:
                problems.append(error)
            advance(1)
    raise_all(problems)
    return jobs


def _silent() -> AbstractContextManager[Callable[[int], None]]:
    return nullcontext(lambda amount: None)


def _check_folder(job: Job) -> None:
    """Raise `FslError` if the job may not write to its folder, or go on with what is there."""
    from fsl_cli.results.checkpoint import check_same_configuration  # these two need torch, which other problems do not
    from fsl_cli.run.resuming import resume_point

    folder = RunFolder(job.folder)
    if resume_point(job.settings.resume, job.config, folder) == folder.last and folder.config.is_file():
        check_same_configuration(completed(folder.read_config()), completed(job.config), folder.last)


def _parsed(composer: Composer, words: Sequence[str]) -> list[Any]:
    """The words, whose groups exist; when one does not, an error that names the unknown keys of all words too."""
    parsed = composer.parse(words)
    problems = overrides.group_problems(parsed)
    if problems:
        wrong = {problem.where.partition("=")[0].lstrip("+~") for problem in problems if problem.where}
        known = [each for each in parsed if each.key_or_group.split(".")[0] not in wrong and each.key_or_group not in wrong]
        problems += [found for job in overrides.jobs(known)[:1] for found in overrides.key_problems(job, composer.compose)]
    raise_all(problems)
    return parsed


def _composed(composer: Composer, words: Sequence[str], compose: Callable[[], DictConfig]) -> DictConfig:
    """What ``compose`` gives; when Hydra refuses, an error that names the keys that do not exist."""
    try:
        config = compose()
        if any(word.startswith("+") for word in words):  # Hydra adds whatever it is told to
            raise_all(overrides.key_problems(words, composer.compose))
        return config
    except Problems:
        raise
    except FslError:
        raise_all(_not_installed(composer, words) or overrides.key_problems(words, composer.compose))
        raise


def _not_installed(composer: Composer, words: Sequence[str]) -> list[FslError]:
    """Launchers and sweepers that are named but not there: they come in packages of their own."""
    problems = []
    for word in words:
        group, _, name = word.lstrip("+").partition("=")
        if group in ("hydra/launcher", "hydra/sweeper") and name not in composer.members(group):
            package = f"hydra-{name}-{group.removeprefix('hydra/')}"
            hint = f"installed: {', '.join(composer.members(group))}; others come in packages, such as {package}"
            problems.append(FslError(f"there is no {name}", where=word, hint=hint))
    return problems


def _checked(config: DictConfig, folder: Path, command: str, words: Sequence[str], **of_sweep: Any) -> Job:
    plain = resolve(without_hydra(config))
    return Job(validate(plain), plain, folder, command, tuple(words), **of_sweep)
