"""Checks of two cooperating processes, run in both of them; started once by `tests/cli/test_processes.py`.

Each check compares with one process, computed here by both. A check that fails ends its process, and the other one as soon as
that waits for it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from problems import TinyNet, striped_classes
from small_training import is_same, train_settings
from torch import Tensor, nn

from fsl_cli import cli, training
from fsl_cli.algos.common.algorithm import Algorithm, Step
from fsl_cli.algos.maml import MAML
from fsl_cli.algos.mamlpp import MAMLPlusPlus
from fsl_cli.algos.nearest import Nearest
from fsl_cli.algos.protonet import ProtoNet
from fsl_cli.algos.simpleshot import SimpleShot
from fsl_cli.compute import processes
from fsl_cli.compute.hardware import Hardware
from fsl_cli.compute.processes import ALONE, Processes
from fsl_cli.compute.signals import Stopped, interruptible
from fsl_cli.episodes import Episodes, EpisodeSampler, Task
from fsl_cli.errors import FslError, Problems
from fsl_cli.evaluation import evaluate
from fsl_cli.training import Hooks, Training

TASK = Task(3, 1, 2)
EXACT = {"rtol": 1e-10, "atol": 1e-12}
CHECKS: list[Callable[[Path], None]] = []


def check(function: Callable[[Path], None]) -> Callable[[Path], None]:
    CHECKS.append(function)
    return function


class Doubles(EpisodeSampler):
    def images(self, rows: Tensor) -> Tensor:
        return super().images(rows).double()


class Counting(ProtoNet):
    """Has a buffer that is not a running average, and its own metric."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register_buffer("seen", torch.zeros(()))

    def loss(self, episodes: Episodes) -> Step:
        self.seen += len(episodes)
        step = super().loss(episodes)
        return Step(step.loss, step.outputs, {"brightness": episodes.query.x.mean()})


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.drop = TinyNet(), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.net(x))


def protonet() -> Algorithm:
    return Counting(TinyNet())


def meta_sgd() -> Algorithm:
    return MAML(TinyNet(), 4, TASK.ways, inner_lr=0.3, inner_lr_learning="per_parameter")


def mamlpp() -> Algorithm:
    return MAMLPlusPlus(TinyNet(), 4, TASK.ways, inner_steps=2, batch_norm="running")


def annealed() -> Algorithm:
    """Which parameters have a gradient changes twice: per-step ones in first-order steps only with the multi-step loss."""
    return MAMLPlusPlus(TinyNet(), 4, TASK.ways, inner_steps=3, multi_step_iterations=1, first_order_iterations=3)


def simpleshot() -> Algorithm:
    return SimpleShot(TinyNet(), 4, 24, train_ways=TASK.ways)


def nearest() -> Algorithm:
    return Nearest(TinyNet(), space="network")


def noisy() -> Algorithm:
    return ProtoNet(Noisy())


def new_training(make: Callable[[], Algorithm], used: Processes, chunk: int = 2, **changes: Any) -> Training:
    torch.manual_seed(0)
    algorithm = make().double()
    settings = train_settings(**({"iterations": 5, "log_every": 2, "val_every": 100} | changes))
    hardware = Hardware(torch.device("cpu"), "fp32", chunk, used)
    optimizer = torch.optim.SGD(algorithm.parameters(), lr=0.5, momentum=0.9)
    return Training(algorithm, optimizer, Doubles(striped_classes(), "train", TASK, 0), settings, hardware)


def finish(done: Training) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = []
    done.run(Hooks(lambda i, values: rows.append({"i": i, **values}), lambda: {"val/accuracy": 0.5}, _nothing, _nothing))
    return [{key: value for key, value in row.items() if "second" not in key} for row in rows]


def _nothing(ignored: Any) -> None:
    pass


def _nothing_of_two(ignored: Any, also_ignored: Any) -> None:
    pass


def state(done: Training) -> dict[str, Any]:
    values = done.state_dict()
    values["progress"].pop("seconds")
    values["progress"]["window"].pop("seconds", None)
    return values


def same_in_both(value: Any) -> bool:
    """Whether both processes have bit-identical values."""
    values: list[Any] = [None, None]
    torch.distributed.all_gather_object(values, value)
    return is_same(*values)


