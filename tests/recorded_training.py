"""A small training with hooks that record their calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from problems import striped_classes
from small_training import CPU, train_settings
from torch import nn

from fsl_cli.algos.common.algorithm import Algorithm
from fsl_cli.algos.maml import MAML
from fsl_cli.algos.protonet import ProtoNet
from fsl_cli.backbones.mlp import MLP
from fsl_cli.compute.hardware import Hardware
from fsl_cli.episodes import EpisodeSampler, Task
from fsl_cli.evaluation import evaluate
from fsl_cli.training import Hooks, Training

TASK = Task(3, 1, 2)
TIMED = ("train/seconds_per_iteration", "train/tasks_per_second")


def protonet() -> Algorithm:
    return ProtoNet(nn.Sequential(MLP((1, 12, 12), widths=[8]), nn.Dropout(0.2)), train_ways=None, train_queries=None)


def meta_sgd() -> Algorithm:
    net = nn.Sequential(MLP((1, 12, 12), widths=[8]), nn.Dropout(0.2))
    return MAML(net, 8, TASK.ways, inner_lr=0.1, inner_lr_learning="per_parameter")


ALGORITHMS = {"protonet": protonet, "meta-sgd": meta_sgd}


def new_training(make: Callable[[], Algorithm], seed: int = 0, chunk: int = 2, **changes: Any) -> Training:
    torch.manual_seed(seed)
    algorithm = make()
    sampler = EpisodeSampler(striped_classes(), "train", TASK, 0)
    settings = train_settings(**({"iterations": 7, "meta_batch": 3, "log_every": 3, "val_every": 4} | changes))
    hardware = Hardware(torch.device("cpu"), "fp32", chunk)
    return Training(algorithm, torch.optim.Adam(algorithm.parameters(), lr=0.01), sampler, settings, hardware)


@dataclass
class Recorder:
    """Hooks that record their calls and then call ``at(event, iteration)``, which may raise."""

    training: Training
    accuracies: list[float] = field(default_factory=list)
    at: Callable[[str, int], None] = lambda event, iteration: None
    rows: list[dict[str, float]] = field(default_factory=list)
    saved: list[tuple[int, bool]] = field(default_factory=list)
    advanced: list[int] = field(default_factory=list)

    def log(self, iteration: int, values: Mapping[str, float]) -> None:
        assert iteration == self.training.progress.iteration
        self.rows.append({"iteration": iteration, **values})
        self.at("log", iteration)

    def validate(self) -> Mapping[str, float]:
        self.at("validate", self.training.progress.iteration)
        if self.accuracies:
            return {"val/accuracy": self.accuracies.pop(0)}
        sampler = EpisodeSampler(striped_classes(seed=1), "val", TASK, 0)
        return {"val/accuracy": float(evaluate(self.training.algorithm, sampler, 6, CPU)["accuracy"].mean())}

    def save(self, best: bool) -> None:
        self.saved.append((self.training.progress.iteration, best))
        self.at("save", self.training.progress.iteration)

    def advance(self, iteration: int) -> None:
        self.advanced.append(iteration)
        self.at("advance", iteration)

    def run(self) -> Recorder:
        self.training.run(Hooks(self.log, self.validate, self.save, self.advance))
        return self

    def untimed(self) -> list[dict[str, float]]:
        return [{key: value for key, value in row.items() if key not in TIMED} for row in self.rows]
