"""Command-line overrides: flags, the grammar, the jobs of a sweep, and what is wrong with words that Hydra cannot compose."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from fsl_cli.errors import FslError, close_match, raise_all
from fsl_cli.settings.conf_files import GROUPS, RESERVED, TUNED, choices
from fsl_cli.settings.words import unparsed_hint

_FLAGS_WITH_VALUE = {
    "--cfg",
    "-c",
    "--package",
    "-p",
}
_FLAGS = {"--multirun", "-m", "--resolve", "--info", "-i", "--hydra-help"}


def split_flags(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate flags from overrides, wherever they stand (Hydra itself wants all flags in front).

    ``--key=value``, as the agents of sweeps call programs, is the override ``key=value``.

    Raises:
        FslError: an unknown flag, or one that lacks its value.
    """
    flags: list[str] = []
    overrides: list[str] = []
    rest = iter(arguments)
    for word in rest:
        name = word.split("=")[0]
        if word in ("--info", "-i"):
            flags.append("--info=all")  # Hydra would take the next word for what to show
        elif name in _FLAGS or (name in _FLAGS_WITH_VALUE and "=" in word):
            flags.append(word)
        elif name in _FLAGS_WITH_VALUE:
            value = next(rest, None)
            if value is None:
                raise FslError("needs a value", where=word)
            flags += [word, value]
        elif re.match(r"--[A-Za-z_][\w./@]*=", word):
            overrides.append(word.removeprefix("--"))
        elif word.startswith("-"):
            value = next(rest, "-")
            apart = re.fullmatch(r"--[A-Za-z_][\w./@]*", word) and not (value.startswith("-") or "=" in value)
            flags_there_are = _FLAGS | _FLAGS_WITH_VALUE | {"--help"}
            hint = f"write {word.lstrip('-')}={value}" if apart else close_match(word, flags_there_are)
            raise FslError("unknown flag", where=word, hint=hint)
        else:
            overrides.append(word)
    return flags, overrides


def parse(overrides: Sequence[str], loader: ConfigLoader | None = None) -> list[Override]:
    """Parse Hydra's override grammar.

    Args:
        overrides: the words.
        loader: knows what ``glob(...)`` may stand for.

    Raises:
        Problems: words that are no overrides, and keys that are given several times, all of them.
    """
    parser, parsed, problems = OverridesParser.create(loader), [], []
    for word in overrides:
        try:
            override = parser.parse_override(word)
        except HydraException:
            override = None
        if override and override.key_or_group:
            override.config_loader = loader
            parsed.append(override)
        else:
            problems.append(FslError("is no override", where=word, hint=unparsed_hint(word)))
    raise_all(problems + _repeated(parsed))
    return parsed


def _repeated(parsed: Sequence[Override]) -> list[FslError]:
    """Keys that are given several times, as by ``seed={0,1,2}`` in bash."""
    words: dict[str, list[str]] = {}
    for each in parsed:
        if not each.is_delete():
            words.setdefault(each.get_key_element().lstrip("+"), []).append(_place(each))
    problems = []
    for key, given in words.items():
        if len(given) > 1:
            values = ",".join(word.partition("=")[2] for word in given)
            hint = f"write it once; a sweep is {key}={values}, since bash turns {{{values}}} into {len(given)} words"
            problems.append(FslError(f"{key} is given {len(given)} times", where=" ".join(given), hint=hint))
    return problems


def group_problems(parsed: Sequence[Override]) -> list[FslError]:
    """Config groups that are added, deleted, or given a member that does not exist."""
    hint = "override the options themselves, such as algo.inner_lr=0.01"
    chosen = [each for each in parsed if each.key_or_group.lstrip("+~") == TUNED]
    found = [FslError("follows from algo and dataset", where=_place(each), hint=hint) for each in chosen]
    return found + [problem for each in parsed if _is_group(each) for problem in _group_problems(each)]


