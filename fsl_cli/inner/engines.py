"""Engines: three ways to run the inner loop of a batch of tasks, with the same numbers.

``loop`` is the reference, one task after the other with plain autograd; ``vmap`` runs all tasks of a chunk at once;
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
from fsl_cli.inner.adaptation import autograd_gradient, functional_gradient
from fsl_cli.inner.inner_loop import InnerLoop
from fsl_cli.inner.learn2learn_engine import check_supported, learn2learn_engine

EngineName = Literal["auto", "loop", "vmap", "learn2learn"]


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
    one_task = partial(inner.query_logits, steps=steps, gradient=autograd_gradient)
    tasks = zip(episodes.support_x, episodes.support_y, episodes.query_x, strict=True)
    return torch.stack([one_task(*task) for task in tasks])


def vmap_engine(inner: InnerLoop, episodes: Episodes, steps: int) -> Tensor:
    """All tasks at once, by `torch.func.vmap`. Returns query logits ``[T, N*Q, N]``."""
    one_task = partial(inner.query_logits, steps=steps, gradient=functional_gradient)
    return torch.func.vmap(one_task, randomness="different")(episodes.support_x, episodes.support_y, episodes.query_x)


ENGINES = {
    "auto": Engine(vmap_engine),
    "loop": Engine(loop_engine),
    "vmap": Engine(vmap_engine),
    "learn2learn": Engine(learn2learn_engine, check_supported),
}
