"""Command-line overrides: flags first, then every group and key checked against the configuration before Hydra sees them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fsl_cli.errors import FslError, close_match, first_line, raise_all
from fsl_cli.settings.conf_files import GROUPS, RESERVED, choices, conf_dir, conf_dirs


class PluginSearchPath(SearchPathPlugin):
    """Makes Hydra look for group members in the ``conf`` folders of plug-ins, after that of fsl."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Called by Hydra whenever it starts."""
        for folder, plugin in conf_dirs().items():
            if plugin:
                search_path.append(plugin, f"file://{folder}")


Plugins.instance().register(PluginSearchPath)

_FLAGS_WITH_VALUE = {
    "--cfg",
    "-c",
    "--package",
    "-p",
}
_FLAGS = {"--multirun", "-m", "--resolve", "--info", "-i", "--hydra-help", "--shell-completion", "-sc"}


def split_flags(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate flags from overrides, wherever they stand (Hydra itself wants all flags in front).

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
        elif word.startswith("-"):
            raise FslError("unknown flag", where=word, hint=close_match(word, _FLAGS | _FLAGS_WITH_VALUE | {"--help"}))
        else:
            overrides.append(word)
    return flags, overrides


def parse(overrides: Sequence[str]) -> list[Override]:
    """Parse Hydra's override grammar.

    Raises:
        Problems: words that are no overrides, all of them.
    """
    parser, parsed, problems = OverridesParser.create(), [], []
    for word in overrides:
        try:
            override = parser.parse_override(word)
        except HydraException:
            override = None
        if override and override.key_or_group:
            parsed.append(override)
        else:
            hint = "write key=value" if "=" not in word else "quote the value: key='value'"
            problems.append(FslError("is no override", where=word, hint=hint))
    raise_all(problems)
    return parsed


def check(config_name: str, overrides: Sequence[str]) -> None:
    """Check that every override of every job names a group member or a key that exists.

    Raises:
        Problems: all that do not, each with its close match.
    """
    raise_all([problem for job in jobs(overrides) for problem in job_problems(config_name, job)])


def job_problems(config_name: str, overrides: Sequence[str]) -> list[FslError]:
    """What is wrong with the groups and keys of one job's overrides."""
    parsed = parse(overrides)
    problems: list[FslError] = []
    selected = []
    for word, each in zip(overrides, parsed, strict=True):
        if _is_group(each):
            found = _group_problems(each)
            problems += found
            selected += [] if found else [word]
    known = compose_config(config_name, selected)
    for each in parsed:
        if not _is_group(each) and not _is_hydras(each):
            problems += _key_problems(each, known)
    return problems


def jobs(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of every job of a sweep, in Hydra's order; one job when nothing is swept."""
    return _jobs(parse(overrides))


def swept(every_job: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    """For each job of a sweep, the keys that have other values in other jobs, with their values."""
    values = [dict(word.lstrip("+").split("=", 1) for word in job if "=" in word) for job in every_job]
    keys = [key for key in values[0] if len({each.get(key) for each in values}) > 1]
    return [{key: each[key] for key in keys} for each in values]


def compose_config(config_name: str, overrides: Sequence[str], *, with_hydra: bool = False) -> DictConfig:
    """Compose a configuration as Hydra's own command line would.

    Raises:
        FslError: Hydra cannot compose it.
    """
    try:
        with _hydra():
            return compose(config_name, list(overrides), return_hydra_config=with_hydra)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        reason = first_line(error.__cause__ or error)
        raise FslError(reason, where="configuration", hint="see fsl train --help") from error


@contextlib.contextmanager
def _hydra() -> Iterator[None]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir().absolute()), version_base="1.3", job_name="fsl"):
        yield
    GlobalHydra.instance().clear()


def _jobs(parsed: list[Override]) -> list[list[str]]:
    for each in parsed:
        if each.value_type in (ValueType.GLOB_CHOICE_SWEEP, ValueType.INTERVAL_SWEEP):
            what = "globs and intervals are not swept"
            raise FslError(what, where=each.input_line or each.key_or_group, hint="name the values: a,b,c or range(1,10)")
    return [list(job) for batch in BasicSweeper.split_arguments(parsed, max_batch_size=None) for job in batch]


def _is_group(override: Override) -> bool:
    return override.key_or_group.lstrip("+~") in GROUPS


def _is_hydras(override: Override) -> bool:
    return override.key_or_group.lstrip("+~").startswith(("hydra.", "hydra/"))


def _group_problems(override: Override) -> list[FslError]:
    group, value = override.key_or_group, str(override.value())
    place = override.input_line or group
    if override.is_delete() or override.is_add():
        return [FslError("a group cannot be added or deleted", where=place, hint=f"{group}=NAME")]
    if value in choices(group):
        return []
    return [FslError(f"there is no {group} {value}", where=place, hint=close_match(value, choices(group)))]


def _key_problems(override: Override, known: DictConfig) -> list[FslError]:
    key = override.key_or_group
    place = override.input_line or key
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
        if prefix and name in RESERVED and not prefix.startswith("train."):
            continue
        node = config._get_node(name)
        if isinstance(node, DictConfig) and not (node._is_none() or node._is_missing() or node._is_interpolation()):
            keys += all_keys(node, f"{prefix}{name}.")
        else:
            keys.append(f"{prefix}{name}")
    return keys


def output_folder(config_name: str, overrides: Sequence[str], *, multirun: bool) -> Path:
    """The folder Hydra is going to write to."""
    hydra = compose_config(config_name, overrides, with_hydra=True).hydra
    return Path(hydra.sweep.dir if multirun else hydra.run.dir).absolute()
