"""The outer loop: sample episodes, take a step, log, validate, save the best checkpoint."""

from __future__ import annotations

import bisect
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from fsl_cli.algos.common.algorithm import Algorithm, portions
from fsl_cli.compute.hardware import Hardware
from fsl_cli.compute.signals import (
    STOP,
    Stopped,
    held_back,
    interrupts_keep_their_type,
    raise_if_interrupted,
    take_save_request,
)
from fsl_cli.compute.snapshot import Snapshot
from fsl_cli.compute.step_sync import Exchange
from fsl_cli.episodes.sampler import Sampler
from fsl_cli.episodes.uneven_sampler import batches, order
from fsl_cli.errors import FslError
from fsl_cli.settings.schema import TrainSettings


@dataclass
class Progress:
    """The progress of training, saved with every checkpoint.

    Attributes:
        iteration: number of outer steps taken.
        seconds: wall-clock time of training, without validation.
        best_score: best validation value of the problem's headline score so far; None: no validation yet.
        best_iteration: iteration of the best score.
        stale: number of validations since the best score.
        validated: iteration of the latest validation.
        window: sums since the last logged line: every metric, ``steps`` and ``seconds``.
    """

    iteration: int = 0
    seconds: float = 0.0
    best_score: float | None = None
    best_iteration: int = 0
    stale: int = 0
    validated: int = 0
    window: dict[str, float] = field(default_factory=dict)

    @classmethod
    def from_saved(cls, saved: Mapping[str, Any]) -> Progress:
        """From a checkpoint. In those of fsl 0.1.0, the best score is ``best_accuracy``, -1 before the first validation."""
        values = dict(saved)
        if "best_accuracy" in values:
            best = values.pop("best_accuracy")
            values["best_score"] = None if best < 0 else best
        return cls(**values)


@dataclass(frozen=True)
class Hooks:
    """Callbacks of the training loop.

    Attributes:
        log: logs metrics; called with the iteration and the metrics by name.
        validate: scores the algorithm on the validation split; returns the values to log, including the problem's
            headline score.
        save: writes a checkpoint; called with true if it is the best so far.
        advance: called with the iteration after every iteration.
    """

    log: Callable[[int, Mapping[str, float]], None]
    validate: Callable[[], Mapping[str, float]]
    save: Callable[[bool], None]
    advance: Callable[[int], None]


