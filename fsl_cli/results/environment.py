"""What a run ran on: versions, commit, device, command line."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsl_cli.compute import processes
from fsl_cli.settings.plugins import Plugin, plugins

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "hydra-core", "omegaconf", "numpy", "scipy", "wandb", "rich", "learn2learn")


def describe(device: torch.device, command: str) -> dict[str, Any]:
    """The content of ``env.json``; ``command`` is what started the run."""
    import torch  # fsl doctor uses the rest of this module to say that it is missing

    return {
        "fsl": version("fsl-cli"),
        "git_commit": git_commit(),
        "command": command,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": processes.current().size,
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor(),
        "packages": {name: version(name) for name in PACKAGES},
        "plugins": {plugin.name: plugin_version(plugin) for plugin in plugins()},
    }


def plugin_version(plugin: Plugin) -> dict[str, str | None]:
    """What identifies the code of a plug-in: version if installed, git commit of its folder, hash of code and configuration."""
    digest = hashlib.sha256()
    for path in sorted(plugin.files()):
        digest.update(path.read_bytes())
    return {
        "version": version(plugin.distribution) if plugin.distribution else None,
        "git_commit": _commit(plugin.conf),
        "digest": digest.hexdigest()[:16],
        "conf": str(plugin.conf),
    }


def version(package: str) -> str | None:
    """Installed version of a package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """Commit of the checkout this code runs from, ``+changes`` when it has uncommitted ones; None outside a checkout."""
    root = Path(__file__).parent.parent.parent
    return _commit(root) if (root / ".git").exists() else None


def _commit(root: Path) -> str | None:
    """The git commit of a folder, ``+changes`` when its checkout has uncommitted ones; None when git tracks no file of it."""
    try:
        if not _git(root, "ls-files", "."):
            return None
        commit = _git(root, "rev-parse", "HEAD")
        return commit + ("+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
