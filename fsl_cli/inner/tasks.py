"""A batch of tasks under adaptation: the interface between the inner loop and an engine, and its generic implementation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fsl_cli.backbones.batch_norm import BatchNorm
from fsl_cli.episodes import Episodes
from fsl_cli.episodes.episodes import spread
from fsl_cli.errors import FslError
from fsl_cli.inner.adaptation import GradientOf, adapt, autograd_gradient, functional_gradient, of_step
from fsl_cli.inner.inner_loop import InnerLoop
from fsl_cli.inner.update_rules import Parameters, parameters_in


class TaskBatch(ABC):
    """T tasks: their support losses and query outputs as functions of the adapted parameters.

    Parameters are named as in ``inner.module``, in the memory layout of the engine. A value is either shared by all tasks
    or has a leading task axis.

    Args:
        inner: the inner loop.
        episodes: the tasks.
        batches: int64 ``[T, S, B]``, the rows of the support set that step s uses; later steps start again at s = 0.
            None: all rows.

    Attributes:
        start: the adapted parameters before the first step, differentiable with respect to those of the net.
    """

    start: Parameters

    def __init__(self, inner: InnerLoop, episodes: Episodes, batches: Tensor | None = None) -> None:
        self.inner, self.episodes, self.batches = inner, episodes, batches

    @abstractmethod
    def pack(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Convert values with the shapes of the module's parameters to the engine's layout; scalars are unchanged."""

    def pack_each(self, values: Parameters) -> Parameters:
        """`pack` for values with a leading task axis, ``[T, ...]``, which the result has too."""
        packed: Parameters = torch.func.vmap(self.pack)(values)
        return packed

    @abstractmethod
    def gradient(self, adapted: Parameters, step: int, *, first_order: bool) -> Parameters:
        """Gradients ``[T, ...]`` of the tasks' support losses w.r.t. ``adapted``; differentiable unless ``first_order``."""

    @abstractmethod
    def support_loss(self, adapted: Parameters, step: int) -> Tensor:
        """Loss ``[T]`` of each task on its support set before a step."""

    @abstractmethod
    def query_outputs(self, adapted: Parameters, step: int) -> Tensor:
        """Outputs ``[T, B, O]`` of the queries after a step."""

    @abstractmethod
    def support_features(self) -> Tensor:
        """Features of each support set from the body of the net, ``[T, S, D]``, differentiable."""

    def adapted(self, state: Parameters, steps: range) -> Parameters:
        """The state of ``inner.rule`` after ``steps``."""
        inner = self.inner
        sizes = [self.pack(inner.local(each)) for each in inner.step_sizes]
        gradient = partial(self.gradient, first_order=inner.first_order)
        return adapt(gradient, inner.rule, state, sizes, steps, checkpoint=inner.checkpoint)

    def outputs_after(self, steps: Sequence[int], start: Parameters | None = None) -> Tensor:
        """Query outputs ``[len(steps), T, B, O]`` after each number of steps, ascending; ``start`` replaces `start`."""
        state = self.inner.rule.begin(self.start if start is None else start)
        done, found = 0, []
        for after in steps:
            state = self.adapted(state, range(done, after))
            found.append(self.query_outputs(parameters_in(state), max(after - 1, 0)))
            done = after
        return torch.stack(found)

    def rows_of(self, values: Tensor, step: int) -> Tensor:
        """The rows of ``values [T, S, ...]`` that belong to the support examples used in a step."""
        if self.batches is None:
            return values
        rows = self.batches[:, step % self.batches.shape[1]]
        return values[torch.arange(len(rows), device=rows.device)[:, None], rows]


def check_rows_are_alone(inner: InnerLoop, episodes: Episodes) -> None:
    """Raise `FslError` if batch normalisation would mix examples with padding rows."""
    if episodes.masked and has_batch_norm(inner.net):
        what = "with uneven shots and batch normalisation, tasks must be run one after the other"
        raise FslError(what, where="hardware.engine", hint="leave it at auto, or use loop")


def has_batch_norm(net: nn.Module) -> bool:
    """Whether a network has batch normalisation, so that its outputs depend on the other examples in the batch."""
    return any(isinstance(layer, BatchNorm) for layer in net.modules())


MapOverTasks = Callable[..., Any]