def key_problems(words: Sequence[str], compose: Callable[[Sequence[str]], DictConfig]) -> list[FslError]:
    """Keys of one job's overrides that its configuration does not have.

    Args:
        words: overrides of one job, whose groups exist.
        compose: composes a configuration; called with the groups alone.
    """
    parsed = parse(words)
    known = compose([word for word, each in zip(words, parsed, strict=True) if _is_group(each)])
    keys = [each for each in parsed if not _is_group(each) and not is_hydras(each)]
    return [problem for each in keys for problem in _key_problems(each, known)]


def jobs(parsed: Sequence[Override]) -> list[list[str]]:
    """The overrides of every job of a grid, in Hydra's order; one job when nothing is swept.

    Raises:
        FslError: an interval, which a grid cannot enumerate.
    """
    for each in parsed:
        if each.is_sweep_override() and not each.is_discrete_sweep():
            hint = "name the values: a,b,c or range(1,10); or choose a sweeper that draws them, such as hydra/sweeper=optuna"
            raise FslError("a grid cannot sweep this", where=_place(each), hint=hint)
    return [list(job) for batch in BasicSweeper.split_arguments(list(parsed), max_batch_size=None) for job in batch]


def swept(every_job: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    """For each job of a sweep, the keys that have other values in other jobs, with their values."""
    values = [dict(word.lstrip("+").split("=", 1) for word in job if "=" in word) for job in every_job]
    keys = sorted({key for each in values for key in each}, key=lambda key: [key in each for each in values].index(True))
    different = [key for key in keys if len({each.get(key) for each in values}) > 1]
    return [{key: each.get(key, "") for key in different} for each in values]


def _is_group(override: Override) -> bool:
    return override.key_or_group.lstrip("+~") in GROUPS


def is_hydras(override: Override) -> bool:
    """Whether an override is about Hydra itself, such as ``hydra.run.dir=FOLDER``."""
    return override.key_or_group.lstrip("+~").startswith(("hydra.", "hydra/"))


def _group_problems(override: Override) -> list[FslError]:
    group = override.key_or_group
    if override.is_delete() or override.is_add():
        return [FslError("a group cannot be added or deleted", where=_place(override), hint=f"{group}=NAME")]
    values = override.sweep_string_iterator() if override.is_discrete_sweep() else [str(override.value())]
    unknown = [value for value in values if value not in choices(group)]
    place = (lambda value: f"{group}={value}") if override.is_discrete_sweep() else (lambda value: _place(override))
    return [
        FslError(f"there is no {group} {value}", where=place(value), hint=close_match(value, choices(group)))
        for value in unknown
    ]


def _key_problems(override: Override, known: DictConfig) -> list[FslError]:
    key = override.key_or_group
    place = _place(override)
    if "/" in key:
        return [FslError("there is no such group", where=place, hint=close_match(key, GROUPS))]
    section, _, rest = key.partition(".")
    if override.is_add() and rest and section in known:
        return []  # the checks of that section decide
    if OmegaConf.select(known, key, throw_on_missing=False) is None and key not in all_keys(known):
        siblings = [name for name in all_keys(known) if rest and name.startswith(f"{section}.")]
        hint = close_match(key, siblings or [*GROUPS, *all_keys(known)])
        return [FslError("there is no such key", where=place, hint=hint)]
    return []


def all_keys(config: DictConfig, prefix: str = "") -> list[str]:
    """Dotted names of everything a user may set in a configuration."""
    keys: list[str] = []
    for name in map(str, config):
        if name in RESERVED and prefix.split(".")[0] in GROUPS:
            continue
        node = config._get_node(name)
        if isinstance(node, DictConfig) and not (node._is_none() or node._is_missing() or node._is_interpolation()):
            keys += all_keys(node, f"{prefix}{name}.")
        else:
            keys.append(f"{prefix}{name}")
    return keys


def _place(override: Override) -> str:
    """The override as it was typed."""
    return override.input_line or override.key_or_group
