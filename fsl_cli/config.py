"""The settings of a run: their types and ranges, and the checks across sections. All problems are reported together."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from fsl_cli import build
from fsl_cli.errors import FslError, Problems, first_line, raise_all

# What the program hands to a constructor itself; every other parameter is an option of the YAML file.
RUNTIME = {
    "dataset": {"data_dir", "cache_dir", "progress"},
    "backbone": {"image_shape"},
    "algo": {"backbone", "features", "ways", "engine", "classes", "image_shape"},
    "train.optimizer": {"params"},
}


class Section(BaseModel):
    """A part of the configuration; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TaskSettings(Section):
    """Shape of the tested episodes."""

    ways: int = Field(ge=2)
    shots: int = Field(ge=1)
    queries: int = Field(ge=1)


class TrainSettings(Section):
    """Meta-training."""

    iterations: int = Field(ge=1)
    meta_batch: int = Field(ge=1)
    max_minutes: float | None = Field(gt=0)
    optimizer: dict[str, Any]
    schedule: Literal["constant", "linear", "cosine", "step"]
    schedule_by: Literal["iterations", "minutes"] = "iterations"
    step_every: int = Field(ge=1)
    step_factor: float = Field(gt=0, le=1)
    clip_grad_norm: float | None = Field(gt=0)
    log_every: int = Field(ge=1)
    val_every: int = Field(ge=1)
    val_episodes: int = Field(ge=2)
    patience: int | None = Field(ge=1)

    @field_validator("schedule_by")
    @classmethod
    def _has_minutes(cls, value: str, others: ValidationInfo) -> str:
        if value == "minutes" and others.data.get("max_minutes", 1) is None:
            raise ValueError("should be iterations unless train.max_minutes is set")
        return value


class EvalSettings(Section):
    """Meta-testing."""

    episodes: int = Field(ge=2)
    seed: int = Field(ge=0)
    checkpoint: Literal["best", "last"]


def _known_device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|gpu|mps|cuda(:\d+)?", name):
        raise ValueError("should be auto, cpu, gpu, mps, cuda or cuda:N")
    return name


class HardwareSettings(Section):
    """Where and how it runs."""

    device: Annotated[str, AfterValidator(_known_device)]
    precision: Literal["fp32", "bf16"]
    threads: int | None = Field(ge=1)
    deterministic: bool
    engine: Literal["auto", "fast", "vmap", "loop", "learn2learn"]
    task_chunk: Literal["auto"] | Annotated[int, Field(ge=1)]
    compile: bool = False


class WandbSettings(Section):
    """Weights & Biases."""

    mode: Literal["auto", "online", "offline", "disabled"]
    project: str
    entity: str | None
    group: str | None
    name: str | None
    tags: list[str]


def _known_resume(value: Literal[False] | str) -> Literal[False] | str:
    if value == "":
        raise ValueError("should be false, auto, or a run folder or checkpoint")
    return value


class Settings(Section):
    """Everything a run needs, resolved. ``dataset``, ``backbone`` and ``algo`` are nodes for `fsl_cli.build`."""

    dataset: dict[str, Any]
    backbone: dict[str, Any]
    algo: dict[str, Any]
    task: TaskSettings
    train: TrainSettings
    eval: EvalSettings
    hardware: HardwareSettings
    wandb: WandbSettings
    seed: int = Field(ge=0, lt=2**63)  # what torch's generators take
    data_dir: Path
    cache_dir: Path
    resume: Annotated[Literal[False] | str, AfterValidator(_known_resume)]


def resolve(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain containers, with folders filled in.

    Raises:
        FslError: an interpolation does not resolve.
    """
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise FslError(first_line(error), where="configuration") from error
    assert isinstance(plain, dict)
    values = {str(key): value for key, value in plain.items()}
    values["data_dir"] = str(folder(values.get("data_dir"), platformdirs.user_data_dir("fsl")))
    values["cache_dir"] = str(folder(values.get("cache_dir"), platformdirs.user_cache_dir("fsl")))
    return values


def folder(path: str | None, default: str) -> Path:
    """``path`` made absolute, ``~`` expanded, or the default."""
    return Path(os.path.expanduser(path or default)).absolute()


def validate(config: dict[str, Any]) -> Settings:
    """Check a resolved configuration.

    Raises:
        Problems: everything that is wrong with it.
    """
    problems: list[FslError] = []
    for where, runtime in RUNTIME.items():
        node = config
        for part in where.split("."):
            node = node.get(part) if isinstance(node, dict) else None  # type: ignore[assignment]
        if not isinstance(node, dict):
            problems.append(FslError("is missing", where=where))
        else:
            problems += build.check(node, where, runtime)
    if not problems:
        problems += _engine_problems(config)
    try:
        settings = Settings(**config)
    except ValidationError as error:
        raise Problems(problems + build.problems_of(error, Settings, "", config)) from error
    raise_all(problems)
    return settings


def _engine_problems(config: dict[str, Any]) -> list[FslError]:
    """An engine is an option of algorithms with an inner loop only."""
    engine = (config.get("hardware") or {}).get("engine")
    if engine in (None, "auto") or build.takes(config["algo"], "algo", "engine"):
        return []
    what = f"{engine} is not valid: {config['algo'].get('name')} has no inner loop to run"
    return [FslError(what, where="hardware.engine", hint="leave it at auto")]
