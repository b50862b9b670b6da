"""Runs as flat records, to be read into a table of another program."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fsl_cli.errors import FslError
from fsl_cli.results.files import read_json
from fsl_cli.results.run_folder import RunFolder


def records(places: Iterable[Path]) -> list[dict[str, Any]]:
    """One record for each run folder in some places and below them, the oldest first.

    Args:
        places: folders.

    Returns:
        ``folder`` and ``state``, then what its files hold under dotted names: ``results.*`` as in ``results.json`` and
        ``config.*`` as in ``config.yaml``. Of a run without results the first are missing.
    """
    folders = {path.parent for place in places for path in [*place.rglob("config.yaml")]}
    runs = [RunFolder(folder) for folder in folders if (folder / "status.json").is_file()]
    return [_record(run) for run in sorted(runs, key=lambda run: (run.config.stat().st_mtime, str(run.path)))]


def _record(run: RunFolder) -> dict[str, Any]:
    try:
        config = run.read_config()
    except FslError:  # a damaged file must not hide the others
        config = {}
    status = read_json(run.status) or {}
    state = status.get("state", "unknown") + ("; results of an earlier end" if "earlier" in status else "")
    results = read_json(run.results) or {}
    return {"folder": str(run.path), "state": state} | _flat(results, "results.") | _flat(config, "config.")


def _flat(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
