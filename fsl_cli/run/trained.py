"""A trained run: its saved configuration with changes on top, its weights, and testing it again."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fsl_cli.compute import processes
from fsl_cli.datasets.dataset import SplitName
from fsl_cli.errors import FslError
from fsl_cli.results import checkpoint
from fsl_cli.results.files import check_writable
from fsl_cli.results.results import Results
from fsl_cli.results.run_folder import RunFolder, make_new
from fsl_cli.run import lines
from fsl_cli.run.lifecycle import lifecycle
from fsl_cli.run.meta_test import meta_test
from fsl_cli.run.parts import Parts, assemble
from fsl_cli.settings import build, overrides, plain_yaml
from fsl_cli.settings.compose import Composer, is_new, run_folder
from fsl_cli.settings.resolve import validate_model
from fsl_cli.settings.saved import changed, completed, named_files, without_unknown
from fsl_cli.settings.schema import ModelSettings
from fsl_cli.settings.sizes import largest, read_ways
from fsl_cli.settings.words import as_typed
from fsl_cli.show import console


@dataclass(frozen=True)
class Trained:
    """A trained run as it is going to be used.

    Attributes:
        run: the folder of the run.
        settings: its settings with the changes.
        config: the same as plain containers.
        trained_ways: ways of the task that it was trained for; None: it has none.
        trained_on: the data set that it was trained on, as saved.
    """

    run: RunFolder
    settings: ModelSettings
    config: dict[str, Any]
    trained_ways: int | None
    trained_on: Mapping[str, Any]

    @property
    def checkpoint(self) -> Path:
        """The checkpoint that ``eval.checkpoint`` chooses."""
        return self.run.best if self.settings.eval.checkpoint == "best" else self.run.last

    def load(self, splits: tuple[SplitName, ...]) -> tuple[Parts, int]:
        """Build the parts and put the weights of the checkpoint into the algorithm.

        Args:
            splits: the splits that episodes are going to be drawn from.

        Returns:
            The parts, and the iteration that the checkpoint is from. Pictures have the shape of those of the training.

        Raises:
            FslError: a part cannot be built, or the checkpoint does not fit; vectors are not as wide as those of the training.
        """
        several = processes.current()
        payload = several.from_first(lambda: checkpoint.load(self.checkpoint))
        shape, name = self._trained_shape(payload), self.trained_on.get("name")
        parts = several.together(
            lambda: assemble(
                self.settings,
                trained_ways=self.trained_ways,
                splits=splits,
                trained_shape=shape,
                saved=payload,
                trained_on=None if name in (None, self.settings.dataset["name"]) else str(name),
            )
        )
        checkpoint.load_weights(parts.algorithm, payload, self.checkpoint)
        return parts, payload["progress"]["iteration"]

    def _trained_shape(self, payload: Mapping[str, Any]) -> tuple[int, ...] | None:
        """Shape of the examples of the training; None if it is not known.

        Runs of versions before 0.2.0 do not say it. Their data sets do, which are only asked if they name no files.
        """
        if "example_shape" in payload:
            return tuple(payload["example_shape"])
        if any(value is not None for value in named_files({"dataset": self.trained_on}).values()):
            return None
        folders = {"data_dir": self.settings.data_dir, "cache_dir": self.settings.cache_dir}
        try:
            return tuple(build.build(self.trained_on, "dataset", folders).example_shape)
        except FslError:  # a data set of a plug-in that is not here
            return None


def open_run(run: str | os.PathLike[str], words: Sequence[str] = ()) -> Trained:
    """Open a trained run with overrides on top of its saved configuration.

    Raises:
        FslError: there is no such run.
        Problems: overrides that are wrong, all of them.
    """
    folder = RunFolder(Path(os.path.expanduser(run)).absolute())
    saved, unknown = without_unknown(folder.read_config())
    if unknown:
        console.warn(f"{folder.config}: {', '.join(unknown)}: unknown to this version of fsl, and ignored")
    ways = _trained_ways(saved, folder)
    config = changed(saved, overrides.parse(as_typed(words)))
    return Trained(folder, validate_model(config), config, ways, completed(saved).get("dataset", {}))


def _trained_ways(saved: Mapping[str, Any], folder: RunFolder) -> int | None:
    """``task.ways`` of a saved configuration, which the weights depend on: there is no default for it."""
    task, where = saved.get("task"), f"{folder.config}: task.ways"
    if not isinstance(task, Mapping) or "ways" not in task:
        raise FslError("is missing: the classes of an episode that it was trained for", where=where)
    try:
        return largest(read_ways(task["ways"]))
    except ValidationError as error:
        what = f"{task['ways']!r} is not valid (should be a valid integer, or a range such as 5..20)"
        raise FslError(what, where=where) from error


@dataclass(frozen=True)
class TestJob:
    """A test of a trained run, checked.

    Attributes:
        trained: the run.
        folder: where the results go.
        new: whether the folder is named after the time, and must be one that no other process has.
        command: the command line.
    """

    __test__ = False  # not a test of pytest's

    trained: Trained
    folder: Path
    new: bool
    command: str

    def placed(self) -> TestJob:
        """The test in the folder that it is going to have; one that is named after the time is made here.

        Raises:
            FslError: the folder cannot be made.
        """
        return replace(self, folder=make_new(self.folder)) if self.new else self


def plan_test(run: str | os.PathLike[str], words: Sequence[str]) -> TestJob:
    """Plan the test of a trained run.

    Args:
        run: its folder.
        words: overrides of its saved configuration, and Hydra's own, such as ``hydra.run.dir=FOLDER``.

    Raises:
        Problems: everything that is wrong with it.
    """
    command, words = shlex.join(["fsl", "eval", f"run={run}", *words]), as_typed(words)
    parsed = overrides.parse(words)
    own = [word for word, each in zip(words, parsed, strict=True) if overrides.is_hydras(each)]
    trained = open_run(run, [word for word in words if word not in own])
    if trained.settings.eval.episodes == 0:
        raise FslError("0 is not valid: there is nothing else to do", where="eval.episodes", hint="use at least 2")
    config = Composer("eval").compose(own)
    config.run = plain_yaml.escaped(os.fspath(run))  # the name of the folder may have ${run} in it
    folder, new = run_folder(config), is_new(config)
    check_writable(folder)
    if not new:
        RunFolder(folder).check_free("choose another hydra.run.dir")
    return TestJob(trained, folder, new, command)


def test_again(job: TestJob) -> Results:
    """Meta-test a trained run again."""
    job = processes.current().from_first(job.placed)
    trained = job.trained
    with lifecycle(job.folder, identity={"run": str(trained.run.path)}) as life:
        parts, iteration = trained.load(("test",))
        processes.current().together(lambda: life.begin(trained.config, parts.hardware.device, job.command))
        name = trained.checkpoint.stem
        console.say(lines.header(trained.settings, parts), style="bold")
        console.say(f"run     {trained.run.path}, checkpoint {name}, iteration {iteration}")
        lines.say_data(parts)
        lines.say_normalization(parts)
        console.say(f"folder  {job.folder}")
        results = meta_test(trained.settings, parts, life.folder, name, iteration)
        life.done(**results.status())
        return results
