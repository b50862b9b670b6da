"""The settings of a run: their types, defaults and ranges."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from fsl_cli.settings.sizes import Count, Range, Ways


class Section(BaseModel):
    """A part of the configuration; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Factor = Annotated[float, Field(gt=0, le=1)]


class TaskSettings(Section):
    """Shape of the tested episodes; ranges are drawn for every episode."""

    ways: Ways | None
    shots: Count
    queries: Count
    shots_per: Literal["episode", "class"] = "episode"
    query_dirichlet: float | None = Field(default=None, gt=0)
    sampling: Literal["uniform", "meta_dataset"] = "uniform"

    @field_validator("shots_per")
    @classmethod
    def _has_a_range(cls, value: str, others: ValidationInfo) -> str:
        if value == "class" and isinstance(others.data.get("shots"), int):
            raise ValueError("should be episode unless task.shots is a range, such as 1..10")
        return value

    @field_validator("sampling")
    @classmethod
    def _has_limits(cls, value: str, others: ValidationInfo) -> str:
        if value == "meta_dataset":
            if any(isinstance(others.data.get(name), Range) for name in ("shots", "queries")):
                raise ValueError("should be uniform unless task.shots and task.queries are numbers, its limits: 100 and 10")
            if others.data.get("query_dirichlet") is not None:
                raise ValueError(
                    "should be uniform unless task.query_dirichlet is null: it has equally many queries of all classes"
                )
        return value

    def described(self) -> dict[str, Any]:
        """The sizes, those that there are, and the options that are not at their defaults; ranges as they are written."""
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        return {name: value for name, value in self.model_dump().items() if value is not None and value != defaults[name]}


def _means_and_deviations(value: list[list[float]]) -> list[list[float]]:
    if len(value) != 2 or len(value[0]) != len(value[1]) or not value[0]:
        raise ValueError("should be [[means],[deviations]] with one number of each for every channel")
    if not all(0 <= mean <= 1 for mean in value[0]) or not all(0 < deviation <= 1 for deviation in value[1]):
        raise ValueError("should be of pixels from 0 to 1: divide numbers of pixels from 0 to 255 by 255")
    return value


class InputSettings(Section):
    """How the examples of any data set are prepared, beside the options of its class."""

    normalize: Literal["data"] | Annotated[list[list[float]], AfterValidator(_means_and_deviations)] | None = None


COMMON = {"dataset": InputSettings}  # settings of a section that are not options of its class


def common(section: str, node: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a section that are not options of its class."""
    return {key: value for key, value in node.items() if section in COMMON and key in COMMON[section].model_fields}


class AugmentSettings(Section):
    """Random changes of training images; None and False: not changed."""

    crop: int | None = Field(default=None, ge=1)
    resized_crop: float | None = Field(default=None, gt=0, le=1)
    flip: bool = False
    jitter: float | None = Field(default=None, gt=0, le=1)
    rotate_classes: bool = False


class TrainSettings(Section):
    """Meta-training."""

    iterations: int = Field(ge=1)
    meta_batch: int = Field(ge=1)
    max_minutes: float | None = Field(gt=0)
    optimizer: dict[str, Any]
    schedule: Literal["constant", "linear", "cosine", "step"]
    schedule_by: Literal["iterations", "minutes"] = "iterations"
    final_factor: float = Field(default=0.0, ge=0, le=1)
    step_every: int = Field(ge=1)
    step_at: list[Annotated[int, Field(ge=1)]] | None = None
    step_factor: Factor | list[Factor]
    clip_grad_norm: float | None = Field(gt=0)
    log_every: int = Field(ge=1)
    val_every: int = Field(ge=1)
    val_episodes: int = Field(ge=2)
    patience: int | None = Field(ge=1)
    augment: AugmentSettings = AugmentSettings()

    @field_validator("step_factor")
    @classmethod
    def _one_for_each_drop(cls, value: float | list[float], others: ValidationInfo) -> float | list[float]:
        if isinstance(value, list) and len(value) != len(others.data.get("step_at") or ()):
            raise ValueError("should be one factor, or a list with one for each iteration of train.step_at")
        return value

    @field_validator("schedule_by")
    @classmethod
    def _has_minutes(cls, value: str, others: ValidationInfo) -> str:
        if value == "minutes" and others.data.get("max_minutes", 1) is None:
            raise ValueError("should be iterations unless train.max_minutes is set")
        return value


def _none_or_several(value: int) -> int:
    if value == 1:
        raise ValueError("should be at least 2: one value has no interval; or 0 to leave the test split closed")
    return value


class EvalSettings(Section):
    """Meta-testing."""

    episodes: Annotated[int, Field(ge=0), AfterValidator(_none_or_several)]
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


def _short_enough(tag: str) -> str:
    if not 1 <= len(tag) <= 64:
        raise ValueError(f"should have 1 to 64 characters, which is W&B's limit; it has {len(tag)}")
    return tag


class WandbSettings(Section):
    """Weights & Biases."""

    mode: Literal["auto", "online", "offline", "disabled"]
    project: str | None
    entity: str | None
    group: str | None
    name: str | None
    tags: list[Annotated[str, AfterValidator(_short_enough)]] | None


def _known_resume(value: Literal[False] | str) -> Literal[False] | str:
    if value == "":
        raise ValueError("should be false, auto, or a run folder or checkpoint")
    return value


class DataSettings(Section):
    """What a data set and its episodes need. ``dataset`` is a node for `fsl_cli.settings.build`."""

    dataset: dict[str, Any]
    task: TaskSettings
    eval: EvalSettings
    seed: int = Field(ge=0, lt=2**63)  # what torch's generators take
    data_dir: Path
    cache_dir: Path


class ModelSettings(DataSettings):
    """What a test of a trained model needs. ``backbone`` and ``algo`` are nodes for `fsl_cli.settings.build`."""

    backbone: dict[str, Any]
    algo: dict[str, Any]
    hardware: HardwareSettings


class Settings(ModelSettings):
    """Everything a run needs, resolved."""

    train: TrainSettings
    wandb: WandbSettings
    resume: Annotated[Literal[False] | str, AfterValidator(_known_resume)]
