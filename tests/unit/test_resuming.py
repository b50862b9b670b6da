"""Training that is stopped anywhere and resumed ends with bit-identical results."""

from __future__ import annotations

import copy
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded_training import ALGORITHMS, Recorder, new_training
from small_training import is_same

from fsl_cli.algos.common.algorithm import Algorithm, Step
from fsl_cli.episodes import Episodes
from fsl_cli.results import checkpoint
from fsl_cli.training import Training

SCHEDULE = {"schedule": "cosine", "clip_grad_norm": 1.0}


def state(training: Training) -> dict[str, Any]:
    """The complete training state, without the elapsed time."""
    values = copy.deepcopy(training.state_dict())
    del values["progress"]["seconds"]
    values["progress"]["window"].pop("seconds", None)
    return values


@pytest.fixture(scope="module", params=ALGORITHMS.values(), ids=ALGORITHMS)
def uninterrupted(request) -> tuple[Callable[[], Algorithm], Recorder]:
    return request.param, Recorder(new_training(request.param, **SCHEDULE)).run()


def stopped(make: Callable[[], Algorithm], at: Callable[[str, int], None]) -> Recorder:
    recorder = Recorder(new_training(make, **SCHEDULE), at=at)
    with pytest.raises(KeyboardInterrupt):
        recorder.run()
    return recorder


def continued(make: Callable[[], Algorithm], stopped_training: Training, path: Path) -> Recorder:
    """Training resumed from a checkpoint alone, as in a new process."""
    checkpoint.save(path, stopped_training.state_dict())
    payload = checkpoint.load(path)
    fresh = new_training(make, seed=99, **SCHEDULE)
    torch.manual_seed(12345)
    checkpoint.load_weights(fresh.algorithm, payload, path)
    fresh.load_state_dict(payload)
    return Recorder(fresh).run()


def assert_same_end(whole: Recorder, first: Recorder, second: Recorder) -> None:
    assert is_same(state(second.training), state(whole.training))
    assert first.untimed() + second.untimed() == whole.untimed()
    assert second.training.progress.iteration == 7


@pytest.mark.parametrize("iteration", range(1, 7))
def test_training_resumes_after_any_iteration(uninterrupted, iteration, tmp_path):
    make, whole = uninterrupted

    def stop(event: str, now: int) -> None:
        if (event, now) == ("advance", iteration):
            raise KeyboardInterrupt

    first = stopped(make, stop)
    assert first.training.progress.iteration == iteration
    assert ("loss" in first.training.state_dict()["progress"]["window"]) == (iteration not in (3, 4, 6))
    second = continued(make, first.training, tmp_path / "last.pt")
    assert_same_end(whole, first, second)
    assert first.saved + second.saved == whole.saved
    assert second.advanced == list(range(iteration + 1, 8))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("event", ["loss", "log", "validate", "save"])
def test_training_resumes_after_a_signal_at_any_point(uninterrupted, event, number, tmp_path, monkeypatch):
    """Steps and checkpoints are completed first; an interrupted validation is repeated."""
    make, whole = uninterrupted

    def interrupt(*ignored: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(number, interrupt)  # as `fsl train` does for SIGTERM
    try:
        calls = []

        def stop(happened: str, now: int) -> None:
            if happened == event and now == 4 and not calls:
                calls.append(now)
                signal.raise_signal(number)

        if event == "loss":
            cls = type(whole.training.algorithm)
            loss = cls.loss

            def interrupted_loss(self: Algorithm, episodes: Episodes) -> Step:
                step = loss(self, episodes)
                calls.append(len(episodes))
                if len(calls) == 8:  # two chunks for each iteration: in the middle of the fourth
                    signal.raise_signal(number)
                return step

            monkeypatch.setattr(cls, "loss", interrupted_loss)
        first = stopped(make, stop)
        monkeypatch.undo()
        assert first.training.progress.iteration == 4
    finally:
        signal.signal(number, before)
    second = continued(make, first.training, tmp_path / "last.pt")
    assert_same_end(whole, first, second)


def test_the_checks_above_can_fail(uninterrupted, tmp_path):
    """Training resumed with other random numbers, or from the weights alone, ends with different results."""
    make, whole = uninterrupted

    def stop(event: str, now: int) -> None:
        if (event, now) == ("advance", 2):
            raise KeyboardInterrupt

    first = stopped(make, stop)
    for forgotten in ("optimizer", "scheduler", "random"):
        fresh = new_training(make, seed=99, **SCHEDULE)
        payload = copy.deepcopy(first.training.state_dict())
        payload[forgotten] = fresh.state_dict()[forgotten]
        fresh.algorithm.load_state_dict(payload["algo"])
        fresh.load_state_dict(payload)
        assert not is_same(Recorder(fresh).run().training.algorithm.state_dict(), whole.training.algorithm.state_dict())


def test_a_finished_training_that_is_given_more_iterations_has_the_rate_of_the_new_schedule():
    def rate_of(done: Training) -> float:
        return done.optimizer.param_groups[0]["lr"]

    make = ALGORITHMS["protonet"]
    short, long = (new_training(make, schedule="cosine", iterations=n) for n in (4, 8))
    for _ in range(4):
        short.step()
        long.step()
    assert rate_of(short) == 0
    longer = new_training(make, seed=99, schedule="cosine", iterations=8)
    longer.algorithm.load_state_dict(short.state_dict()["algo"])
    longer.load_state_dict(short.state_dict())
    assert rate_of(longer) == rate_of(long) > 0


def test_reading_the_state_changes_nothing(uninterrupted):
    make, whole = uninterrupted
    again = Recorder(new_training(make, **SCHEDULE))
    again.at = lambda event, iteration: again.training.state_dict() and None
    again.run()
    assert is_same(state(again.training), state(whole.training))
    assert again.untimed() == whole.untimed()


def test_a_finished_training_has_nothing_left_to_do(uninterrupted):
    _, whole = uninterrupted
    before = state(whole.training)
    again = Recorder(whole.training).run()
    assert (again.rows, again.saved, again.advanced) == ([], [], [])
    assert is_same(state(whole.training), before)
