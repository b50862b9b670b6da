"""Engines: interchangeable implementations of the inner loop for a batch of tasks, with the same results.

``loop`` is the reference: one task at a time with plain autograd. ``vmap`` runs all tasks of a chunk at once, for any
network. ``fast`` does the same several times faster, for networks of layers with hand-written derivatives.
``learn2learn`` runs the same episodes and network through learn2learn 0.2.0 (Arnold et al. 2020).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fsl_cli.episodes import Episodes
from fsl_cli.errors import FslError
from fsl_cli.inner.fast.engine import FastTaskBatch
from fsl_cli.inner.fast.engine import check_supported as check_fast
from fsl_cli.inner.fast.translation import network_of
from fsl_cli.inner.inner_loop import InnerLoop
from fsl_cli.inner.learn2learn_engine import check_supported as check_learn2learn
from fsl_cli.inner.learn2learn_engine import learn2learn_engine
from fsl_cli.inner.tasks import TaskBatch, has_batch_norm, loop_tasks, vmap_tasks

EngineName = Literal["auto", "fast", "vmap", "loop", "learn2learn"]
TaskBatchOf = Callable[..., TaskBatch]
"""Builds a `TaskBatch` from an inner loop, episodes and, optionally, mini-batches."""


@dataclass(frozen=True)
class Engine:
    """An implementation of the inner loop for a batch of tasks.

    Attributes:
        run: takes an inner loop, episodes and numbers of steps in ascending order; returns query outputs
            ``[len(steps), T, B, O]``.
        check: raises `FslError` for an inner loop that the engine cannot run.
    """

    run: Callable[[InnerLoop, Episodes, Sequence[int]], Tensor]
    check: Callable[[InnerLoop], None] = lambda inner: None


def auto_tasks(inner: InnerLoop, episodes: Episodes, batches: Tensor | None = None) -> TaskBatch:
    """``fast`` if it supports the network; otherwise ``vmap``, or ``loop`` with gradient checkpointing.

    Uneven shots with batch normalisation always use ``loop``.
    """
    if episodes.masked and has_batch_norm(inner.net):
        return loop_tasks(inner, episodes, batches)
    kind: TaskBatchOf = FastTaskBatch if network_of(inner.net) else loop_tasks if inner.checkpoint else vmap_tasks
    return kind(inner, episodes, batches)


def check_vmap(inner: InnerLoop) -> None:
    """Raise `FslError` for gradient checkpointing, which `torch.func` cannot differentiate."""
    if inner.checkpoint:
        raise FslError(
            "vmap does not support algo.checkpoint_inner=true", where="hardware.engine", hint="leave it at auto, or use loop"
        )


def tasks_engine(name: EngineName, inner: InnerLoop) -> TaskBatchOf:
    """The engine as a `TaskBatch` constructor, for methods that need more than the steps of `InnerLoop`.

    Raises:
        FslError: the engine cannot run this inner loop.
    """
    if name not in _TASKS:
        what = f"{name} is not valid: it supports the inner loop of MAML only"
        raise FslError(what, where="hardware.engine", hint=f"leave it at auto, or use {', '.join(list(_TASKS)[1:])}")
    ENGINES[name].check(inner)
    return _TASKS[name]


def _runs(tasks: TaskBatchOf) -> Callable[[InnerLoop, Episodes, Sequence[int]], Tensor]:
    return lambda inner, episodes, steps: tasks(inner, episodes).outputs_after(steps)


_TASKS: dict[str, TaskBatchOf] = {"auto": auto_tasks, "fast": FastTaskBatch, "vmap": vmap_tasks, "loop": loop_tasks}
ENGINES = {
    "auto": Engine(_runs(auto_tasks)),
    "fast": Engine(_runs(FastTaskBatch), check_fast),
    "vmap": Engine(_runs(vmap_tasks), check_vmap),
    "loop": Engine(_runs(loop_tasks)),
    "learn2learn": Engine(learn2learn_engine, check_learn2learn),
}
