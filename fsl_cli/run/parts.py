"""Settings to objects: the data set, the backbone, the algorithm and the hardware of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import nn

from fsl_cli.algos.common.algorithm import Algorithm
from fsl_cli.compute import hardware
from fsl_cli.episodes import EpisodeSampler, Task
from fsl_cli.episodes.class_images import ClassImages
from fsl_cli.episodes.sampler import task_problems
from fsl_cli.errors import FslError, first_line, raise_all
from fsl_cli.settings import build
from fsl_cli.settings.schema import Settings
from fsl_cli.show.console import progress, warn

SplitName = Literal["train", "val", "test"]


class Dataset(Protocol):
    """What a run asks of a data set."""

    def counts(self, split: SplitName) -> np.ndarray:
        """int64 ``[classes]``, images per class, without reading an image."""

    def split(self, name: SplitName) -> ClassImages:
        """The images of one split."""


@dataclass(frozen=True)
class Parts:
    """What a run is made of.

    Attributes:
        dataset: the data set.
        algorithm: the algorithm with its backbone, on the device.
        hardware: device, precision, chunk.
        task: shape of the tested episodes.
        train_task: shape of the training episodes.
    """

    dataset: Dataset
    algorithm: Algorithm
    hardware: hardware.Hardware
    task: Task
    train_task: Task

    @property
    def parameters(self) -> int:
        """Number of meta-learned parameters."""
        return sum(parameter.numel() for parameter in self.algorithm.parameters())

    def sampler(self, split: SplitName, seed: int) -> EpisodeSampler:
        """Episodes of a split: of the training shape for ``train``, of the tested shape otherwise."""
        task = self.train_task if split == "train" else self.task
        return EpisodeSampler(self.dataset.split(split), split, task, seed, self.hardware.device)


def assemble(settings: Settings, *, trained_ways: int, splits: tuple[SplitName, ...]) -> Parts:
    """Build everything, from the same random state every time.

    Args:
        settings: validated settings.
        trained_ways: ways of the task the algorithm is or was trained for.
        splits: the splits this run is going to draw episodes from.

    Raises:
        FslError: whatever the data, the device or the network objects to.
    """
    chosen = settings.hardware
    used = hardware.set_up(
        chosen.device,
        chosen.precision,
        chosen.threads,
        chosen.deterministic,
        chosen.task_chunk,
        warn,
        compile=chosen.compile,
    )
    folders = {"data_dir": settings.data_dir, "cache_dir": settings.cache_dir, "progress": progress}
    dataset = build.build(settings.dataset, "dataset", folders)
    hardware.seed_everything(settings.seed)
    image_shape = dataset.image_shape
    backbone = build.build(settings.backbone, "backbone", {"image_shape": image_shape})
    algorithm = build.build(
        settings.algo,
        "algo",
        {
            "backbone": backbone,
            "features": feature_width(backbone, image_shape),
            "ways": trained_ways,
            "engine": chosen.engine,
            "classes": len(dataset.counts("train")),
            "image_shape": image_shape,
        },
    ).to(used.device)
    task = Task(settings.task.ways, settings.task.shots, settings.task.queries)
    train_task = algorithm.train_task(task)
    raise_all(_task_problems(dataset, splits, train_task, task) + algorithm.task_problems(task))
    if chosen.task_chunk == "auto":
        images = max(each.ways * (each.shots + each.queries) for each in (train_task, task))
        used.task_chunk = hardware.automatic_chunk(used.device, images * math.prod(image_shape))
    return Parts(dataset, algorithm, used, task, train_task)


def build_optimizer(node: Mapping[str, Any], parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer that ``train.optimizer`` describes, after a trial step on copies of the parameters.

    Raises:
        FslError: it refuses its options or these parameters, or needs more than their gradients to take a step.
    """
    copies = [nn.Parameter(torch.zeros_like(each)) for each in parameters]
    for each in copies:
        each.grad = torch.zeros_like(each)
    trial = build.build(node, "train.optimizer", {"params": copies})
    try:
        trial.step()
    except Exception as error:  # each has its own way to say so
        what = f"{node['_target_']} cannot be used here: {first_line(error)}"
        hint = "use torch.optim.Adam, AdamW, SGD or another one like them"
        raise FslError(what, where="train.optimizer", hint=hint) from error
    return build.build(node, "train.optimizer", {"params": parameters})


def _task_problems(dataset: Dataset, splits: tuple[SplitName, ...], train_task: Task, task: Task) -> list[FslError]:
    """What keeps the episodes from being drawn; for each setting the split that leaves the least room."""
    found: dict[str | None, FslError] = {}
    for split in sorted(splits, key=lambda split: len(dataset.counts(split))):
        for problem in task_problems(dataset.counts(split), split, train_task if split == "train" else task):
            found.setdefault(problem.where, problem)
    return list(found.values())


def feature_width(backbone: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Width D of a backbone's output ``[B, D]``, found by running it once.

    Raises:
        FslError: the backbone does not accept such images, or its output has another shape.
    """
    training = backbone.training
    try:
        with torch.no_grad():
            output = backbone.eval()(torch.zeros(2, *image_shape))
    except RuntimeError as error:
        reason = first_line(error)
        raise FslError(f"does not accept {list(image_shape)} images: {reason}", where="backbone") from error
    finally:
        backbone.train(training)
    if output.ndim != 2:
        raise FslError(f"gives {list(output.shape)} for two images, not [2, features]", where="backbone")
    return output.shape[1]
