"""Terminal output: messages, progress bars and tables on a rich console; plain lines if the output is not a terminal."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fsl_cli.errors import printable

log = logging.getLogger("fsl")
log.addHandler(logging.NullHandler())  # without it, logging would print warnings to standard error
out = Console(highlight=False, soft_wrap=True)
err = Console(highlight=False, soft_wrap=True, stderr=True)

_PLAIN_SECONDS = 10.0  # between progress lines if the output is not a terminal


def _draws() -> bool:
    """Whether bars and borders can be drawn. FORCE_COLOR, which only asks for colours, does not make a pipe a terminal."""
    return out.is_terminal and out.file.isatty()


def start_log(handler: logging.Handler) -> None:
    """Also send every printed line, and tracebacks, to ``handler``."""
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(handler)


def stop_log(handler: logging.Handler) -> None:
    """Undo `start_log` and close the handler."""
    log.removeHandler(handler)
    handler.close()


def say(text: str, style: str | None = None) -> None:
    """Print one line and write it to the run's log."""
    log.info(text)
    out.print(text, markup=False, style=style)


def warn(text: str) -> None:
    """Print one warning to standard error and write it to the run's log."""
    log.warning(text)
    err.print(f"warning: {printable(text)}", markup=False, style="yellow")


def fail(text: str) -> None:
    """Print one error to standard error and write it to the run's log."""
    log.error(text)
    err.print(f"error: {printable(text)}", markup=False, style="red")


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: with borders on a terminal, otherwise tab-separated."""
    rows = [[printable(cell) for cell in row] for row in rows]
    if not _draws():
        for row in [columns, *rows]:
            print("\t".join(row), file=out.file)  # rich would turn tabs into spaces
        return
    drawn = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        drawn.add_column(column, overflow="fold", no_wrap=number == 0)  # a name can be copied
    for row in rows:
        drawn.add_row(*row)
    out.print(drawn, soft_wrap=False)


@contextmanager
def progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar for ``total`` units; yields the function that advances it. One line if not on a terminal."""
    if not _draws():
        say(f"{description} ...")
        yield lambda amount: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out, transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda amount: bar.advance(task, amount)


class TrainingProgress:
    """The progress bar of training: iterations, the latest metrics, time left. Lines if not on a terminal.

    Args:
        total: total number of iterations.
        done: number of iterations already done.
    """

    def __init__(self, total: int, done: int) -> None:
        self._total, self._done = total, done
        self._last_line = time.monotonic()
        columns = (
            TextColumn("train"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
        )
        self._bar = Progress(*columns, console=out, transient=True) if _draws() else None

    def __enter__(self) -> TrainingProgress:
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task("train", total=self._total, completed=self._done, numbers="")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, iteration: int) -> None:
        """Move the bar to ``iteration``."""
        if self._bar:
            self._bar.update(self._task, completed=iteration)

    def numbers(self, iteration: int, numbers: str, left: float) -> None:
        """Show the latest training metrics and the remaining time, ``left`` in seconds."""
        line = f"{numbers}  {clock(left)} left"
        if self._bar:
            self._bar.update(self._task, numbers=line)
        elif time.monotonic() - self._last_line >= _PLAIN_SECONDS:
            say(f"train {iteration}/{self._total}  {line}")
            self._last_line = time.monotonic()


def size(count: float) -> str:
    """A number of bytes in kB, MB or GB, powers of 1,000."""
    for unit in ("bytes", "kB", "MB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 9.95 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"


def clock(seconds: float) -> str:
    """Seconds as ``m:ss`` or ``h:mm:ss``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
