"""Engines: ways to run the inner loop of a batch of tasks, with the same numbers.

``loop`` is the reference, one task after the other with plain autograd. ``vmap`` runs all tasks of a chunk at once, for
any network. ``fast`` does so for networks built of layers whose derivatives are written out, several times faster.
``learn2learn`` runs the same episodes and network through learn2learn 0.2.0 (Arnold et al. 2020).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from fsl_cli.episodes import Episodes
from fsl_cli.errors import FslError
from fsl_cli.inner.adaptation import autograd_gradient, functional_gradient
from fsl_cli.inner.fast_engine import check_supported as check_fast
from fsl_cli.inner.fast_engine import fast_engine
from fsl_cli.inner.inner_loop import InnerLoop
from fsl_cli.inner.learn2learn_engine import check_supported as check_learn2learn
from fsl_cli.inner.learn2learn_engine import learn2learn_engine
from fsl_cli.inner.translation import network_of

EngineName = Literal["auto", "fast", "vmap", "loop", "learn2learn"]


@dataclass(frozen=True)
class Engine:
    """A way to run the inner loop of a batch of tasks.

    Attributes:
        run: inner loop, episodes and steps to query logits ``[T, N*Q, N]``.
        check: raises `FslError` for an inner loop that the engine cannot run.
    """

    run: Callable[[InnerLoop, Episodes, int], Tensor]
    check: Callable[[InnerLoop], None] = lambda inner: None


def loop_engine(inner: InnerLoop, episodes: Episodes, steps: int) -> Tensor:
    """One task after the other. Returns query logits ``[T, N*Q, N]``."""
    one_task = partial(inner.query_logits, steps=steps, gradient_of=autograd_gradient)
    tasks = zip(episodes.support_x, episodes.support_y, episodes.query_x, strict=True)
    return torch.stack([one_task(*task) for task in tasks])


def vmap_engine(inner: InnerLoop, episodes: Episodes, steps: int) -> Tensor:
    """All tasks at once, by `torch.func.vmap`. Returns query logits ``[T, N*Q, N]``."""
    one_task = partial(inner.query_logits, steps=steps, gradient_of=functional_gradient)
    return torch.func.vmap(one_task, randomness="different")(episodes.support_x, episodes.support_y, episodes.query_x)


def auto_engine(inner: InnerLoop, episodes: Episodes, steps: int) -> Tensor:
    """``fast`` where the network allows it, else ``vmap``, or ``loop`` when steps are run again to save memory."""
    run = fast_engine if network_of(inner.net) else loop_engine if inner.checkpoint else vmap_engine
    return run(inner, episodes, steps)


def check_vmap(inner: InnerLoop) -> None:
    """Raise `FslError` for steps from checkpoints, which `torch.func` cannot differentiate."""
    if inner.checkpoint:
        raise FslError(
            "vmap cannot do algo.checkpoint_inner=true", where="hardware.engine", hint="leave it at auto, or use loop"
        )


ENGINES = {
    "auto": Engine(auto_engine),
    "fast": Engine(fast_engine, check_fast),
    "loop": Engine(loop_engine),
    "vmap": Engine(vmap_engine, check_vmap),
    "learn2learn": Engine(learn2learn_engine, check_learn2learn),
}
