"""Second moments of an inner Adam that go on from task to task, as where one optimizer object trains on task after task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from fsl_cli.compute.running_averages import RunningAverages
from fsl_cli.inner.inner_loop import Classifier, mean_row
from fsl_cli.inner.tasks import TaskBatch
from fsl_cli.inner.update_rules import Adam, Parameters, second_moments_in


class CarriedMoments(RunningAverages):
    """The running averages of the squared inner gradients, over the steps of all tasks.

    A task of k steps that starts from v ends at beta2^k v + s; another one after it starts from there. Here all tasks of an
    outer step start from the moments before it, whatever is computed at once, and their s are then added up in that way.

    Args:
        net: whose parameters the inner loop adapts.
        rule: Adam's options.
        steps: k.

    Attributes:
        second: ``[P]``, the moments of all parameters.
        weight: ``[1]``, the same average of ones: 1 - beta2^t after t steps, which Adam corrects its bias by.
    """

    second: Tensor
    weight: Tensor
    second_before: Tensor
    weight_before: Tensor

    def __init__(self, net: Classifier, rule: Adam, steps: int) -> None:
        super().__init__(1 - rule.beta2**steps)
        shapes = {name: theta.shape for name, theta in net.named_parameters()}
        self._shapes, self._rule = shapes, rule
        self.register_buffer("second", torch.zeros(sum(shape.numel() for shape in shapes.values())))
        self.register_buffer("weight", torch.zeros(1))
        for name in ("second", "weight"):
            self.register_buffer(f"{name}_before", getattr(self, name).clone(), persistent=False)

    def averages(self) -> tuple[Tensor, ...]:
        """The moments and their weight."""
        return self.second, self.weight

    @torch.no_grad()
    def begin_iteration(self) -> None:
        """The tasks of the next outer step start from what is known now."""
        self.second_before.copy_(self.second)
        self.weight_before.copy_(self.weight)

    def rule_of(self, pack: Callable[[Mapping[str, Tensor]], Parameters], ways: int, *, training: bool) -> Adam:
        """Adam that starts a task from the moments.

        Args:
            pack: see `TaskBatch.pack`.
            ways: classes of the task; where training has others, all rows of the head start from the mean of its rows.
            training: from those before the outer step; false: from the latest.
        """
        second, weight = (self.second_before, self.weight_before) if training else self.averages()
        return replace(self._rule, second=pack(self._by_name(second, ways)), weight=weight)

    @torch.no_grad()
    def move(self, tasks: TaskBatch, state: Parameters, parameters: Mapping[str, nn.Parameter]) -> None:
        """Add what tasks have done to the moments.

        Args:
            tasks: the tasks, which have started from ``rule_of(..., training=True)``.
            state: of the rule after their last step.
            parameters: of the net, by name.
        """
        keep, ends = 1 - self.momentum, second_moments_in(state)
        count = len(tasks.episodes)
        factors = keep ** torch.arange(count - 1, -1, -1, device=self.second.device, dtype=self.second.dtype)
        own = {name: torch.tensordot(factors.to(end), end, dims=1) for name, end in ends.items()}
        added = torch.cat([each.flatten() for each in self._unpacked(tasks, own, parameters).values()])
        added -= factors.sum() * keep * self.second_before
        self.second.mul_(keep**count).add_(added)
        self.weight.mul_(keep**count).add_(1 - keep**count)
        self.moves += count

    def _by_name(self, values: Tensor, ways: int) -> Parameters:
        parts = values.split([shape.numel() for shape in self._shapes.values()])
        named = {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}
        return {
            name: mean_row(each, ways) if name.startswith("head.") and len(each) != ways else each
            for name, each in named.items()
        }

    def _unpacked(self, tasks: TaskBatch, values: Parameters, parameters: Mapping[str, nn.Parameter]) -> Parameters:
        """Values in the layout of the engine as those of the module: packing is linear, and this is its transpose."""
        with torch.enable_grad():
            product = torch.stack([(theta * values[name]).sum() for name, theta in tasks.start.items()]).sum()
            found = torch.autograd.grad(product, list(parameters.values()), allow_unused=True, retain_graph=True)
        return {
            name: torch.zeros_like(theta) if each is None else each
            for (name, theta), each in zip(parameters.items(), found, strict=True)
        }
