"""A Weights & Biases run that never ends or delays the run that it follows."""

from __future__ import annotations

import glob
import math
import shlex
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fsl_cli.errors import FslError, first_line
from fsl_cli.results.wandb_environment import do_without_a_home_folder, resolve_mode, seconds, variable
from fsl_cli.show import console

START = 15.0  # seconds that W&B may take to start; WANDB_INIT_TIMEOUT
# Altogether 15 seconds in which W&B may hold up a run that has started:
FINISH = 9.0  # for its uploads at the end; WANDB_FINISH_TIMEOUT
_ARTIFACT = 4.0  # for reading the checkpoint and asking the server about it
_GRACE = 1.0  # for its own ends of waiting
_TEARDOWN = 1.0  # for stopping its service
_PROMPT = 0.5  # seconds; calls that return sooner do not count


class WandbRun:
    """A W&B run whose metrics share one axis, ``iteration``.

    Once it has started, what goes wrong with W&B is one warning: the run goes on without it, and W&B cannot hold it up for more
    than 15 seconds altogether, unless ``WANDB_FINISH_TIMEOUT`` gives its uploads more than `FINISH` seconds.

    Args:
        folder: run folder; W&B writes below its ``wandb``, or below that of ``WANDB_DIR``.
        config: the resolved configuration; sent with one flat key per option, see `flat`.
        mode: ``auto``, ``online``, ``offline`` or ``disabled``.
        project, entity, group, name, tags: as W&B knows them.
        run_id: id of the run, or None for a new one.
        goes_on: whether a run of this id may be on the server already, to be continued.

    Raises:
        FslError: W&B cannot start as it was asked to; ``auto`` goes offline then.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        *,
        mode: str,
        project: str,
        entity: str | None,
        group: str | None,
        name: str,
        tags: Sequence[str],
        run_id: str | None = None,
        goes_on: bool = False,
    ) -> None:
        do_without_a_home_folder()
        import wandb

        self._wandb, self._offline_because, self._lost = wandb, "", False
        self._folders = [folder / "wandb"]
        self._where = Path(variable("DIR") or folder)
        if self._where != folder:
            self._folders.append(self._where / "wandb")
        self._patience = 0.0
        self._artifact: Callable[[], None] | None = None
        options: dict[str, Any] = {"project": project, "entity": entity, "group": group, "name": name, "tags": list(tags)}
        options |= {"config": flat(config), "id": run_id, "resume": "allow" if goes_on else None}
        chosen = resolve_mode(mode)
        try:
            self.run = self._start(chosen, options)
        except Exception as error:  # W&B raises errors of many kinds
            if mode != "auto" or chosen != "online":
                what = f"W&B cannot start {chosen}: {first_line(error)}"
                raise FslError(what, where="wandb.mode", hint="use wandb.mode=offline") from error
            self._offline_because = f" ({first_line(error)})"
            self.run = self._start("offline", options | {"resume": None})
        self.id = str(self.run.id)
        self._try(lambda: self.run.define_metric("iteration"))
        self._try(lambda: self.run.define_metric("*", step_metric="iteration"))

    def _start(self, mode: Any, options: Mapping[str, Any]) -> Any:
        """Start the run. What a start that fails has left is removed: files, and W&B's service, which would keep the id."""
        existed, before = (self._where / "wandb").exists(), self._fragments("*")
        try:
            finish = seconds("FINISH_TIMEOUT", FINISH)
            self._patience = _ARTIFACT + finish + _GRACE
            settings = self._wandb.Settings(silent=True, console="off", init_timeout=seconds("INIT_TIMEOUT", START))
            if hasattr(settings, "finish_timeout"):  # versions before 0.27 have none
                settings.finish_timeout, settings.finish_timeout_raises = finish, True
            return self._wandb.init(dir=str(self._where), mode=mode, reinit="finish_previous", settings=settings, **options)
        except BaseException:
            _within(_TEARDOWN, self._wandb.teardown)
            for left in set(self._fragments("*")) - set(before) if existed else [self._where / "wandb"]:
                shutil.rmtree(left, ignore_errors=True)
            raise

    @property
    def where(self) -> str:
        """Where this run can be looked at."""
        if self.run.disabled:
            return "disabled"
        if self.run.offline:
            return f"offline{self._offline_because}, upload with: {self.sync_command}"
        return str(self.run.url)

    @property
    def sync_command(self) -> str:
        """The command that uploads the run later: all that it consists of, oldest first, to be pasted into a shell."""
        return shlex.join(["wandb", "sync", *map(str, self._fragments(glob.escape(self.id)))])

    def _fragments(self, run_id: str) -> list[Path]:
        """Folders of W&B in which a run has written, oldest first; their names hold the second in which it began."""
        found = {path for folder in self._folders for path in folder.glob(f"*run-*-{run_id}")}
        return sorted(found, key=lambda path: (path.name.removeprefix("offline-"), path.stat().st_mtime))

    def replay(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Log what ``metrics.jsonl`` already holds, unless the server has it: an upload replaces what was uploaded before."""
        if not self.run.resumed:
            for line in lines:
                numbers = {key: math.nan if value is None else value for key, value in line.items()}
                self.log(int(numbers.pop("iteration")), numbers)

    def log(self, iteration: int, values: Mapping[str, float]) -> None:
        """Log metrics of an iteration."""
        self._try(lambda: self.run.log({"iteration": iteration, **values}))

    def picture(self, iteration: int, name: str, png: Path) -> None:
        """Log a picture."""
        self._try(lambda: self.run.log({"iteration": iteration, name: self._wandb.Image(str(png))}))

    def summarise(self, values: Mapping[str, Any]) -> None:
        """Put values into the run's summary."""
        self._try(lambda: self.run.summary.update(dict(values)))

    def checkpoint(self, path: Path, metadata: Mapping[str, Any]) -> None:
        """Log a checkpoint as an artifact of type ``model`` when the run is closed: W&B asks its server about it, and waits."""

        def send() -> None:
            artifact = self._wandb.Artifact(f"checkpoint-{self.id}", type="model", metadata=dict(metadata))
            artifact.add_file(str(path), policy="immutable", skip_cache=True)
            self.run.log_artifact(artifact, aliases=[path.stem])

        self._artifact = send

    def finish(self, exit_code: int) -> None:
        """Close the run, so that the next job of a sweep gets its own; 0 means success."""
        if not self._lost:
            problem = self._call(self._artifact, min(_ARTIFACT, self._patience)) if self._artifact else None
            self._ended(self._call(lambda: self.run.finish(exit_code=exit_code), self._patience) or problem)

    def _try(self, call: Callable[[], object]) -> None:
        """Do something of W&B's, which may fail or not return; a run that has lost W&B does nothing."""
        if not self._lost:
            self._ended(self._call(call, self._patience))

    def _call(self, call: Callable[[], object], limit: float) -> BaseException | None:
        began = time.monotonic()
        problem = _within(limit, call)
        spent = time.monotonic() - began
        self._patience -= spent if spent > _PROMPT else 0.0
        return problem

    def _ended(self, problem: BaseException | None) -> None:
        """Go on without W&B if there is a problem with it."""
        if problem is not None:
            self._lost = True
            _within(_TEARDOWN, self._wandb.teardown)  # else it would be done, and waited for, when Python ends
            console.warn(
                f"W&B has failed ({first_line(problem)}); the run's results do not depend on it, and metrics.jsonl has every "
                f"metric; upload what W&B has on disk with: {self.sync_command}"
            )


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options under the keys of the command line: ``algo`` is a name, ``algo.inner_lr`` a number.

    W&B's sweeps use the same keys; nested, an ``algo`` that is swept would replace all options of the algorithm.
    """
    found: dict[str, Any] = {}
    for section, value in config.items():
        if isinstance(value, Mapping) and value:
            options = flat(value)
            if "_target_" in value and "name" in value:
                found[section] = options.pop("name")
            found |= {f"{section}.{key}": option for key, option in options.items()}
        else:
            found[section] = value
    return found


def _within(limit: float, call: Callable[[], object]) -> BaseException | None:
    """Call a function and wait at most ``limit`` seconds for it. Returns what it raised, if anything."""
    ended: list[BaseException | None] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:  # SystemExit too, which W&B raises when its service ends badly
            ended.append(error)
        else:
            ended.append(None)

    thread = threading.Thread(target=run, name="fsl-wandb", daemon=True)
    thread.start()
    thread.join(max(limit, 0.0))
    return ended[0] if ended else TimeoutError("it does not answer")
