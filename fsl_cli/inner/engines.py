"""Engines: ways to run the inner loop of a batch of tasks, with the same numbers.

``loop`` is the reference, one task after the other with plain autograd. ``vmap`` runs all tasks of a chunk at once, for
any network. ``fast`` does so for networks built of layers whose derivatives are written out, several times faster.
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
"""Inner loop, episodes and, optionally, batches to `TaskBatch`."""


@dataclass(frozen=True)
class Engine:
    """A way to run the inner loop of a batch of tasks.

    Attributes:
        run: inner loop, episodes and numbers of steps, ascending, to query outputs ``[len(steps), T, B, O]``.
        check: raises `FslError` for an inner loop that the engine cannot run.
    """

    run: Callable[[InnerLoop, Episodes, Sequence[int]], Tensor]
    check: Callable[[InnerLoop], None] = lambda inner: None


def auto_tasks(inner: InnerLoop, episodes: Episodes, batches: Tensor | None = None) -> TaskBatch:
    """``fast`` where the network allows it, else ``vmap``, or ``loop`` when steps are run again to save memory.

    Uneven shots with batch normalisation need ``loop`` too.
    """
    if episodes.masked and has_batch_norm(inner.net):
        return loop_tasks(inner, episodes, batches)
    kind: TaskBatchOf = FastTaskBatch if network_of(inner.net) else loop_tasks if inner.checkpoint else vmap_tasks
    return kind(inner, episodes, batches)


def check_vmap(inner: InnerLoop) -> None:
    """Raise `FslError` for steps from checkpoints, which `torch.func` cannot differentiate."""
    if inner.checkpoint:
        raise FslError(
            "vmap cannot do algo.checkpoint_inner=true", where="hardware.engine", hint="leave it at auto, or use loop"
        )


def tasks_engine(name: EngineName, inner: InnerLoop) -> TaskBatchOf:
    """The engine as `TaskBatch`, for methods that do more with a task than the steps of `InnerLoop`.

    Raises:
        FslError: the engine cannot run this inner loop.
    """
    if name not in _TASKS:
        what = f"{name} is not valid: it runs the inner loop of MAML and nothing else"
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
