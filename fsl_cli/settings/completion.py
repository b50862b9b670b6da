"""What a shell may offer after the words typed so far: verbs, groups, options, values and run folders. Imports only yaml."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from fsl_cli.settings.conf_files import GROUPS, RESERVED, conf_dir, members
from fsl_cli.settings.literals import words_of, words_of_setting

SHELLS = ("bash", "zsh", "fish")
_OF_VERB: dict[str, tuple[str, ...]] = {"ls": GROUPS, "new": ("algo", "backbone", "dataset"), "completion": SHELLS}
_FOLDERS = {"run", "resume", "hydra.run.dir", "hydra.sweep.dir", "data_dir", "cache_dir", "in"}
_TESTED = ("task", "eval", "hardware", "dataset", "algo", "backbone", "data_dir", "cache_dir")  # what fsl eval may override
_OF_DATA: dict[str, tuple[str, ...]] = {  # the commands of fsl data and their own options
    "ls": (),
    "prepare": (),
    "verify": ("json",),
    "show": ("class", "episode", "split", "to"),
}
_WITH_DATA = ("task", "dataset", "data_dir", "cache_dir")  # what they may override
_SPLITS = ("train", "val", "test")
_WITH_CLASSES = ("algo", "dataset", "backbone")
_IN_GROUPS = (*_WITH_CLASSES, "hardware")


def completions(verbs: Sequence[str], words: Sequence[str]) -> list[str]:
    """What the last word may become.

    Args:
        verbs: the commands.
        words: of a command line behind ``fsl``; the last one is not finished and may be empty.
    """
    *done, last = words or [""]
    verb = next((word for word in done if word in verbs), None)
    if verb is None:
        found = [*verbs, "--help", "--version"]
    elif verb == "data" and not set(done) & set(_OF_DATA):
        found = [*_OF_DATA, "--help"]
    elif verb not in ("train", "eval", "data"):
        found = [*_OF_VERB.get(verb, ()), "--help"]
    elif "=" in last:
        key, _, value = last.partition("=")
        found = [f"{key}={each}" for each in _values(verb, key, value, done)]
    else:
        found = [f"{key}=" for key in _keys(verb, done)] + ["--help"] + ["-m", "--cfg"] * (verb == "train")
    return [each for each in found if each.startswith(last)]


def _keys(verb: str, words: Sequence[str]) -> list[str]:
    keys = [*GROUPS, *_options(words), "hydra.run.dir", "hydra.sweep.dir"]
    if verb == "train":
        return keys
    if verb == "data":
        own = [key for word in words for key in _OF_DATA.get(word, ())]
        return [*own, *(key for key in keys if key.split(".")[0] in _WITH_DATA)]
    return ["run", *(key for key in keys if key.split(".")[0] in _TESTED), "hydra.run.dir"]


def _values(verb: str, key: str, value: str, words: Sequence[str]) -> Iterator[str]:
    earlier, comma, last = value.rpartition(",")  # of a sweep
    if key in GROUPS:
        yield from (f"{earlier}{comma}{name}" for name in members(key))
    elif key == "split" and verb == "data":
        yield from _SPLITS
    elif key in _FOLDERS:
        yield from ["auto"] * (key == "resume")
        yield from _folders(last if not earlier else value, runs=key in ("run", "resume"))
    else:
        yield from (f"{earlier}{comma}{each}" for each in _choices(key, words))


def _choices(key: str, words: Sequence[str]) -> Sequence[str]:
    """The values of a setting or an option that takes only some words."""
    if isinstance(_options(words).get(key), bool):
        return ("true", "false")
    group, _, option = key.partition(".")
    if group not in _WITH_CLASSES:
        return words_of_setting(key)
    targets = {_target(group, name) for name in _chosen(words).get(group, "").split(",")}
    return list(dict.fromkeys(word for target in sorted(targets - {""}) for word in words_of(target, option)))


def _folders(typed: str, *, runs: bool) -> list[str]:
    """Folders that begin with what has been typed; where nothing has, run folders, the newest first."""
    if runs and not typed:
        found = sorted(Path("outputs").glob("train/*/config.yaml"), key=lambda path: path.stat().st_mtime, reverse=True)
        return [str(path.parent) for path in found]
    above, slash, begun = typed.rpartition("/")
    folder = Path(f"{above}{slash}" or ".").expanduser()
    try:
        names = sorted(each.name for each in folder.iterdir() if each.is_dir() and each.name.startswith(begun))
    except OSError:
        return []
    closing = ["" if runs and (folder / name / "config.yaml").is_file() else "/" for name in names]
    return [f"{above}{slash}{name}{end}" for name, end in zip(names, closing, strict=True)]


def _options(words: Sequence[str]) -> dict[str, Any]:
    """The dotted keys and defaults of ``conf/train.yaml`` and of the members that the words choose."""
    settings = _read(conf_dir() / "train.yaml")
    options = _flat({key: value for key, value in settings.items() if key not in ("defaults", "hydra")})
    for group, names in _chosen(words).items():
        for name in names.split(","):
            options |= _of_member(group, name)
    return options


def _chosen(words: Sequence[str]) -> dict[str, str]:
    """The members of the groups that the words choose, separated by commas, or those of ``conf/train.yaml``."""
    defaults = [each for each in _read(conf_dir() / "train.yaml")["defaults"] if isinstance(each, dict)]
    chosen = {group: str(name) for each in defaults for group, name in each.items() if group in _IN_GROUPS}
    return chosen | {key: value for key, _, value in (word.partition("=") for word in words) if key in _IN_GROUPS}


def _of_member(group: str, name: str) -> dict[str, Any]:
    """The options of a member of a group and of those that it starts from; its changes to other settings are left out."""
    member = members(group).get(name)
    if member is None:
        return {}
    content = _read(member.path)
    options: dict[str, Any] = {}
    for each in content.pop("defaults", []):
        if isinstance(each, str) and each != "_self_":
            options |= _of_member(group, each)
    is_global = "# @package _global_" in member.path.read_text(encoding="utf-8").splitlines()[0]
    own = content.get(group, {}) if is_global else content
    return options | _flat({key: value for key, value in own.items() if key not in RESERVED}, f"{group}.")


def _target(group: str, name: str) -> str:
    """Dotted name of the class of a member, or of the member that it starts from; empty: none is named."""
    member = members(group).get(name)
    if member is None:
        return ""
    content = _read(member.path)
    begun = [each for each in content.get("defaults", []) if isinstance(each, str) and each != "_self_"]
    own = str(content.get(group, content).get("_target_", ""))
    return own or next((found for each in begun if (found := _target(group, each))), "")


def _read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