class Training:
    """Meta-training that can be stopped after any iteration and resumed with identical results.

    With several processes, each computes its share of an iteration's episodes; the gradients are summed, all processes
    take the same step, and they stop together. The checkpointed state is the same in all processes.

    Args:
        algorithm: the algorithm to train.
        optimizer: the outer optimizer of its parameters.
        sampler: training episodes; iteration i uses episodes ``i*meta_batch ..``.
        settings: see ``conf/train.yaml``.
        hardware: device, precision, number of episodes computed at once, and processes.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        optimizer: torch.optim.Optimizer,
        sampler: Sampler,
        settings: TrainSettings,
        hardware: Hardware,
    ) -> None:
        self.algorithm, self.optimizer, self.sampler = algorithm, optimizer, sampler
        self.settings, self.hardware = settings, hardware
        self.progress = Progress()
        factor = rate_factor(settings, lambda: self.progress.seconds)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        self._pending: dict[str, list[Tensor]] = {}
        self._exchange = Exchange(algorithm, hardware.processes)
        self._loss = hardware.compiled(lambda episodes: self.algorithm.loss(episodes))

    def run(self, hooks: Hooks) -> None:
        """Train until the limit of iterations, minutes or patience is reached.

        Raises:
            FslError: the loss or the weights are not finite, or no validation has had finite predictions.
            Stopped: one of several processes received a signal to stop; all stop after the same iteration.
        """
        processes = self.hardware.processes
        processes.copy_from_first([each.detach() for each in (*self.algorithm.parameters(), *self.algorithm.buffers())])
        holding: AbstractContextManager[list[int]] = held_back() if processes.size > 1 else nullcontext([])
        with holding as signals, interrupts_keep_their_type():
            while self._go_on(hooks):
                raise_if_interrupted()
                self._agree(hooks, signals)
        if self.progress.best_score is None:
            raise _diverged("no validation has had finite predictions")

    def _agree(self, hooks: Hooks, signals: Sequence[int]) -> None:
        """Do in all processes what one of them was told to by a signal: save a checkpoint, or stop."""
        processes = self.hardware.processes
        mine = [self.progress.seconds if processes.first else 0.0, take_save_request()]
        seconds, save, *stops = processes.numbers([*mine, *(signals.count(number) for number in STOP)])
        self.progress.seconds = seconds  # clocks differ, but ``max_minutes`` must stop all processes together
        if save:
            with held_back():
                hooks.save(False)
        for number, count in zip(STOP, stops, strict=True):
            if count:
                raise Stopped(number)

    def _go_on(self, hooks: Hooks) -> bool:
        """Validate if validation is due, otherwise take a step. Returns False when training is finished."""
        progress = self.progress
        if self._validation_due() and progress.validated < progress.iteration:
            self._validate(hooks)
            return True
        if self._finished():
            return False
        with held_back():  # training stopped in the middle of a step could not be resumed with identical results
            self.step()
            if progress.iteration % self.settings.log_every == 0 or self._validation_due():
                hooks.log(progress.iteration, self._averages())
        hooks.advance(progress.iteration)
        return True

    def step(self) -> None:
        """One outer step on the next ``meta_batch`` episodes."""
        started = time.perf_counter()
        processes = self.hardware.processes
        self.algorithm.train()
        self.algorithm.begin_iteration(self.progress.iteration)
        self._exchange.start()
        share = self._share()
        with processes.own_randomness(self.hardware.device):
            before = Snapshot(self.algorithm, self.hardware.device)
            values = processes.together(
                lambda: self.hardware.within_memory(
                    "train", len(share), lambda chunk: self._gradients(share, chunk), before.restore
                )
            )
        if processes.size > 1:
            values = self._exchange.join(values)
        for name, value in values.items():
            self._pending.setdefault(name, []).append(value)
        if self.settings.clip_grad_norm is not None:
            for parameters in self.algorithm.clipped_together():
                torch.nn.utils.clip_grad_norm_(parameters, self.settings.clip_grad_norm)
        self.optimizer.step()
        self.scheduler.step()
        self.progress.iteration += 1
        if self.progress.iteration % self.settings.log_every == 0 or self._validation_due():
            self._collect()  # CUDA runs asynchronously; reading the values here counts the wait as time of the step
        self._count(time.perf_counter() - started)

    def _share(self) -> Sequence[int]:
        """The numbers of this process's episodes of the iteration, those of one shape next to each other."""
        count = self.settings.meta_batch
        part = self.hardware.processes.share(count)
        return order(self.sampler, self.progress.iteration * count, count)[part.start : part.stop]

    def _gradients(self, share: Sequence[int], size: int) -> dict[str, Tensor]:
        """Accumulate the gradients of a share of the iteration's episodes, ``size`` episodes at a time.

        Returns:
            The share's contributions to the loss, the headline score and the algorithm's metrics, on the device.
        """
        count = self.settings.meta_batch
        values: dict[str, Tensor] = {}
        self.optimizer.zero_grad()
        if not share:
            return values
        drawn = batches(self.sampler, share)
        for chunk in (each for episodes in drawn for each in portions(self.algorithm, episodes, size)):
            weight = len(chunk) / count
            with self.hardware.autocast():
                step = self._loss(chunk)
            if step.loss.requires_grad:
                (step.loss * weight).backward()
            targets, mask = (chunk.query.y, chunk.query.mask) if step.targets is None else (step.targets, step.mask)
            headline = chunk.problem.headline_score(step.outputs, targets, mask).mean()
            for name, value in {"loss": step.loss, chunk.problem.headline.name: headline, **step.metrics}.items():
                values[name] = values.get(name, 0) + value.detach().float() * weight
        return values

    def state_dict(self) -> dict[str, Any]:
        """The state needed to resume with identical results."""
        self._collect()
        return {
            "algo": self.algorithm.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "progress": asdict(self.progress),
            "random": {
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a `state_dict`; the algorithm's own state is loaded separately."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.progress = Progress.from_saved(state["progress"])
        scheduler = self.scheduler  # the saved learning rates follow the old schedule, which may have ended elsewhere
        for group, base, factor in zip(self.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
            group["lr"] = base * factor(self.progress.iteration)
        torch.set_rng_state(state["random"]["cpu"])
        if state["random"]["cuda"] and len(state["random"]["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["random"]["cuda"])

    def seconds_left(self, per_iteration: float) -> float:
        """Seconds until the limit of iterations or minutes is reached, at ``per_iteration`` seconds per iteration."""
        settings, progress = self.settings, self.progress
        left = (settings.iterations - progress.iteration) * per_iteration
        return left if settings.max_minutes is None else min(left, max(0.0, 60 * settings.max_minutes - progress.seconds))

    def _finished(self) -> bool:
        settings, progress = self.settings, self.progress
        return (
            progress.iteration >= settings.iterations
            or (settings.max_minutes is not None and progress.seconds >= 60 * settings.max_minutes)
            or (settings.patience is not None and progress.stale >= settings.patience)
        )

    def _validation_due(self) -> bool:
        return self.progress.iteration % self.settings.val_every == 0 or self._finished()

    def _validate(self, hooks: Hooks) -> None:
        progress = self.progress
        for name, value in self.algorithm.state_dict().items():
            if not bool(value.isfinite().all()):  # running averages too: infinite ones make all outputs the same
                raise _diverged(f"weights are not finite at iteration {progress.iteration}: {name}")
        values = hooks.validate()
        with held_back():
            headline = self.sampler.problem.headline
            score, best = values[f"val/{headline.name}"], progress.best_score
            improved = math.isfinite(score) and (best is None or headline.better(score, best))
            progress.validated = progress.iteration
            progress.stale = 0 if improved else progress.stale + 1
            if improved:
                progress.best_score, progress.best_iteration = score, progress.iteration
            hooks.log(progress.iteration, values)
            hooks.save(improved)

    def _count(self, seconds: float) -> None:
        progress = self.progress
        progress.seconds += seconds
        for name, amount in (("seconds", seconds), ("steps", 1.0)):
            progress.window[name] = progress.window.get(name, 0.0) + amount

    def _collect(self) -> None:
        """Add the pending values to ``progress.window`` one by one, so that the sums do not depend on when this is called."""
        window = self.progress.window
        for name, pending in self._pending.items():
            for value in torch.stack(pending).tolist():
                window[name] = window.get(name, 0.0) + value
        self._pending.clear()

    def _averages(self) -> dict[str, float]:
        self._collect()
        progress = self.progress
        window, progress.window = progress.window, {}
        steps, seconds = window.pop("steps"), window.pop("seconds")
        values = {f"train/{name}": total / steps for name, total in window.items()}
        if not math.isfinite(values["train/loss"]):
            raise _diverged(f"the loss is {values['train/loss']} at iteration {progress.iteration}")
        values["train/lr"] = self.optimizer.param_groups[0]["lr"]
        values["train/seconds_per_iteration"] = seconds / steps
        values["train/tasks_per_second"] = self.settings.meta_batch * steps / seconds
        return values


def _diverged(what: str) -> FslError:
    return FslError(what, where="train", hint="lower algo.inner_lr or train.optimizer.lr, or set train.clip_grad_norm=10")


def rate_factor(settings: TrainSettings, seconds: Callable[[], float] = lambda: 0.0) -> Callable[[int], float]:
    """The learning rate schedule: a function from the iteration to a factor of the optimizer's initial learning rate.

    Args:
        settings: see ``conf/train.yaml``.
        seconds: returns the training time so far, which ``schedule_by=minutes`` uses.
    """

    def passed(iteration: int) -> float:
        if settings.schedule_by == "minutes" and settings.max_minutes is not None:
            return min(1.0, seconds() / (60 * settings.max_minutes))
        return min(1.0, iteration / settings.iterations)

    final = settings.final_factor
    if settings.schedule == "linear":
        return lambda iteration: final + (1 - final) * (1 - passed(iteration))
    if settings.schedule == "cosine":
        return lambda iteration: final + (1 - final) * 0.5 * (1 + math.cos(math.pi * passed(iteration)))
    if settings.schedule == "step":
        if settings.step_at is not None:
            drops = sorted(settings.step_at)
            return lambda iteration: _product(settings.step_factor, bisect.bisect_right(drops, iteration))
        return lambda iteration: _product(settings.step_factor, iteration // settings.step_every)
    return lambda iteration: 1.0


def _product(factor: float | list[float], drops: int) -> float:
    """The product of the factors of the first ``drops`` drops, which are all the same or a list."""
    return math.prod(factor[:drops]) if isinstance(factor, list) else factor**drops
