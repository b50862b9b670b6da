"""The inner loop of learn2learn 0.2.0: its MAML, or its MetaSGD if step sizes are learned per parameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fsl_cli.episodes import Episodes
from fsl_cli.episodes.episodes import spread
from fsl_cli.errors import FslError
from fsl_cli.inner.inner_loop import InnerLoop
from fsl_cli.inner.update_rules import PLAIN_SGD
from fsl_cli.optional import learn2learn


def learn2learn_engine(inner: InnerLoop, episodes: Episodes, steps: Sequence[int]) -> Tensor:
    """Adapt one task at a time with learn2learn. Returns query outputs ``[len(steps), T, B, O]``.

    Raises:
        FslError: learn2learn is missing.
    """
    tasks = list(episodes.split(1))
    # learn2learn differentiates with torch.autograd.grad, which needs a graph even when no outer gradient is wanted.
    outer = torch.is_grad_enabled()
    with torch.enable_grad():
        outputs = torch.stack([_one_task(inner, task, steps) for task in tasks], dim=1)
    return outputs if outer else outputs.detach()


def check_supported(inner: InnerLoop) -> None:
    """Raise `FslError` if learn2learn is missing or does not support the inner loop."""
    learn2learn("algorithms.maml", needed_for="hardware.engine=learn2learn")
    if inner.checkpoint:
        raise _unsupported("algo.checkpoint_inner=true", "checkpoint_inner=false")
    if inner.which == "body":
        raise _unsupported("algo.adapt=body", "adapt=all or head")
    if any(inner.step_weights):
        raise _unsupported("algo.per_step_batch_norm=true", "per_step_batch_norm=false")
    if inner.rule != PLAIN_SGD:
        raise _unsupported("other inner optimizer than sgd without weight decay", "inner_optimizer=sgd inner_weight_decay=0")
    if set(inner.local(inner.step_sizes[0])) != {name for name, _ in inner.module.named_parameters()}:
        raise _unsupported("algo.adapt_batch_norm=false", "adapt_batch_norm=true")
    learned = [alpha for alpha in inner.step_sizes[0].values() if isinstance(alpha, Tensor)]
    if learned and learned[0].ndim == 0:
        raise _unsupported("algo.inner_lr_learning=per_layer", "inner_lr_learning=none or per_parameter")


def _unsupported(what: str, valid: str) -> FslError:
    return FslError(f"learn2learn has no {what}", where="hardware.engine=learn2learn", hint=f"use {valid}, or engine=auto")


def _one_task(inner: InnerLoop, task: Episodes, steps: Sequence[int]) -> Tensor:
    module, of_queries = inner.module, task.query.real[0]
    support_x, support_y = (values[0][task.support.real[0]] for values in (task.support.x, task.support.y))
    query_x = task.query.x[0][of_queries]
    if module is inner.net.head:
        body = inner.net.body
        support_x, query_x = body(support_x), inner.query_outputs(body, body, support_x, query_x)
    learner: Any = _wrap(inner, module).clone()
    done, found = 0, []
    for after in steps:
        for _ in range(done, after):
            learner.adapt(task.problem.loss(learner(support_x), support_y))
        found.append(spread(inner.query_outputs(learner, learner, support_x, query_x), of_queries))
        done = after
    return torch.stack(found)


def _wrap(inner: InnerLoop, module: nn.Module) -> Any:
    alphas = list(inner.step_sizes[0].values())
    if isinstance(alphas[0], Tensor):
        meta_sgd = learn2learn("algorithms.meta_sgd", needed_for="hardware.engine=learn2learn").MetaSGD
        return meta_sgd(module, lrs=alphas, first_order=inner.first_order)
    maml = learn2learn("algorithms.maml", needed_for="hardware.engine=learn2learn").MAML
    return maml(module, lr=alphas[0], first_order=inner.first_order)