@check
def what_they_tell_each_other(folder: Path) -> None:
    several = processes.current()
    rank = several.rank
    assert (several.size, several.first) == (2, rank == 0)
    assert several.from_first(lambda: f"from {rank}") == "from 0"
    assert several.together(lambda: rank) == rank
    assert several.numbers([1, rank]) == [2, 1]
    a, b = several.summed([torch.full((2, 2), 1.0 + rank), torch.tensor(10 * rank)])
    assert torch.equal(a, torch.full((2, 2), 3.0))
    assert (b.shape, b.dtype, b.item()) == ((), torch.int64, 10)
    assert several.gather(torch.full((2 - rank, 1), float(rank))).tolist() == [[0], [0], [1]]
    for empty in (0, 1):
        assert several.gather(None if rank == empty else torch.tensor([1.5, 2.5])).tolist() == [1.5, 2.5]
    mine = torch.tensor([float(rank)])
    several.copy_from_first([mine])
    assert mine.item() == 0
    torch.manual_seed(0)
    with several.own_randomness(torch.device("cpu")):
        drawn = torch.rand(3 + rank)[:3]
    assert not same_in_both(drawn)
    assert same_in_both(torch.rand(3))


@check
def an_error_of_one_is_an_error_of_both(folder: Path) -> None:
    several = processes.current()

    def failing(rank: int) -> None:
        if several.rank == rank:
            raise Problems([FslError(f"trouble in {rank}", where="here", hint="fix it")])

    for rank in (0, 1):
        with pytest.raises(Problems, match=rf"here: trouble in {rank} \(fix it\)"):
            several.together(lambda rank=rank: failing(rank))  # type: ignore[misc]
    with pytest.raises(FslError, match="trouble in 0"):
        several.from_first(lambda: failing(0))
    several.from_first(lambda: failing(1))


@check
def training_is_that_of_one_process(folder: Path) -> None:
    for make in (protonet, meta_sgd, mamlpp, annealed, simpleshot, nearest):
        for meta_batch in (1, 3, 4):
            done, alone = (new_training(make, used, meta_batch=meta_batch) for used in (processes.current(), ALONE))
            if processes.current().rank == 1 and meta_batch == 3:  # different first weights would not stay
                done.algorithm.load_state_dict({name: value + 1 for name, value in done.algorithm.state_dict().items()})
            rows, expected = finish(done), finish(alone)
            assert len(rows) == 4
            for one, other in zip(rows, expected, strict=True):
                assert one == pytest.approx(other, rel=1e-6)
            mine, theirs = done.algorithm.state_dict(), alone.algorithm.state_dict()
            for name, value in theirs.items():
                if name != "seen":
                    torch.testing.assert_close(mine[name], value, **EXACT)
            if make is protonet:
                assert mine["seen"].item() == 5 * -(-meta_batch // 2)  # that of process 0
            assert same_in_both(state(done))
            assert same_in_both(rows)


@check
def two_equal_chunks_give_the_very_same_weights(folder: Path) -> None:
    done, alone = (new_training(meta_sgd, used, meta_batch=4) for used in (processes.current(), ALONE))
    assert finish(done) == finish(alone)
    assert is_same(done.algorithm.state_dict(), alone.algorithm.state_dict())


@check
def dropout_is_the_same_twice_and_can_be_continued(folder: Path) -> None:
    whole, again = (new_training(noisy, processes.current(), meta_batch=3) for _ in range(2))
    finish(whole)
    half = new_training(noisy, processes.current(), meta_batch=3, iterations=2)
    finish(half)
    again.algorithm.load_state_dict(half.algorithm.state_dict())
    again.load_state_dict(half.state_dict())
    finish(again)
    assert is_same(again.algorithm.state_dict(), whole.algorithm.state_dict())
    other = new_training(noisy, ALONE, meta_batch=3)
    finish(other)
    assert not is_same(other.algorithm.state_dict(), whole.algorithm.state_dict())


@check
def a_signal_to_one_stops_both_after_the_same_iteration(folder: Path) -> None:
    whole = new_training(meta_sgd, processes.current(), meta_batch=3)
    finish(whole)
    for rank, number in enumerate((signal.SIGTERM, signal.SIGHUP)):
        done = new_training(meta_sgd, processes.current(), meta_batch=3)
        loss = done.algorithm.loss

        def interrupted(
            episodes: Episodes, done: Training = done, loss: Any = loss, rank: int = rank, number: int = number
        ) -> Step:
            if (processes.current().rank, done.progress.iteration) == (rank, 2):
                os.kill(os.getpid(), number)
            return loss(episodes)

        done.algorithm.loss = interrupted  # type: ignore[method-assign]
        with interruptible(), pytest.raises(Stopped) as stopped:
            finish(done)
        assert stopped.value.exit_code == 128 + number
        assert done.progress.iteration == 3
        finish(done)
        assert is_same(state(done)["algo"], state(whole)["algo"])


@check
def a_signal_to_one_that_asks_for_a_checkpoint_makes_both_save_it(folder: Path) -> None:
    for rank in (0, 1):
        done, saved = new_training(meta_sgd, processes.current(), meta_batch=3), []

        def advance(iteration: int, rank: int = rank) -> None:
            if (processes.current().rank, iteration) == (rank, 2):
                os.kill(os.getpid(), signal.SIGUSR1)

        def save(best: bool, done: Training = done, saved: list[Any] = saved) -> None:
            saved.append((done.progress.iteration, state(done)))

        with interruptible():
            done.run(Hooks(_nothing_of_two, lambda: {"val/accuracy": 0.5}, save, advance))
        assert [iteration for iteration, _ in saved] == [2, 5]  # when asked, and at the end
        assert same_in_both(saved[0][1])


@check
def the_clock_of_the_first_decides(folder: Path) -> None:
    class Clock:
        now = 0.0

        def perf_counter(self) -> float:
            self.now += 20.0 + 100 * processes.current().rank
            return self.now

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "time", Clock())
        done = new_training(meta_sgd, processes.current(), meta_batch=2, iterations=100, max_minutes=1.5)
        finish(done)
    assert (done.progress.iteration, done.progress.seconds) == (5, 100.0)


