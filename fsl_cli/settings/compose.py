"""Hydra's side of a run: configurations composed from ``conf/``, and jobs started through Hydra's launchers and sweepers.

Hydra composes a job of a sweep several times: to check it, and again to start it. `Composer` keeps what has been composed,
so that a job is composed once and started from what was checked.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import run_job, setup_globals
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from hydra.version import setbase
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from fsl_cli.errors import FslError, first_line
from fsl_cli.settings.conf_files import conf_dir, conf_dirs
from fsl_cli.settings.overrides import parse
from fsl_cli.settings.plain_yaml import escaped
from fsl_cli.settings.schema import common
from fsl_cli.settings.words import quoted

T = TypeVar("T")
TaskFunction = Callable[[DictConfig], Any]
BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


class _Loader(ConfigLoaderImpl):
    """Composes the configuration of a job once; a launcher in another process gets a copy with what is known so far."""

    def __init__(self, search_path: ConfigSearchPath) -> None:
        super().__init__(search_path)
        self.composed: dict[tuple[str, ...], DictConfig] = {}

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """The configuration of one job."""
        key = tuple(sweep_overrides)
        if key not in self.composed:
            self.composed[key] = super().load_sweep_config(master_config, sweep_overrides)
        return copy.deepcopy(self.composed[key])  # a launcher writes the job's number into it


class Composer:
    """Composes one of the configurations of ``conf/`` with overrides.

    Args:
        config_name: ``train`` or ``eval``.
    """

    def __init__(self, config_name: str) -> None:
        self.config_name = config_name
        setbase("1.3")
        search_path = create_config_search_path(str(conf_dir().absolute()))
        for folder, plugin in conf_dirs().items():
            if plugin:
                search_path.prepend(plugin, f"file://{folder}", anchor="schema")
        self._loader = _Loader(search_path)

    def compose(self, overrides: Sequence[str], *, multirun: bool = False) -> DictConfig:
        """The configuration with its ``hydra`` part; of a sweep, the part that its jobs have in common.

        Raises:
            FslError: Hydra cannot compose it.
        """
        mode = RunMode.MULTIRUN if multirun else RunMode.RUN
        return self._with_hydra(
            lambda hydra: hydra.compose_config(
                self.config_name, [*overrides, f"hydra.mode={mode.name}"], run_mode=mode, with_log_configuration=False
            )
        )

    def compose_job(self, sweep: DictConfig, overrides: Sequence[str], number: int) -> DictConfig:
        """The configuration of job ``number`` of a sweep, with its ``hydra`` part.

        Raises:
            FslError: Hydra cannot compose it.
        """
        config = self._with_hydra(lambda hydra: self._loader.load_sweep_config(sweep, list(overrides)))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        job_folder(config)  # reads the clock where the name of the folder has the time in it; the start must not read another
        OmegaConf.copy_cache(from_config=config, to_config=self._loader.composed[tuple(overrides)])
        return config

    def place(self, config: DictConfig, folder: Path) -> None:
        """Make this the folder of a run or a sweep, with its jobs, whether composed already or not.

        A name with the time in it does not change any more then.
        """
        name = escaped(str(folder))
        if config.hydra.mode is not RunMode.MULTIRUN:
            config.hydra.run.dir = name
            return
        config.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted(name)}")
        for each in (config, *self._loader.composed.values()):
            each.hydra.sweep.dir = name

    def parse(self, words: Sequence[str]) -> list[Override]:
        """Overrides that know the members of the groups, so that ``algo=glob(m*)`` means something; see `overrides.parse`."""
        return parse(words, self._loader)

    def members(self, group: str) -> list[str]:
        """What can be chosen for one of Hydra's own groups, such as ``hydra/launcher``."""
        return sorted(self._loader.get_group_options(group))

    def start(self, config: DictConfig, task: TaskFunction) -> None:
        """Run one job in Hydra's surroundings (its folder, environment and callbacks); what ``task`` raises is raised here."""
        callbacks = Callbacks(config)
        callbacks.on_run_start(config=config, config_name=self.config_name)
        context = HydraContext(config_loader=self._loader, callbacks=callbacks)
        raised: list[Exception] = []

        def remember(config: DictConfig) -> None:
            try:
                task(config)
            except Exception as error:
                raised.append(error)
                raise

        setup_globals()
        done = run_job(
            hydra_context=context, task_function=remember, config=config, job_dir_key="hydra.run.dir", job_subdir_key=None
        )
        callbacks.on_run_end(config=config, config_name=self.config_name, job_return=done)
        if raised:  # asking ``done`` for it would print more than the one line that a user should see
            raise raised[0]

    def start_sweep(self, sweep: DictConfig, task: TaskFunction) -> None:
        """Run the jobs of a sweep with the sweeper and the launcher that its configuration names.

        Raises:
            FslError: one of them is not installed or refuses its options.
        """
        callbacks = Callbacks(sweep)
        callbacks.on_multirun_start(config=sweep, config_name=self.config_name)
        context = HydraContext(config_loader=self._loader, callbacks=callbacks)
        try:
            sweeper = Plugins.instance().instantiate_sweeper(config=sweep, hydra_context=context, task_function=task)
        except (ImportError, HydraException, OmegaConfBaseException, TypeError) as error:
            raise FslError(
                first_line(error), where="hydra/sweeper, hydra/launcher", hint="is its package installed?"
            ) from error
        sweeper.sweep(arguments=list(sweep.hydra.overrides.task))
        callbacks.on_multirun_end(config=sweep, config_name=self.config_name)

    def show(self, flags: Sequence[str], overrides: Sequence[str]) -> None:
        """Do what those flags of Hydra ask for that run nothing, such as ``--cfg job``.

        Raises:
            FslError: Hydra cannot compose the configuration.
        """
        parser = get_args_parser()
        asked = parser.parse_args([*flags, *overrides])

        def show(hydra: Hydra) -> None:
            if asked.cfg:
                hydra.show_cfg(self.config_name, asked.overrides, asked.cfg, asked.package, asked.resolve)
            elif asked.info:
                hydra.show_info(asked.info, self.config_name, asked.overrides)
            else:
                hydra.hydra_help(self.config_name, parser, asked)

        self._with_hydra(show)

    def _hydra(self) -> Hydra:
        GlobalHydra.instance().clear()
        hydra = Hydra(task_name="fsl", config_loader=self._loader)
        GlobalHydra.instance().initialize(hydra)
        return hydra

    def _with_hydra(self, work: Callable[[Hydra], T]) -> T:
        try:
            return work(self._hydra())
        except (HydraException, OmegaConfBaseException, ValueError, AssertionError) as error:  # OmegaConf asserts some of it
            reason = first_line(error.__cause__ or error)
            raise FslError(reason, where="configuration", hint=f"see fsl {self.config_name} --help") from error
        finally:
            GlobalHydra.instance().clear()


