"""Out of memory: the step is repeated with half as many episodes at once, with the same result as if started so.

There may be no GPU here: algorithms are made to raise what PyTorch raises.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from problems import striped_classes
from small_training import is_same, train_settings
from torch import nn

from fsl_cli.algos.common.algorithm import Algorithm
from fsl_cli.algos.maml import MAML
from fsl_cli.algos.protonet import ProtoNet
from fsl_cli.backbones.mlp import MLP
from fsl_cli.compute.hardware import Hardware
from fsl_cli.episodes import EpisodeSampler, Task
from fsl_cli.errors import FslError
from fsl_cli.evaluation import evaluate
from fsl_cli.training import Hooks, Training

TASK = Task(3, 1, 2)


def protonet(batch_norm: str = "inductive") -> Algorithm:
    net = nn.Sequential(MLP((1, 12, 12), widths=[8]), nn.Dropout(0.2))
    return ProtoNet(net, batch_norm=batch_norm)  # type: ignore[arg-type]


def transductive() -> Algorithm:
    return protonet("transductive")


def maml() -> Algorithm:
    return MAML(nn.Sequential(MLP((1, 12, 12), widths=[8]), nn.Dropout(0.2)), 8, TASK.ways, inner_lr=0.1)


def new_training(make: Callable[[], Algorithm], chunk: int) -> tuple[Training, list[str]]:
    torch.manual_seed(0)
    algorithm, warnings = make(), []
    hardware = Hardware(torch.device("cpu"), "fp32", chunk, warn=warnings.append)
    settings = train_settings(iterations=4, meta_batch=6, log_every=1)
    sampler = EpisodeSampler(striped_classes(), "train", TASK, 0)
    return Training(algorithm, torch.optim.Adam(algorithm.parameters(), lr=0.01), sampler, settings, hardware), warnings


def finish(done: Training, at: Callable[[int], None] = lambda iteration: None) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = []
    hooks = Hooks(lambda i, values: rows.append(dict(values)), lambda: {"val/accuracy": 0.5}, lambda best: None, at)
    done.run(hooks)
    return [{key: value for key, value in row.items() if "second" not in key} for row in rows]


def state(done: Training) -> dict[str, Any]:
    values = copy.deepcopy(done.state_dict())
    values["progress"].pop("seconds")
    return values


def limited(algorithm: Algorithm, method: str, too_much: Callable[[int], bool]) -> list[int]:
    """Make a method compute, with its side effects, and then run out of memory. Returns the sizes it was called with."""
    compute, sizes = getattr(algorithm, method), []

    def out_of_memory(*args: Any) -> Any:
        sizes.append(len(args[0]))
        result = compute(*args)
        if too_much(len(args[0])):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return result

    setattr(algorithm, method, out_of_memory)
    return sizes


@pytest.mark.parametrize("make", [protonet, maml])
@pytest.mark.parametrize(("chunk", "fits", "ends"), [(6, 3, 3), (64, 3, 3), (6, 2, 1), (5, 2, 2)])
def test_training_equals_training_with_the_smaller_chunk(make, chunk, fits, ends):
    done, warnings = new_training(make, chunk)
    sizes = limited(done.algorithm, "loss", lambda size: size > fits)
    rows = finish(done)
    reference, silence = new_training(make, ends)
    assert finish(reference) == rows
    assert is_same(state(done), state(reference))
    assert done.hardware.task_chunk == ends
    assert max(sizes[2:]) <= fits  # it stays: no other step tries more
    assert len(warnings) == (2 if ends == 1 else 1)
    assert warnings[-1].endswith(f"going on with {ends} (to start with that: hardware.task_chunk={ends})")
    assert not silence


@pytest.mark.parametrize("make", [protonet, maml])
def test_a_partial_step_is_restarted(make):
    done, warnings = new_training(make, 4)  # chunks of 4 and 2
    calls: list[int] = []
    limited(done.algorithm, "loss", lambda size: calls.append(size) or len(calls) == 6)
    rows = finish(done)
    assert calls == [4, 2, 4, 2, 4, 2] + [2] * 6
    reference, _ = new_training(make, 4)

    def smaller(iteration: int) -> None:
        if iteration == 2:
            reference.hardware.task_chunk = 2

    calls.clear()
    expected = finish(reference, smaller)
    assert len(warnings) == 1
    assert "train: 4 episodes at once do not fit" in warnings[0]
    assert rows == expected
    assert is_same(state(done), state(reference))


@pytest.mark.parametrize(("make", "method"), [(transductive, "predict"), (maml, "predict"), (protonet, "embed")])
def test_evaluation_equals_evaluation_with_the_smaller_chunk(make, method):
    algorithm, sampler = make(), EpisodeSampler(striped_classes(40, seed=1), "test", TASK, 0)
    fits = 2 * 9 if method == "embed" else 2  # images or episodes
    warnings: list[str] = []
    hardware = Hardware(torch.device("cpu"), "fp32", 8, warn=warnings.append)
    expected = evaluate(algorithm, sampler, 30, Hardware(torch.device("cpu"), "fp32", 2))
    calls: list[int] = []
    limited(algorithm, method, lambda size: calls.append(size) or (len(calls) > 2 and size > fits))
    counted: list[int] = []
    scores = evaluate(algorithm, sampler, 30, hardware, counted.append)
    assert np.array_equal(scores["accuracy"], expected["accuracy"])
    assert np.array_equal(scores["loss"], expected["loss"])
    assert hardware.task_chunk == 2
    assert [warning.split(";")[0] for warning in warnings] == [
        f"evaluation: {chunk} episodes at once do not fit into the memory of cpu" for chunk in (8, 4)
    ]
    assert sum(counted) == 30
    assert min(counted) > 0


@pytest.mark.parametrize(("method", "work"), [("loss", "train"), ("predict", "evaluation")])
def test_one_episode_that_does_not_fit_is_an_error_with_a_hint(method, work):
    done, warnings = new_training(maml, 6)
    before = copy.deepcopy(done.algorithm.state_dict())
    limited(done.algorithm, method, lambda size: True)

    def both() -> None:
        finish(done)
        evaluate(done.algorithm, done.sampler, 6, done.hardware)

    with pytest.raises(FslError, match=rf"^{work}: one episode does not fit into the memory of cpu \(use a smaller") as error:
        both()
    assert "hardware.precision=bf16" in str(error.value)
    assert len(warnings) == 2
    assert is_same(before, done.algorithm.state_dict()) == (method == "loss")


def test_other_errors_are_not_treated_as_out_of_memory():
    done, warnings = new_training(maml, 6)
    done.algorithm.loss = lambda episodes: 1 / 0  # type: ignore[method-assign, assignment]
    with pytest.raises(ZeroDivisionError):
        finish(done)
    assert warnings == []
    assert done.hardware.task_chunk == 6