class MappedTaskBatch(TaskBatch):
    """TaskBatch for any network: functions of one task, mapped over tasks.

    Args:
        inner: see `TaskBatch`.
        episodes: see `TaskBatch`.
        batches: see `TaskBatch`.
        task_map: `one_after_the_other` or `all_at_once`.
        gradient_of: `autograd_gradient` or `functional_gradient`.
    """

    def __init__(
        self,
        inner: InnerLoop,
        episodes: Episodes,
        batches: Tensor | None = None,
        *,
        task_map: MapOverTasks,
        gradient_of: GradientOf,
    ) -> None:
        super().__init__(inner, episodes, batches)
        self._map, self._gradient_of = task_map, gradient_of
        self._alone = task_map is one_after_the_other  # tasks may differ in size: padding rows are removed
        if not self._alone:
            check_rows_are_alone(inner, episodes)
        self._module, self._x, self._query_x = inner.module, episodes.support.x, episodes.query.x
        if self._module is inner.net.head:  # the features are constant while the head adapts: compute them once
            body = inner.net.body
            queries = partial(self._query_outputs, body, body)
            features = self._map(lambda _, *x: queries(*x), {}, {}, self._x, self._query_x, *self._masks())
            self._x, self._query_x = self.support_features(), features
        self._parameters = dict(self._module.named_parameters())
        names = inner.local(of_step(inner.step_sizes, 0))
        self.start = {name: self._parameters[name] for name in names}

    def pack(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values, unchanged."""
        return dict(values)

    def gradient(self, adapted: Parameters, step: int, *, first_order: bool) -> Parameters:
        """See `TaskBatch`."""
        weights = self._weights(step)

        def one(adapted: Parameters, *examples: Tensor) -> Parameters:
            return self._gradient_of(lambda adapted: self._loss(weights | adapted, *examples), adapted, first_order=first_order)

        found: Parameters = self._mapped(one, adapted, *self._examples(step))
        return found

    def support_loss(self, adapted: Parameters, step: int) -> Tensor:
        """See `TaskBatch`."""
        weights = self._weights(step)

        def one(adapted: Parameters, *examples: Tensor) -> Tensor:
            return self._loss(weights | adapted, *examples)

        found: Tensor = self._mapped(one, adapted, *self._examples(step))
        return found

    def query_outputs(self, adapted: Parameters, step: int) -> Tensor:
        """See `TaskBatch`."""
        weights = self._weights(step)

        def one(adapted: Parameters, *x: Tensor) -> Tensor:
            forward = partial(torch.func.functional_call, self._module, weights | adapted)
            return self._query_outputs(self._module, forward, *x)

        found: Tensor = self._mapped(one, adapted, self._x, self._query_x, *self._masks())
        return found

    def support_features(self) -> Tensor:
        """See `TaskBatch`."""
        body = self.inner.net.body

        def one(_: Parameters, x: Tensor, *masks: Tensor) -> Tensor:
            return spread(body(x[masks[0]]), masks[0]) if masks and self._alone else body(x)

        found: Tensor = self._map(one, {}, {}, self.episodes.support.x, *self._masks())
        return found

    def _weights(self, step: int) -> Parameters:
        return self._parameters | self.inner.local(of_step(self.inner.step_weights, step))

    def _examples(self, step: int) -> list[Tensor]:
        """Inputs, targets and, if there is one, mask of the support examples that a step uses."""
        support = self.episodes.support
        mask = [] if support.mask is None else [support.mask]
        return [self.rows_of(values, step) for values in (self._x, support.y, *mask)]

    def _masks(self) -> list[Tensor]:
        """Masks of support and queries; empty if neither has one."""
        return [self.episodes.support.real, self.episodes.query.real] if self.episodes.masked else []

    def _query_outputs(
        self, module: nn.Module, forward: Callable[[Tensor], Tensor], support_x: Tensor, query_x: Tensor, *masks: Tensor
    ) -> Tensor:
        """`InnerLoop.query_outputs` of one task, with zeros in padding rows."""
        if not (masks and self._alone):
            return self.inner.query_outputs(module, forward, support_x, query_x)
        of_support, of_queries = masks
        found = self.inner.query_outputs(module, forward, support_x[of_support], query_x[of_queries])
        return spread(found, of_queries)

    def _loss(self, weights: Parameters, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is not None and self._alone:
            x, y, mask = x[mask], y[mask], None
        return self.episodes.problem.loss(torch.func.functional_call(self._module, weights, x), y, mask)

    def _mapped(self, one: Callable[..., Any], adapted: Parameters, *tensors: Tensor) -> Any:
        own = {name: 0 if value.ndim > self._parameters[name].ndim else None for name, value in adapted.items()}
        return self._map(one, own, adapted, *tensors)


def one_after_the_other(one: Callable[..., Any], own: Mapping[str, int | None], adapted: Parameters, *tensors: Tensor) -> Any:
    """Map a function of one task over tasks, in a Python loop.

    Args:
        one: function of the parameters and further tensors of one task; returns a tensor, or tensors by name.
        own: 0 for parameters with a task axis, None for shared parameters.
        adapted: the parameters.
        tensors: ``[T, ...]`` each.
    """

    def task(index: int) -> Any:
        mine = {name: value if own[name] is None else value[index] for name, value in adapted.items()}
        return one(mine, *(each[index] for each in tensors))

    found = [task(index) for index in range(len(tensors[0]))]
    if isinstance(found[0], dict):
        return {name: torch.stack([each[name] for each in found]) for name in found[0]}
    return torch.stack(found)


def all_at_once(one: Callable[..., Any], own: Mapping[str, int | None], adapted: Parameters, *tensors: Tensor) -> Any:
    """Like `one_after_the_other`, by `torch.func.vmap`."""
    return torch.func.vmap(one, in_dims=(own, *[0] * len(tensors)), randomness="different")(adapted, *tensors)


loop_tasks = partial(MappedTaskBatch, task_map=one_after_the_other, gradient_of=autograd_gradient)
vmap_tasks = partial(MappedTaskBatch, task_map=all_at_once, gradient_of=functional_gradient)
