"""Where metrics go: a JSON-lines file and Weights & Biases."""

from __future__ import annotations

import json
import math
import netrc
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from fsl_cli.errors import FslError, first_line
from fsl_cli.results.files import write_text


class Trackers:
    """Everything that receives what a run measures; without W&B and a file, as in processes other than the first, nothing.

    Args:
        lines: the file, or None.
        wandb: the W&B run, or None.
    """

    def __init__(self, lines: JsonLines | None = None, wandb: WandbRun | None = None) -> None:
        self._lines, self._wandb = lines, wandb

    @property
    def wandb_id(self) -> str | None:
        """What W&B calls the run."""
        return self._wandb.run.id if self._wandb else None

    @property
    def where(self) -> str:
        """Where the run can be looked at."""
        return self._wandb.where if self._wandb else "disabled"

    def log(self, iteration: int, values: Mapping[str, float]) -> None:
        """Record metrics of an iteration."""
        for each in (self._lines, self._wandb):
            if each:
                each.log(iteration, values)

    @property
    def keeps_pictures(self) -> bool:
        """Whether a picture would be kept; to draw one for nobody takes most of a second."""
        return self._wandb is not None

    def picture(self, iteration: int, name: str, png: Path) -> None:
        """Record a picture."""
        if self._wandb:
            self._wandb.picture(iteration, name, png)

    def test(self, iteration: int, values: Mapping[str, float], summary: Mapping[str, Any]) -> None:
        """Record the test: one point of each value, and the summary of the run; ``results.json`` holds the same."""
        if self._wandb:
            self._wandb.log(iteration, values)
            self._wandb.summarise(summary)

    def checkpoint(self, path: Path, metadata: Mapping[str, Any]) -> None:
        """Keep a checkpoint as an artifact."""
        if self._wandb:
            self._wandb.checkpoint(path, metadata)

    def finish(self, exit_code: int) -> None:
        """Close everything; 0 means success."""
        for each in (self._lines, self._wandb):
            if each:
                each.finish(exit_code)


class JsonLines:
    """One JSON object per line: ``iteration`` and the metrics of that moment.

    Args:
        path: the file; appended to.
        upto: iteration a run goes on from; later lines of an earlier attempt are dropped.
    """

    def __init__(self, path: Path, upto: int) -> None:
        kept = [line for line in read_metrics(path) if line["iteration"] <= upto]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")

    def log(self, iteration: int, values: Mapping[str, float]) -> None:
        """Append a line."""
        finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
        self._file.write(json.dumps({"iteration": iteration, **finite}) + "\n")
        self._file.flush()

    def finish(self, exit_code: int) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of a ``metrics.jsonl``; a last line cut off by a crash is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


class WandbRun:
    """A Weights & Biases run whose metrics share one axis, ``iteration``.

    Args:
        folder: run folder; W&B writes below its ``wandb``.
        config: the resolved configuration.
        mode: ``auto``, ``online``, ``offline`` or ``disabled``.
        project, entity, group, name, tags: as W&B knows them.
        run_id: id of the run to go on with, or None for a new one.

    Raises:
        FslError: W&B was asked to be online and cannot; ``auto`` goes offline then.
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
    ) -> None:
        import wandb

        self._wandb, self._offline_because = wandb, ""

        def start(chosen: str) -> Any:
            return wandb.init(
                dir=str(folder),
                config=dict(config),
                mode=chosen,  # type: ignore[arg-type]
                project=project,
                entity=entity,
                group=group,
                name=name,
                tags=list(tags),
                id=run_id,
                resume="allow" if run_id and chosen == "online" else None,
                reinit="finish_previous",
                settings=wandb.Settings(silent=True, console="off", init_timeout=30),
            )

        chosen = resolve_mode(mode)
        try:
            self.run = start(chosen)
        except (wandb.errors.Error, TypeError, ValueError) as error:
            if mode != "auto" or chosen != "online":
                what = f"W&B cannot start {chosen}: {first_line(error)}"
                raise FslError(what, where="wandb.mode", hint="use wandb.mode=offline") from error
            self._offline_because = f" ({first_line(error)})"
            self.run = start("offline")
        self.run.define_metric("iteration")
        self.run.define_metric("*", step_metric="iteration")

    @property
    def where(self) -> str:
        """Where this run can be looked at."""
        if self.run.disabled:
            return "disabled"
        if self.run.offline:
            return f"offline{self._offline_because}, upload with: wandb sync {Path(self.run.dir).parent}"
        return str(self.run.url)

    def log(self, iteration: int, values: Mapping[str, float]) -> None:
        """Log metrics of an iteration."""
        self.run.log({"iteration": iteration, **values})

    def picture(self, iteration: int, name: str, png: Path) -> None:
        """Log a picture."""
        self.run.log({"iteration": iteration, name: self._wandb.Image(str(png))})

    def summarise(self, values: Mapping[str, Any]) -> None:
        """Put values into the run's summary."""
        self.run.summary.update(dict(values))

    def checkpoint(self, path: Path, metadata: Mapping[str, Any]) -> None:
        """Log a checkpoint as an artifact of type ``model``."""
        artifact = self._wandb.Artifact(f"checkpoint-{self.run.id}", type="model", metadata=dict(metadata))
        artifact.add_file(str(path), policy="immutable", skip_cache=True)
        self.run.log_artifact(artifact, aliases=[path.stem])

    def finish(self, exit_code: int) -> None:
        """Close the run, so that the next job of a sweep gets its own."""
        self.run.finish(exit_code=exit_code)


def resolve_mode(mode: str) -> str:
    """``auto`` becomes ``online`` when an API key is configured, else ``offline``; ``WANDB_MODE`` decides first."""
    if mode != "auto":
        return mode
    if os.environ.get("WANDB_MODE") in ("online", "offline", "disabled"):
        return os.environ["WANDB_MODE"]
    return "online" if has_api_key() else "offline"


def has_api_key() -> bool:
    """Whether W&B finds a key in the environment, in its settings or in the netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    import wandb

    settings = wandb.setup().settings
    if settings.api_key:
        return True
    hosts = [urlparse(settings.base_url).netloc]
    if settings.base_url == wandb.Settings().base_url:  # W&B's own server, which has two names
        hosts.append("api.wandb.ai")
    unix, windows = (Path(name).expanduser() for name in ("~/.netrc", "~/_netrc"))
    given = os.environ.get("NETRC")
    path = Path(given).expanduser() if given else unix if unix.exists() else windows  # in W&B's order
    try:
        entries = [netrc.netrc(path).authenticators(host) for host in hosts]
    except (OSError, ValueError, netrc.NetrcParseError):
        return False
    return any(entry and entry[2] for entry in entries)