def member_node(group: str, name: str) -> dict[str, Any]:
    """The options of a member of a group, as plain containers; ``???`` stands for what has no default."""
    node = OmegaConf.to_container(Composer("train").compose([f"{group}={name}"])[group], resolve=True)
    assert isinstance(node, dict)
    plain = {str(key): value for key, value in node.items()}
    return {key: value for key, value in plain.items() if key not in common(group, plain)}


def run_folder(config: DictConfig) -> Path:
    """The folder that a run is going to write to.

    Raises:
        FslError: its name refers to something that does not exist.
    """
    return Path(_value(config, "hydra.run.dir")).absolute()


def is_new(config: DictConfig) -> bool:
    """Whether the folder of a run or a sweep is named after the time and is to be a new one.

    With ``resume=auto`` a folder that is named after the day is one to continue in; one that is named after the second is not.
    """
    section = config.hydra.sweep if config.hydra.mode is RunMode.MULTIRUN else config.hydra.run
    name = str(OmegaConf.to_container(section, resolve=False)["dir"])  # type: ignore[index, call-overload]
    return "${now:" in name and (OmegaConf.select(config, "resume") != "auto" or "%S" in name)


def sweep_folder(config: DictConfig) -> Path:
    """The folder of a sweep; raises as `run_folder`."""
    return Path(_value(config, "hydra.sweep.dir")).absolute()


def job_folder(config: DictConfig) -> Path:
    """The folder that a job of a sweep is going to write to; raises as `run_folder`."""
    return sweep_folder(config) / _value(config, "hydra.sweep.subdir")


def _value(config: DictConfig, key: str) -> str:
    try:
        return str(OmegaConf.select(config, key, throw_on_missing=True))
    except OmegaConfBaseException as error:
        raise FslError(first_line(error), where=key, hint=r"in a name that is to have ${ in it, write \${") from error


def current_job() -> tuple[Path, int, list[str]]:
    """Inside a job that Hydra has started: its folder, its number in the sweep, and its overrides."""
    hydra = HydraConfig.get()
    runtime = OmegaConf.to_container(hydra.runtime, resolve=False)  # the folder is written as it is, even with a ``${`` in it
    return Path(runtime["output_dir"]), int(hydra.job.num), list(hydra.overrides.task)  # type: ignore[index, call-overload]


def has_own_sweeper(config: DictConfig) -> bool:
    """Whether a sweep's jobs are chosen by a sweeper that is not Hydra's grid, such as Optuna's."""
    return config.hydra.sweeper._target_ != BASIC_SWEEPER


def grid_of_sweeper(config: DictConfig) -> list[str]:
    """The overrides that Hydra's grid puts before those of the command line: ``hydra.sweeper.params`` of a configuration."""
    return [] if has_own_sweeper(config) else [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]


def without_hydra(config: DictConfig) -> DictConfig:
    """A copy of the configuration without its ``hydra`` part, if it has one."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
