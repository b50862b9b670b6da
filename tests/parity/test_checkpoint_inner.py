"""Checkpointed inner steps give the same gradients as unrolled steps, with little more memory than one step."""

from __future__ import annotations

import pytest
import torch
from benchmark_timing import peak_mb
from problems import TinyNet, random_episodes
from torch import nn

from fsl_cli.algos.maml import MAML
from fsl_cli.backbones.batch_norm import BatchNorm
from fsl_cli.backbones.conv4 import Conv4
from fsl_cli.errors import FslError

EPISODES = random_episodes()


def sequential() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), BatchNorm(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def gradients(engine: str, checkpoint: bool, **options) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    net = sequential() if engine == "fast" else TinyNet()
    algorithm = MAML(net, 4, EPISODES.ways, engine, inner_lr=0.3, checkpoint_inner=checkpoint, **options).double()
    nn.init.normal_(algorithm.net.head.weight)
    algorithm.loss(EPISODES).loss.backward()
    return {name: each.grad for name, each in algorithm.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("engine", ["fast", "loop"])
@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("options", [{}, {"adapt": "head"}, {"inner_lr_learning": "per_parameter"}], ids=str)
def test_gradients_match_the_unrolled_steps(engine, steps, options):
    unrolled = gradients(engine, False, inner_steps=steps, **options)
    again = gradients(engine, True, inner_steps=steps, **options)
    assert unrolled.keys() == again.keys()
    assert max(each.abs().max() for each in unrolled.values()) > 1e-3
    for name in unrolled:
        torch.testing.assert_close(again[name], unrolled[name], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("queries", [1, 5])
def test_twenty_checkpointed_steps_need_little_more_memory_than_one(queries):
    episodes = random_episodes(ways=5, shots=1, queries=queries, tasks=2, size=28).to(dtype=torch.float32)

    def peak(**options) -> float:
        torch.manual_seed(0)
        algorithm = MAML(Conv4((1, 28, 28), filters=16), 16, 5, "fast", inner_lr=0.1, **options)

        def run() -> None:
            algorithm.zero_grad()
            algorithm.loss(episodes).loss.backward()

        run()
        return peak_mb(run, torch.device("cpu"))

    one = peak(inner_steps=1)
    assert peak(inner_steps=20) > 3 * one  # else nothing would be shown
    assert peak(inner_steps=20, checkpoint_inner=True) < 1.5 * one


def test_auto_uses_the_loop_if_fast_does_not_support_the_network():
    auto, loop = (gradients(engine, True, inner_steps=2) for engine in ("auto", "loop"))
    assert all(torch.equal(auto[name], loop[name]) for name in loop)


@pytest.mark.parametrize(("engine", "message"), [("vmap", "vmap does not support"), ("learn2learn", "learn2learn has no")])
def test_engines_without_checkpointing_are_refused(engine, message):
    if engine == "learn2learn":
        pytest.importorskip("learn2learn")
    with pytest.raises(FslError, match=message):
        MAML(TinyNet(), 4, 3, engine, checkpoint_inner=True)