@check
def a_loss_that_is_not_finite_in_one_ends_both(folder: Path) -> None:
    done = new_training(meta_sgd, processes.current(), meta_batch=2)
    if processes.current().rank == 1:
        loss = done.algorithm.loss
        done.algorithm.loss = lambda episodes: Step(loss(episodes).loss * np.nan, loss(episodes).outputs)  # type: ignore[method-assign]
    with pytest.raises(FslError, match="the loss is nan at iteration 2"):
        finish(done)


@check
def memory_that_runs_out_in_one_is_its_own_affair(folder: Path) -> None:
    for fits in (2, 0):
        done, alone = (new_training(protonet, used, meta_batch=8, chunk=4) for used in (processes.current(), ALONE))
        warnings: list[str] = []
        done.hardware.warn = warnings.append
        if processes.current().rank == 1:
            loss = done.algorithm.loss

            def out_of_memory(episodes: Episodes, loss: Any = loss, fits: int = fits) -> Step:
                step = loss(episodes)
                if len(episodes) > fits:
                    raise torch.OutOfMemoryError
                return step

            done.algorithm.loss = out_of_memory  # type: ignore[method-assign]
        if fits == 0:
            with pytest.raises(FslError, match="train: one episode does not fit"):
                finish(done)
            continue
        finish(done)
        finish(alone)
        assert done.hardware.task_chunk == (4, 2)[processes.current().rank]
        assert len(warnings) == processes.current().rank
        for name, value in alone.algorithm.state_dict().items():
            if name != "seen":
                torch.testing.assert_close(done.algorithm.state_dict()[name], value, **EXACT)
        assert same_in_both(state(done))


@check
def evaluation_is_that_of_one_process(folder: Path) -> None:
    sampler = EpisodeSampler(striped_classes(60, seed=1), "test", TASK, 0)
    for algorithm in (ProtoNet(TinyNet()), ProtoNet(TinyNet(), batch_norm="transductive"), meta_sgd()):
        for episodes, chunk in ((3, 8), (61, 8), (61, 3), (300, 20)):
            counted: list[int] = []
            for used in (ALONE, processes.current()):
                counted.clear()
                scores = evaluate(
                    algorithm, sampler, episodes, Hardware(torch.device("cpu"), "fp32", chunk, used), counted.append
                )
                if used is ALONE:
                    expected = scores
            assert np.array_equal(scores["accuracy"], expected["accuracy"])
            assert np.array_equal(scores["loss"], expected["loss"])
            assert len(scores["loss"]) == episodes
            if used.first:
                assert sum(counted) == episodes


@check
def command_lines(folder: Path) -> None:
    """Run each line of ``commands.json`` and write the exit codes of both processes to ``codes.json``."""
    codes: list[list[int]] = []
    for words in json.loads((folder / "commands.json").read_text()):
        both = [0, 0]
        torch.distributed.all_gather_object(both, cli._exit_code(words))
        codes.append(both)
    if processes.current().first:
        (folder / "codes.json").write_text(json.dumps(codes))


def main(folder: Path) -> int:
    for function in CHECKS:
        try:
            function(folder)
        except BaseException:
            (folder / f"{function.__name__}.{processes.current().rank}.failed").write_text(traceback.format_exc())
            os._exit(1)
        (folder / f"{function.__name__}.{processes.current().rank}.passed").touch()
    return 0


if __name__ == "__main__":
    sys.exit(processes.run(lambda: main(Path(sys.argv[1]))))
