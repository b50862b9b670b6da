"""The outer loop: chunks, schedules, clipping, stopping, precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from problems import TinyNet, striped_classes
from recorded_training import ALGORITHMS, TASK, Recorder, meta_sgd, new_training, protonet
from small_training import CPU, is_same, train_settings
from torch import nn

from fsl_cli import training
from fsl_cli.algos.common.algorithm import Step
from fsl_cli.algos.maml import MAML
from fsl_cli.compute.hardware import Hardware
from fsl_cli.episodes import Episodes, EpisodeSampler
from fsl_cli.errors import FslError
from fsl_cli.evaluation import evaluate
from fsl_cli.training import Training, rate_factor

# --- one step


def small(**options: Any) -> MAML:
    torch.manual_seed(0)
    return MAML(TinyNet(), 4, TASK.ways, inner_lr=0.3, **options).double()


class Doubles(EpisodeSampler):
    """Episodes in float64."""

    def images(self, rows: torch.Tensor) -> torch.Tensor:
        return super().images(rows).double()


def exact_training(chunk: int, lr: float = 0.5, **changes: Any) -> Training:
    algorithm = small()
    sampler = Doubles(striped_classes(), "train", TASK, 0)
    settings = train_settings(**({"iterations": 3, "meta_batch": 5, "log_every": 1} | changes))
    optimizer = torch.optim.SGD(algorithm.parameters(), lr=lr)
    return Training(algorithm, optimizer, sampler, settings, Hardware(torch.device("cpu"), "fp32", chunk))


def test_chunks_add_up_to_the_whole_batch():
    whole = Recorder(exact_training(chunk=5), accuracies=[0.5]).run()
    for chunk in (1, 2, 3, 4, 8):
        parts = Recorder(exact_training(chunk), accuracies=[0.5]).run()
        for key, value in whole.training.algorithm.state_dict().items():
            torch.testing.assert_close(parts.training.algorithm.state_dict()[key], value, rtol=1e-10, atol=1e-12)
        for one, other in zip(parts.untimed(), whole.untimed(), strict=True):
            assert one == pytest.approx(other, rel=1e-6)


def test_a_step_is_gradient_descent_on_the_mean_loss_of_its_episodes():
    done, reference = exact_training(chunk=2), small()
    for iteration in range(3):
        done.step()
        episodes = Doubles(striped_classes(), "train", TASK, 0).batch(5 * iteration, 5)
        loss = torch.stack([reference.loss(one).loss for one in episodes.split(1)]).mean()
        gradients = torch.autograd.grad(loss, list(reference.parameters()))
        for parameter, gradient in zip(reference.parameters(), gradients, strict=True):
            parameter.data -= 0.5 * gradient
    for mine, theirs in zip(done.algorithm.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)


def test_iteration_i_uses_episodes_i_times_meta_batch(monkeypatch):
    done = new_training(protonet, iterations=4)
    drawn, batch = [], done.sampler.batch
    monkeypatch.setattr(done.sampler, "batch", lambda first, count: drawn.append((first, count)) or batch(first, count))
    Recorder(done, accuracies=[0.5]).run()
    assert drawn == [(0, 3), (3, 3), (6, 3), (9, 3)]


def test_a_step_trains_in_train_mode():
    done = new_training(protonet)
    done.algorithm.eval()
    done.step()
    assert all(module.training for module in done.algorithm.modules())


def test_logged_numbers_are_the_averages_since_the_last_line(monkeypatch):
    done = exact_training(chunk=2, iterations=5, log_every=3)
    losses, accuracies, loss = [], [], done.algorithm.loss

    def remembering(episodes: Episodes) -> Step:
        step = loss(episodes)
        losses.extend([step.loss.item()] * len(episodes))
        for row, labels in zip(step.outputs, episodes.query.y, strict=True):
            accuracies.append(sum(int(a.argmax() == b) for a, b in zip(row, labels, strict=True)) / len(labels))
        return step

    monkeypatch.setattr(done.algorithm, "loss", remembering)
    rows = Recorder(done, accuracies=[0.5]).run().rows
    assert [row["iteration"] for row in rows] == [3, 5, 5]
    for row, part in zip(rows[:2], (slice(0, 15), slice(15, 25)), strict=True):
        assert row["train/loss"] == pytest.approx(np.mean(losses[part]), rel=1e-6)
        assert row["train/accuracy"] == pytest.approx(np.mean(accuracies[part]), rel=1e-6)
        assert row["train/tasks_per_second"] == pytest.approx(5 / row["train/seconds_per_iteration"])
    assert rows[2] == {"iteration": 5, "val/accuracy": 0.5}


def test_metrics_of_an_algorithm_are_logged():
    rows = Recorder(new_training(meta_sgd, iterations=1), accuracies=[0.5]).run().rows
    assert rows[0]["train/inner_lr"] == pytest.approx(0.1)


# --- schedule and clipping


def rates(**changes: Any) -> list[float]:
    """The learning rate used by each step."""
    done, used = exact_training(chunk=5, lr=0.2, meta_batch=1, **changes), []
    done.optimizer.register_step_pre_hook(lambda optimizer, *ignored: used.append(optimizer.param_groups[0]["lr"]))
    for _ in range(changes["iterations"]):
        done.step()
    return used


def torchs(schedule: Callable[[torch.optim.Optimizer], Any], iterations: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.2)
    scheduler, used = schedule(optimizer), []
    for _ in range(iterations):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return used


def test_the_schedules_are_torchs_and_their_formulas():
    assert rates(iterations=4) == [0.2] * 4
    linear = rates(iterations=8, schedule="linear")
    assert linear == pytest.approx(torchs(lambda opt: torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.0, total_iters=8), 8))
    assert linear == pytest.approx([0.2 * (1 - i / 8) for i in range(8)])
    cosine = rates(iterations=8, schedule="cosine")
    assert cosine == pytest.approx(torchs(lambda opt: torch.optim.lr_scheduler.CosineAnnealingLR(opt, T_max=8), 8))
    assert cosine == pytest.approx([0.1 * (1 + math.cos(math.pi * i / 8)) for i in range(8)])
    above = rates(iterations=8, schedule="linear", final_factor=0.1)
    assert above == pytest.approx(torchs(lambda opt: torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.1, total_iters=8), 8))
    above = rates(iterations=8, schedule="cosine", final_factor=0.01)
    bottom = 0.01 * above[0]
    assert above == pytest.approx(torchs(lambda opt: torch.optim.lr_scheduler.CosineAnnealingLR(opt, 8, bottom), 8))
    step = rates(iterations=8, schedule="step", step_every=3, step_factor=0.5)
    assert step == pytest.approx(torchs(lambda opt: torch.optim.lr_scheduler.StepLR(opt, 3, 0.5), 8))
    assert step == pytest.approx([0.2, 0.2, 0.2, 0.1, 0.1, 0.1, 0.05, 0.05])
    uneven = rates(iterations=8, schedule="step", step_at=[5, 2], step_factor=[0.06, 0.2])
    assert uneven == pytest.approx([0.2 * each for each in (1, 1, 0.06, 0.06, 0.06, 0.012, 0.012, 0.012)])
    step = rates(iterations=8, schedule="step", step_at=[4, 5, 7], step_factor=0.5)
    assert step == pytest.approx(torchs(lambda opt: torch.optim.lr_scheduler.MultiStepLR(opt, [4, 5, 7], 0.5), 8))
    assert step == pytest.approx([0.2, 0.2, 0.2, 0.2, 0.1, 0.05, 0.05, 0.025])


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_schedule_by_minutes_follows_the_training_time(schedule):
    clock = [0.0]
    by_minutes = rate_factor(train_settings(schedule=schedule, schedule_by="minutes", max_minutes=2.0), lambda: clock[0])
    by_iterations = rate_factor(train_settings(schedule=schedule, iterations=120))
    for second in (0, 30, 60, 90, 120, 500):
        clock[0] = float(second)
        assert by_minutes(7) == pytest.approx(by_iterations(second))


def test_the_schedule_uses_the_time_of_the_training():
    done = new_training(protonet, iterations=1000, schedule="linear", schedule_by="minutes", max_minutes=1.0)
    done.progress.seconds = 45.0
    done.step()
    assert done.scheduler.get_last_lr()[0] == pytest.approx(0.25 * done.scheduler.base_lrs[0], rel=0.02)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_schedules_that_end_at_zero_stay_at_zero(schedule):
    factor = rate_factor(train_settings(iterations=10, schedule=schedule))
    assert factor(0) == 1
    assert factor(10) == pytest.approx(0)
    assert factor(25) == pytest.approx(0)


def moved(clip: float | None) -> torch.Tensor:
    done = exact_training(chunk=5, lr=1.0, clip_grad_norm=clip)
    before = torch.cat([each.detach().flatten().clone() for each in done.algorithm.parameters()])
    done.step()
    return torch.cat([each.detach().flatten() for each in done.algorithm.parameters()]) - before


def test_clipping_scales_the_gradient_of_all_parameters_by_its_total_norm():
    free = moved(None)
    norm = free.norm().item()
    assert moved(norm / 10).norm().item() == pytest.approx(norm / 10, rel=1e-4)
    torch.testing.assert_close(moved(norm / 10), free / 10, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(moved(norm * 10), free)


# --- stopping


def test_validations_checkpoints_and_the_best():
    recorder = Recorder(new_training(protonet, iterations=9, val_every=2), accuracies=[0.3, 0.5, 0.5, 0.4, 0.6]).run()
    assert recorder.saved == [(2, True), (4, True), (6, False), (8, False), (9, True)]
    assert [row["iteration"] for row in recorder.rows if "val/accuracy" in row] == [2, 4, 6, 8, 9]
    progress = recorder.training.progress
    assert (progress.best_score, progress.best_iteration, progress.stale, progress.iteration) == (0.6, 9, 0, 9)


def test_the_last_iteration_is_validated_once():
    recorder = Recorder(new_training(protonet, iterations=4, val_every=2), accuracies=[0.3, 0.2]).run()
    assert recorder.saved == [(2, True), (4, False)]


def test_patience_stops_after_that_many_validations_without_improvement():
    accuracies = [0.3, 0.5, 0.5, 0.4, 0.9]
    recorder = Recorder(new_training(protonet, iterations=100, val_every=1, patience=2), accuracies=accuracies).run()
    assert recorder.training.progress.iteration == 4
    assert accuracies == [0.9]
    patient = Recorder(new_training(protonet, iterations=5, val_every=1), accuracies=[0.3, 0.2, 0.2, 0.2, 0.2]).run()
    assert patient.training.progress.iteration == 5


def test_patience_is_counted_across_a_resumption():
    first = new_training(protonet, iterations=2, val_every=1, patience=2)
    Recorder(first, accuracies=[0.5, 0.4]).run()
    second = new_training(protonet, iterations=100, val_every=1, patience=2)
    second.load_state_dict(first.state_dict())
    Recorder(second, accuracies=[0.4, 0.9]).run()
    assert (second.progress.iteration, second.progress.best_score, second.progress.best_iteration) == (3, 0.5, 1)


class Clock:
    """A clock that advances whenever it is read."""

    def __init__(self, seconds: float) -> None:
        self.now, self.seconds = 0.0, seconds

    def perf_counter(self) -> float:
        self.now += self.seconds
        return self.now


def test_max_minutes_stops_and_validates(monkeypatch):
    monkeypatch.setattr(training, "time", Clock(20.0))
    recorder = Recorder(new_training(protonet, iterations=100, max_minutes=1.5), accuracies=[0.5] * 9).run()
    progress = recorder.training.progress
    assert progress.seconds >= 90
    assert progress.iteration == 5  # 20 seconds each
    assert recorder.saved[-1][0] == 5
    row = next(row for row in recorder.rows if "train/loss" in row)
    assert row["train/seconds_per_iteration"] == pytest.approx(20)
    assert row["train/tasks_per_second"] == pytest.approx(3 / 20)


@pytest.mark.parametrize("log_every", [1, 3, 100])
def test_waiting_for_a_gpu_is_part_of_the_step_time(log_every, monkeypatch):
    """Reading the values waits for the GPU, which is simulated here to take ten seconds per step."""
    clock = Clock(0.0)
    monkeypatch.setattr(training, "time", clock)
    done = new_training(protonet, iterations=7, log_every=log_every)
    collect = done._collect

    def waiting() -> None:
        clock.now += 10.0 * len(done._pending.get("loss", []))
        collect()

    monkeypatch.setattr(done, "_collect", waiting)
    Recorder(done, accuracies=[0.5] * 9).run()
    assert done.progress.seconds == 70


def test_minutes_are_counted_across_a_resumption(monkeypatch):
    monkeypatch.setattr(training, "time", Clock(20.0))
    first = new_training(protonet, iterations=2, max_minutes=1.5)
    Recorder(first, accuracies=[0.5]).run()
    second = new_training(protonet, iterations=100, max_minutes=1.5)
    second.load_state_dict(first.state_dict())
    Recorder(second, accuracies=[0.5] * 9).run()
    assert second.progress.iteration == 5


def test_seconds_left():
    done = new_training(protonet, iterations=100, max_minutes=None)
    done.progress.iteration = 90
    assert done.seconds_left(2.0) == 20
    done = new_training(protonet, iterations=100, max_minutes=1)
    done.progress.seconds = 55.0
    assert done.seconds_left(2.0) == 5
    done.progress.seconds = 70.0
    assert done.seconds_left(2.0) == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_one_line_and_saves_nothing(value, monkeypatch):
    done = new_training(protonet)
    loss = done.algorithm.loss

    def diverging(episodes: Episodes) -> Step:
        step = loss(episodes)
        factor = value if done.progress.iteration == 1 else 1.0
        return Step(step.loss * factor, step.outputs)

    monkeypatch.setattr(done.algorithm, "loss", diverging)
    recorder = Recorder(done, accuracies=[0.5])
    with pytest.raises(FslError, match=r"train: the loss is (nan|inf) at iteration 3 \(lower algo.inner_lr or train.opt"):
        recorder.run()
    assert (recorder.rows, recorder.saved) == ([], [])


# --- precision


@pytest.mark.parametrize("make", ALGORITHMS.values(), ids=ALGORITHMS)
def test_bf16_computes_in_bf16_and_keeps_the_weights_in_fp32(make):
    done = new_training(make, iterations=2)
    reference = new_training(make, iterations=2)
    done.hardware = Hardware(torch.device("cpu"), "bf16", 2)
    for each in (done, reference):
        torch.manual_seed(1)  # the same dropout
        Recorder(each, accuracies=[0.5]).run()
    assert {value.dtype for value in done.algorithm.parameters()} == {torch.float32}
    for mine, exact in zip(done.algorithm.parameters(), reference.algorithm.parameters(), strict=True):
        torch.testing.assert_close(mine, exact, rtol=0.1, atol=0.05)
    assert not is_same(done.algorithm.state_dict(), reference.algorithm.state_dict())
    sampler = EpisodeSampler(striped_classes(seed=1), "test", TASK, 0)
    scores = evaluate(done.algorithm, sampler, 30, done.hardware)
    assert scores["accuracy"].dtype == np.float64
    exact_scores = evaluate(done.algorithm, sampler, 30, CPU)
    assert abs(scores["accuracy"].mean() - exact_scores["accuracy"].mean()) < 0.1
    assert not np.array_equal(scores["loss"], exact_scores["loss"])
