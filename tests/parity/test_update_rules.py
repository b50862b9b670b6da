"""Update rules against torch.optim, and the gradients through them: engines against each other and finite differences."""

from __future__ import annotations

import copy

import pytest
import torch
from problems import TinyNet, random_episodes
from torch import nn
from torch.nn.functional import cross_entropy

from fsl_cli.algos.maml import MAML
from fsl_cli.backbones.batch_norm import BatchNorm
from fsl_cli.errors import FslError
from fsl_cli.inner.fast.engine import FastTaskBatch
from fsl_cli.inner.tasks import loop_tasks, vmap_tasks
from fsl_cli.inner.update_rules import SGD, Adam, Momentum, parameters_in, update_rule

EPISODES = random_episodes()
RULES = {
    "sgd": lambda parameters, decay: torch.optim.SGD(parameters, lr=0.3, weight_decay=decay),
    "momentum": lambda parameters, decay: torch.optim.SGD(parameters, lr=0.3, momentum=0.9, weight_decay=decay),
    "adam": lambda parameters, decay: torch.optim.Adam(parameters, lr=0.3, weight_decay=decay),
}
CASES = [(name, decay) for name in RULES for decay in (0.0, 0.1)]


def sequential() -> nn.Sequential:
    """Without a bias before batch normalisation: its gradient is rounding noise, which Adam would amplify."""
    convolution = nn.Conv2d(1, 4, 3, 2, 1, bias=False)
    return nn.Sequential(convolution, BatchNorm(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def maml(engine: str, **options) -> MAML:
    torch.manual_seed(0)
    algorithm = MAML(sequential(), 4, EPISODES.ways, engine, **({"inner_lr": 0.3} | options)).double()
    nn.init.normal_(algorithm.net.head.weight)
    return algorithm


def loss_and_gradients(algorithm: MAML) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    loss = algorithm.loss(EPISODES).loss
    loss.backward()
    return loss.detach(), {name: each.grad for name, each in algorithm.named_parameters()}


@pytest.mark.parametrize(("name", "decay"), CASES)
@pytest.mark.parametrize("engine", ["loop", "vmap", "fast"])
def test_steps_match_torch_optim(engine, name, decay):
    steps = [0, 1, 4]
    algorithm = maml(engine, inner_optimizer=name, inner_weight_decay=decay, test_inner_steps=steps)
    found = algorithm.outputs_after(EPISODES, steps)
    for task in range(len(EPISODES)):
        net = copy.deepcopy(algorithm.net)
        optimizer = RULES[name](net.parameters(), decay)
        for step in range(5):
            if step in steps:
                expected = net(EPISODES.query.x[task])
                torch.testing.assert_close(found[steps.index(step), task], expected, rtol=1e-7, atol=1e-9)
            optimizer.zero_grad()
            cross_entropy(net(EPISODES.support.x[task]), EPISODES.support.y[task]).backward()
            optimizer.step()


@pytest.mark.parametrize(("name", "decay"), CASES)
@pytest.mark.parametrize("order", [{"first_order": False}, {"first_order": True}], ids=str)
@pytest.mark.parametrize("learning", ["per_parameter", "per_layer_per_step"])
def test_engines_agree_on_the_gradients(name, decay, order, learning):
    options = {"inner_optimizer": name, "inner_weight_decay": decay, "inner_steps": 3, "inner_lr_learning": learning, **order}
    loss, reference = loss_and_gradients(maml("loop", **options))
    assert all(each.abs().max() > 1e-8 for each in reference.values())
    for engine in ("vmap", "fast"):
        other, gradients = loss_and_gradients(maml(engine, **options))
        torch.testing.assert_close(other, loss, rtol=1e-9, atol=1e-11)
        for key, value in reference.items():
            torch.testing.assert_close(gradients[key], value, rtol=1e-5, atol=1e-8, msg=f"{engine} {key}")


@pytest.mark.parametrize("name", RULES)
def test_gradients_through_the_steps_match_finite_differences(name):
    algorithm = maml("fast", inner_optimizer=name, inner_weight_decay=0.1, inner_steps=3, inner_lr=0.1)
    _, gradients = loss_and_gradients(algorithm)
    for key, parameter in algorithm.named_parameters():
        flat, values = parameter.data.view(-1), []
        for sign in (1, -1):
            before = flat[0].item()
            flat[0] = before + sign * 1e-6
            values.append(algorithm.loss(EPISODES).loss.item())
            flat[0] = before
        assert gradients[key].view(-1)[0].item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4, abs=1e-7), key


@pytest.mark.parametrize("name", RULES)
def test_checkpointed_steps_keep_the_optimizer_state(name):
    options = {"inner_optimizer": name, "inner_weight_decay": 0.1, "inner_steps": 5}
    for engine in ("loop", "fast"):
        _, unrolled = loss_and_gradients(maml(engine, **options))
        _, again = loss_and_gradients(maml(engine, checkpoint_inner=True, **options))
        for key in unrolled:
            torch.testing.assert_close(again[key], unrolled[key], rtol=1e-9, atol=1e-12)


def test_adam_passes_no_nan_where_a_gradient_is_zero():
    theta = {"w": torch.zeros(2, dtype=torch.float64, requires_grad=True)}
    rule = Adam()
    state = rule.begin(theta)
    for step in range(2):
        gradient = {"w": parameters_in(state)["w"] * torch.tensor([0.0, 1.0]) + torch.tensor([0.0, 1.0])}
        state = rule.step(state, gradient, {"w": 0.1}, step)
    state["w"].sum().backward()
    assert theta["w"].grad.isfinite().all()
    assert theta["w"].grad[0] == 1


def test_a_step_size_for_each_step_is_used_in_its_step():
    algorithm = maml("loop", inner_steps=3, inner_lr_learning="per_layer_per_step")
    rates = [0.1, 0.5, 0.02]
    for alpha in algorithm.step_sizes.values:
        alpha.data.copy_(torch.tensor(rates, dtype=torch.float64))
    logits = algorithm.outputs_after(EPISODES, [5])[0]
    for task in range(len(EPISODES)):
        net = copy.deepcopy(algorithm.net)
        for rate in [*rates, rates[-1], rates[-1]]:
            net.zero_grad()
            cross_entropy(net(EPISODES.support.x[task]), EPISODES.support.y[task]).backward()
            with torch.no_grad():
                for parameter in net.parameters():
                    parameter -= rate * parameter.grad
        torch.testing.assert_close(logits[task], net(EPISODES.query.x[task]), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("which", ["all", "head"])
def test_steps_cycle_through_the_mini_batches(which):
    batches = torch.tensor([[[0, 2], [5, 1]], [[3, 4], [0, 0]], [[1, 2], [4, 5]]])
    algorithm = maml("loop", adapt=which)
    inner = algorithm.inner_loop(EPISODES.ways)
    found = {kind: kind(inner, EPISODES, batches).outputs_after([3])[0] for kind in (loop_tasks, vmap_tasks, FastTaskBatch)}
    for task in range(len(EPISODES)):
        net = copy.deepcopy(algorithm.net)
        part = net if which == "all" else net.head
        features = net.body(EPISODES.support.x[task]).detach()
        for step in range(3):
            rows = batches[task, step % 2]
            x = EPISODES.support.x[task][rows] if which == "all" else features[rows]
            net.zero_grad()
            cross_entropy(part(x), EPISODES.support.y[task][rows]).backward()
            with torch.no_grad():
                for parameter in part.parameters():
                    parameter -= 0.3 * parameter.grad
        for logits in found.values():
            torch.testing.assert_close(logits[task], net(EPISODES.query.x[task]), rtol=1e-8, atol=1e-10)


def test_support_losses_and_features_match_the_net():
    inner = maml("loop").inner_loop(EPISODES.ways)
    for kind in (loop_tasks, vmap_tasks, FastTaskBatch):
        tasks = kind(inner, EPISODES)
        losses, features = tasks.support_loss(tasks.start, 0), tasks.support_features()
        for task in range(len(EPISODES)):
            x, y = EPISODES.support.x[task], EPISODES.support.y[task]
            torch.testing.assert_close(losses[task], cross_entropy(inner.net(x), y), rtol=1e-9, atol=1e-11)
            torch.testing.assert_close(features[task], inner.net.body(x), rtol=1e-9, atol=1e-11)


def test_options_select_the_update_rule_and_learn2learn_supports_only_sgd():
    assert update_rule("sgd", 0.0) == SGD()
    assert update_rule("momentum", 0.5) == Momentum(0.5)
    assert update_rule("adam", 0.5) == Adam(0.5)
    pytest.importorskip("learn2learn")
    for options in ({"inner_optimizer": "adam"}, {"inner_weight_decay": 0.1}):
        with pytest.raises(FslError, match="learn2learn has no other inner optimizer"):
            MAML(TinyNet(), 4, 3, "learn2learn", **options)
