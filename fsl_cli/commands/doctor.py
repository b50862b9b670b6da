"""`fsl doctor`: what is installed, which device, where data and caches are, whether W&B has a key."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from fsl_cli.errors import FslError
from fsl_cli.results.environment import PACKAGES, git_commit, version
from fsl_cli.results.files import check_writable
from fsl_cli.settings.plugins import plugins
from fsl_cli.settings.resolve import FOLDERS, folder
from fsl_cli.show import console

_REQUIRED = tuple(name for name in PACKAGES if name != "learn2learn")


def main(arguments: Sequence[str]) -> int:
    """Run the verb. Returns 1 when something a run needs is missing, else 0."""
    if arguments:
        raise FslError("fsl doctor takes no arguments", where=arguments[0])
    problems: list[str] = []
    rows = [*_versions(problems), *_plugins(problems), *_device(problems), *_folders(problems), _wandb()]
    console.table("fsl doctor", ("what", "found"), rows)
    for problem in problems:
        console.fail(problem)
    console.say("something a run needs is missing" if problems else "everything a run needs is here")
    return int(bool(problems))


def _versions(problems: list[str]) -> list[tuple[str, str]]:
    rows = [("fsl", f"{version('fsl-cli')}, commit {git_commit() or 'unknown (installed package)'}")]
    rows.append(("python", f"{platform.python_version()} ({sys.executable})"))
    for name in PACKAGES:
        found = version(name)
        if found is None and name in _REQUIRED:
            problems.append(f"{name} is not installed: run make setup, or pip install .")
        note = "not installed: make setup builds it; needed by backbones resnet12, wrn28 and engine=learn2learn"
        rows.append((name, found or (note if name == "learn2learn" else "not installed")))
    return rows


def _plugins(problems: list[str]) -> list[tuple[str, str]]:
    try:
        return [(f"plug-in {each.name}", f"{each.distribution or 'FSL_PLUGINS'}: {each.conf.parent}") for each in plugins()]
    except FslError as error:
        problems.append(str(error))
        return []


def _device(problems: list[str]) -> list[tuple[str, str]]:
    try:
        import torch

        from fsl_cli.compute.hardware import available_devices
    except (ImportError, OSError) as error:
        problems.append(f"torch does not import: {error}")
        return []
    devices = available_devices()
    return [("devices", f"{', '.join(devices)}; auto is {devices[-1]}"), ("threads", str(torch.get_num_threads()))]


def _folders(problems: list[str]) -> list[tuple[str, str]]:
    rows = []
    for name, label, inside in (("data_dir", "data folder", "."), ("cache_dir", "cache folder", "packs")):
        try:
            path = folder(name, os.environ.get(FOLDERS[name][0]))
        except FslError as error:
            problems.append(str(error))
            continue
        rows.append((label, f"{path}: {_contents(path / inside)}"))
        if name == "cache_dir":
            _check_writable(path, problems, f"; set {FOLDERS[name][0]}")
    _check_writable(Path.cwd(), problems)
    return rows


def _check_writable(path: Path, problems: list[str], remedy: str = "") -> None:
    try:
        check_writable(path)
    except FslError as error:
        problems.append(f"{error}{remedy}")


def _contents(path: Path) -> str:
    try:
        names = sorted(each.name for each in path.iterdir() if not each.name.startswith(".")) if path.is_dir() else []
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return ", ".join(names) or "empty"


def _wandb() -> tuple[str, str]:
    from fsl_cli.results.wandb_environment import has_api_key, resolve_mode

    key = "an API key is configured" if has_api_key() else "no API key (wandb login)"
    return "W&B", f"{key}; wandb.mode=auto means {resolve_mode('auto')}"
