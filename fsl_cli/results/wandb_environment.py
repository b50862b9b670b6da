"""What W&B's environment says: the mode, whether there is an API key, and names that a call leaves open."""

from __future__ import annotations

import netrc
import os
import tempfile
from pathlib import Path
from urllib.parse import urlparse


def resolve_mode(mode: str) -> str:
    """``auto`` becomes ``online`` when an API key is configured, else ``offline``; ``WANDB_MODE`` decides first."""
    if mode != "auto":
        return mode
    if os.environ.get("WANDB_MODE") in ("online", "offline", "disabled"):
        return os.environ["WANDB_MODE"]
    return "online" if has_api_key() else "offline"


def variable(name: str) -> str | None:
    """The environment variable ``WANDB_name``; None when it is not set or empty."""
    return os.environ.get(f"WANDB_{name}") or None


def tags() -> list[str]:
    """The tags of ``WANDB_TAGS``, which are separated by commas."""
    return [tag.strip() for tag in (variable("TAGS") or "").split(",") if tag.strip()]


def run_id(job: int | None) -> str | None:
    """The id that ``WANDB_RUN_ID`` gives a new run; each job of a sweep gets its number behind it, so that ids differ."""
    given = variable("RUN_ID")
    return given if given is None or job is None else f"{given}-{job}"


def seconds(name: str, default: float) -> float:
    """The number in the environment variable ``WANDB_name``, or the default.

    Raises:
        ValueError: it is not a number.
    """
    return float(variable(name) or default)


def do_without_a_home_folder() -> None:
    """Where there is no home folder, tell W&B another place for its settings and caches, since it fails without one."""
    if os.path.expanduser("~") == "~":
        missing = [name for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR") if not os.environ.get(name)]
        os.environ |= dict.fromkeys(missing, tempfile.mkdtemp(prefix="wandb-") if missing else "")


def has_api_key() -> bool:
    """Whether W&B finds a key in the environment, in its settings or in the netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    do_without_a_home_folder()
    import wandb

    settings = wandb.setup().settings
    if settings.api_key:
        return True
    hosts = [urlparse(settings.base_url).netloc]
    if settings.base_url == wandb.Settings().base_url:  # W&B's own server, which has two names
        hosts.append("api.wandb.ai")
    unix, windows = (Path(os.path.expanduser(name)) for name in ("~/.netrc", "~/_netrc"))
    given = os.environ.get("NETRC")
    path = Path(os.path.expanduser(given)) if given else unix if unix.exists() else windows  # in W&B's order
    try:
        entries = [netrc.netrc(path).authenticators(host) for host in hosts]
    except (OSError, ValueError, netrc.NetrcParseError):
        return False
    return any(entry and entry[2] for entry in entries)
