"""Tables of results, built from run folders: what a sweep or a scripted meta-test ends with.

python -m fsl_cli.results.tables --row NAME FOLDER ... --markdown FILE --csv FILE
"""

from __future__ import annotations

import argparse
import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fsl_cli.errors import FslError
from fsl_cli.results.files import read_json, write_text
from fsl_cli.results.results import read_results
from fsl_cli.results.run_folder import RunFolder
from fsl_cli.show import console

SCORE = "accuracy %"  # stands for the headline scores of the rows, see `named`
COLUMNS = ("run", "algo", "dataset", "ways", "shots", "seed", "episodes", SCORE, "± 95% CI", "mode", "state")


def with_columns(further: Iterable[str]) -> tuple[str, ...]:
    """The columns of a table with some more after the first one; a key that has a column already gets no second one."""
    said = {"algo", "dataset", "seed", "task.ways", "task.shots"}
    return (COLUMNS[0], *(name for name in further if name not in said), *COLUMNS[1:])


def named(columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> tuple[str, ...]:
    """The columns with the headline scores of the rows, those of each kind of problem in a column of their own."""
    others = {*COLUMNS, *columns}
    labels = list(dict.fromkeys(name for each in rows if each.get("episodes") for name in each if name not in others))
    classified = any(each.get(SCORE) for each in rows)
    at = list(columns).index(SCORE)
    return (*columns[:at], *([SCORE] if classified or not labels else []), *labels, *columns[at + 1 :])


def row(folder: Path, name: str, error: str | None = None) -> dict[str, str]:
    """One line of a table: the results of a run, or why there are none.

    Args:
        folder: run folder, complete or not.
        name: what to call it.
        error: why the latest attempt has left no results there, whatever an earlier one has left.
    """
    run = RunFolder(folder)
    results, status = None, read_json(run.status) or {"state": "failed"}
    try:
        results = read_results(run.results)
    except FslError as unreadable:
        error = str(unreadable)
    if error is not None:
        status = {"state": "failed", "error": error}
    state = str(status["state"])
    if status.get("tested") is False:
        return {**dict.fromkeys(COLUMNS, ""), **_known(run), "run": name, "state": state}
    if results is None or (state != "done" and results.found):  # what was found is what an earlier end of the run has left
        reason = str(status.get("error", "no results" if results is None else "results.json is that of an earlier end"))
        task = {key: str(value) for key, value in status.get("task", {}).items()}
        return {**dict.fromkeys(COLUMNS, ""), **_known(run), **task, "run": name, "state": f"{state}: {reason}"}
    headline, score = results.headline, results.score
    return {
        "run": name,
        "algo": results.algo,
        "dataset": results.dataset,
        "seed": str(results.seed),
        **{key: str(results.task.get(key, "")) for key in ("ways", "shots")},
        "episodes": str(score.n),
        headline.label: headline.number(score.mean),
        "± 95% CI": headline.half_width(score.mean, score.ci95),
        "mode": results.mode,
        "state": f"{state}: {status['error']}" if "error" in status else f"{state}, diverged" if results.diverged else state,
    }


def described(config: Mapping[str, Any]) -> dict[str, str]:
    """What a configuration says of a run that has no results."""
    named = {key: (config.get(key) or {}).get("name") for key in ("algo", "dataset")}
    known = {**named, "seed": config.get("seed"), **(config.get("task") or {})}
    return {key: str(value) for key, value in known.items() if key in COLUMNS and value is not None}


def _known(run: RunFolder) -> dict[str, str]:
    """`described` of a run folder; nothing where its configuration is missing or damaged."""
    try:
        return described(run.read_config())
    except FslError:
        return {}


def markdown(rows: Sequence[dict[str, str]], columns: Sequence[str] = COLUMNS) -> str:
    """Rows as a Markdown table."""
    lines = [list(columns), ["---"] * len(columns)]
    lines += [[each.get(column, "").replace("|", "\\|") for column in columns] for each in rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def comma_separated(rows: Sequence[dict[str, str]], columns: Sequence[str] = COLUMNS) -> str:
    """Rows as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def report(rows: Sequence[dict[str, str]], markdown_file: Path, csv_file: Path, columns: Sequence[str] = COLUMNS) -> int:
    """Write and print a table. Returns 1 if a run in it has failed, else 0."""
    columns = named(columns, rows)
    write_text(markdown_file, markdown(rows, columns))
    write_text(csv_file, comma_separated(rows, columns))
    console.table("results", columns, [[each.get(column, "") for column in columns] for each in rows])
    console.say(f"tables  {markdown_file}  {csv_file}")
    return int(any(each["state"] not in ("done", "done, diverged") for each in rows))


def main() -> int:
    """Command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m fsl_cli.results.tables", description=__doc__)
    parser.add_argument("--row", nargs=2, action="append", required=True, metavar=("NAME", "FOLDER"), help="once for every run")
    parser.add_argument("--markdown", type=Path, required=True)
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--best-first", action="store_true", help="in the order of the score")
    chosen = parser.parse_args()
    named = [(name, Path(folder)) for name, folder in chosen.row]
    if chosen.best_first:
        named.sort(key=lambda each: _rank(each[1]))
    return report([row(folder, name) for name, folder in named], chosen.markdown, chosen.csv)


def _rank(folder: Path) -> tuple[bool, float]:
    """Where a run comes in a table: the best first, those without results last."""
    try:
        results = read_results(RunFolder(folder).results)
    except FslError:  # its row says so
        results = None
    if results is None or math.isnan(results.score.mean):
        return True, 0.0
    return False, -results.score.mean if results.headline.higher_is_better else results.score.mean


if __name__ == "__main__":
    raise SystemExit(main())
