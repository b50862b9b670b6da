"""MAML++ against the slow way, and each of its switches."""

from __future__ import annotations

import copy

import pytest
import torch
from problems import TinyNet, changed, random_episodes
from small_training import accuracy, faint_patterns, is_at_chance, noise_classes, train
from torch import nn
from torch.nn.functional import cross_entropy

from fsl_cli.algos.maml import MAML
from fsl_cli.algos.mamlpp import MAMLPlusPlus, importance_of_steps
from fsl_cli.backbones.batch_norm import BatchNorm
from fsl_cli.backbones.mlp import MLP
from fsl_cli.episodes import Episodes, EpisodeSampler, Examples, Task
from fsl_cli.errors import FslError

EXACT = {"rtol": 1e-9, "atol": 1e-11}
EPISODES = random_episodes()
TASK, SHAPE = Task(5, 1, 5), (2, 4, 4)
TRAIN = EpisodeSampler(faint_patterns(seed=0), "train", TASK, 0)
TEST = EpisodeSampler(faint_patterns(seed=1), "test", TASK, 0)
OFF = {"inner_lr_learning": "none", "multi_step_iterations": 0, "per_step_batch_norm": False}


def sequential() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1, bias=False), BatchNorm(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def mamlpp(engine: str = "loop", net=TinyNet, **options) -> MAMLPlusPlus:
    """In float64, with step sizes, scales and shifts that differ from step to step."""
    torch.manual_seed(0)
    algorithm = MAMLPlusPlus(net(), 4, EPISODES.ways, engine, **({"inner_steps": 3} | options)).double()
    nn.init.normal_(algorithm.net.head.weight)
    for value in [*algorithm.step_sizes.values, *algorithm.batch_norms.parameters()]:
        nn.init.uniform_(value, 0.2, 0.6)
    return algorithm


def learner(cls=MAMLPlusPlus, **options) -> MAMLPlusPlus:
    torch.manual_seed(0)
    return cls(MLP(SHAPE, widths=[32]), 32, TASK.ways, **options)


def slow_losses(algorithm: MAMLPlusPlus, task: int) -> list[torch.Tensor]:
    """Query losses after every step, with batch normalisation's weights put into a copy before every forward pass."""
    net = copy.deepcopy(algorithm.net)
    adapted = {name: p for name, p in net.named_parameters() if p.requires_grad}
    losses = []
    for step in range(algorithm.inner_steps):
        if len(algorithm.batch_norms.steps):
            own = algorithm.batch_norms.steps[step][0]
            net.body.norm.weight.data, net.body.norm.bias.data = own.weight.data, own.bias.data
        net.zero_grad()
        cross_entropy(net(EPISODES.support.x[task]), EPISODES.support.y[task]).backward()
        with torch.no_grad():
            for (_, parameter), alpha in zip(adapted.items(), algorithm.step_sizes.values, strict=True):
                parameter -= alpha[step] * parameter.grad
            losses.append(cross_entropy(net(EPISODES.query.x[task]), EPISODES.query.y[task]))
    return losses


@pytest.mark.parametrize("per_step", [True, False])
@pytest.mark.parametrize("iteration", [0, 30, 99, 100])
def test_loss_is_the_weighted_sum_over_the_steps_the_slow_way(iteration, per_step):
    algorithm = mamlpp(multi_step_iterations=100, per_step_batch_norm=per_step)
    algorithm.begin_iteration(iteration)
    weights = importance_of_steps(3, iteration, 100)
    step = algorithm.loss(EPISODES)
    slow = torch.stack([torch.stack(slow_losses(algorithm, task)) for task in range(len(EPISODES))]).mean(0)
    torch.testing.assert_close(step.loss.detach(), (weights.double() * slow).sum(), **EXACT)
    torch.testing.assert_close(step.metrics["last_step_loss"], slow[-1], **EXACT)
    assert step.metrics["last_step_importance"] == weights[-1]


def test_importance_is_annealed_as_in_the_authors_code():
    """get_per_step_loss_importance_vector for 5 steps over 10 epochs, by hand."""
    for epoch in range(10):
        earlier = max(0.2 - epoch * 0.02, 0.03 / 5)
        last = min(0.2 + epoch * 4 * 0.02, 1 - 4 * 0.03 / 5)
        torch.testing.assert_close(importance_of_steps(5, epoch, 10), torch.tensor([earlier] * 4 + [last]))
    assert importance_of_steps(5, 10, 10).tolist() == importance_of_steps(5, 0, 0).tolist() == [0, 0, 0, 0, 1]


@pytest.mark.parametrize(
    "options", [{}, {"first_order_iterations": 1}, {"multi_step_iterations": 0}, {"batch_norm": "inductive"}]
)
def test_engines_agree_on_loss_and_gradients(options):
    found = {}
    for engine in ("loop", "vmap", "fast"):
        algorithm = mamlpp(engine, sequential, **options)
        loss = algorithm.loss(EPISODES).loss
        loss.backward()
        grads = {n: p.grad for n, p in algorithm.named_parameters() if p.requires_grad}
        found[engine] = loss.detach(), grads
    loss, reference = found["loop"]
    assert all(value.abs().max() > 1e-9 for value in reference.values())
    for engine in ("vmap", "fast"):
        torch.testing.assert_close(found[engine][0], loss, **EXACT)
        for name, value in reference.items():
            torch.testing.assert_close(found[engine][1][name], value, rtol=1e-7, atol=1e-10, msg=f"{engine} {name}")


def test_gradients_are_finite_differences():
    algorithm = mamlpp("fast", sequential)
    algorithm.loss(EPISODES).loss.backward()
    for name, parameter in algorithm.named_parameters():
        if parameter.grad is None:
            assert name in {"net.body.1.weight", "net.body.1.bias"}
            continue
        flat, values = parameter.data.view(-1), []
        for sign in (1, -1):
            before = flat[0].item()
            flat[0] = before + sign * 1e-6
            values.append(algorithm.loss(EPISODES).loss.item())
            flat[0] = before
        assert parameter.grad.view(-1)[0].item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4, abs=1e-8), name


def test_with_every_switch_off_it_is_maml():
    plain = MAML(TinyNet(), 4, EPISODES.ways, "loop", inner_steps=3, inner_lr=0.3).double()
    off = mamlpp(inner_lr=0.3, **OFF)
    plain.net.load_state_dict(off.net.state_dict())
    torch.testing.assert_close(off.loss(EPISODES).loss, plain.loss(EPISODES).loss, **EXACT)
    assert set(off.state_dict()) == set(plain.state_dict())


def test_derivative_order_is_annealed():
    algorithm = mamlpp(first_order_iterations=5, multi_step_iterations=0)

    def gradient(iteration: int) -> torch.Tensor:
        algorithm.zero_grad()
        algorithm.begin_iteration(iteration)
        algorithm.loss(EPISODES).loss.backward()
        return algorithm.net.body.conv.weight.grad.clone()

    assert torch.equal(gradient(0), gradient(4))
    assert torch.equal(gradient(5), gradient(50))
    assert not torch.allclose(gradient(4), gradient(5), rtol=1e-2)


def test_batch_normalisation_of_a_step_is_learned_and_not_adapted():
    algorithm = learner(inner_steps=2)
    assert not any("norm" in name for name in algorithm.step_sizes._names)
    before = [value.clone() for value in algorithm.batch_norms.parameters()]
    own = {name: value.clone() for name, value in algorithm.net.named_parameters() if not value.requires_grad}
    assert len(own) == 2
    assert len(before) == 2 * 2
    train(algorithm, TRAIN, iterations=3)
    for value, old in zip(algorithm.batch_norms.parameters(), before, strict=True):
        assert (value != old).any()
    assert all(torch.equal(value, own[name]) for name, value in algorithm.net.named_parameters() if name in own)


def slow_averages(algorithm: MAMLPlusPlus, episodes: Episodes) -> list[nn.BatchNorm2d]:
    """For each step torch's layer after the support and query batches of that step, one task after the other."""
    norms = [nn.BatchNorm2d(4).double() for _ in range(algorithm.inner_steps)]
    for norm, own in zip(norms, algorithm.batch_norms.steps, strict=True):
        norm.weight.data, norm.bias.data = own[0].weight.data.clone(), own[0].bias.data.clone()
    for task in range(len(episodes)):
        slow_pass(algorithm, norms, episodes, task)
    return norms


def slow_pass(algorithm: MAMLPlusPlus, norms: list[nn.BatchNorm2d], episodes: Episodes, task: int) -> torch.Tensor:
    """Query logits of a task after all steps, each with its own layer of torch."""
    net, logits = copy.deepcopy(algorithm.net), torch.zeros(0)
    adapted = [p for p in net.parameters() if p.requires_grad]
    for step, norm in enumerate(norms):
        net.body.norm, step = norm, min(step, algorithm.inner_steps - 1)
        gradients = torch.autograd.grad(cross_entropy(net(episodes.support.x[task]), episodes.support.y[task]), adapted)
        with torch.no_grad():
            for parameter, gradient, alpha in zip(adapted, gradients, algorithm.step_sizes.values, strict=True):
                parameter -= alpha[step] * gradient
            logits = net(episodes.query.x[task])
    return logits


@pytest.mark.parametrize("size", [1, 2, 3])
def test_running_averages_of_every_step_are_those_of_a_layer_of_torch_for_each_step(size):
    algorithm = mamlpp(batch_norm="running")
    norms = slow_averages(algorithm, EPISODES)
    for part in EPISODES.split(size):
        algorithm.loss(part)
    for own, norm in zip(algorithm.batch_norms.steps, norms, strict=True):
        torch.testing.assert_close(own[0].running_mean, norm.running_mean, **EXACT)
        torch.testing.assert_close(own[0].running_var, norm.running_var, **EXACT)
    assert not torch.allclose(norms[0].running_var, norms[1].running_var)
    with torch.no_grad():
        found = algorithm.predict(EPISODES)
        one = algorithm.predict(changed(EPISODES, query_x=EPISODES.query.x[:, :1], query_y=EPISODES.query.y[:, :1]))
    for task in range(len(EPISODES)):
        expected = slow_pass(algorithm, [norm.eval() for norm in norms], EPISODES, task)
        torch.testing.assert_close(found[task], expected, **EXACT)
    torch.testing.assert_close(one, found[:, :1], **EXACT)
    assert not algorithm.transductive


@pytest.mark.parametrize("engine", ["loop", "auto"])
def test_running_averages_serve_other_numbers_of_steps(engine):
    algorithm = mamlpp(engine, batch_norm="running")
    norms = [norm.eval() for norm in slow_averages(algorithm, EPISODES)]
    algorithm.loss(EPISODES)
    with torch.no_grad():
        none, more = algorithm.outputs_after(EPISODES, [0, 5])
    for task in range(len(EPISODES)):
        torch.testing.assert_close(more[task], slow_pass(algorithm, [*norms, norms[-1], norms[-1]], EPISODES, task), **EXACT)
        net = copy.deepcopy(algorithm.net)
        net.body.norm = norms[0]
        torch.testing.assert_close(none[task], net(EPISODES.query.x[task]).detach(), **EXACT)


def test_training_with_running_averages_is_transductive_training():
    one, other = mamlpp(batch_norm="running"), mamlpp(batch_norm="transductive")
    for algorithm in (one, other):
        algorithm.loss(EPISODES).loss.backward()
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None)
        if mine.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, **EXACT)


def test_running_averages_need_training_with_them_and_batch_normalisation_of_every_step():
    with pytest.raises(FslError, match="trained without running averages"):
        mamlpp(batch_norm="running").predict(EPISODES)
    with pytest.raises(FslError, match="per_step_batch_norm=false"):
        mamlpp(batch_norm="running", per_step_batch_norm=False)


@pytest.fixture(scope="module")
def trained() -> MAMLPlusPlus:
    algorithm = learner(inner_steps=2, multi_step_iterations=60)
    assert accuracy(algorithm, TEST) < 0.35
    train(algorithm, TRAIN, iterations=120)
    return algorithm


def test_learns_and_serves_other_ways_and_shots(trained):
    assert accuracy(trained, TEST) > 0.75
    assert accuracy(trained, EpisodeSampler(faint_patterns(seed=1), "test", Task(20, 1, 5), 0), 40) > 0.4
    assert accuracy(trained, EpisodeSampler(faint_patterns(seed=1), "test", Task(5, 5, 5), 0), 50) > 0.85


@pytest.mark.parametrize(
    "options",
    [
        {"per_step_batch_norm": False},
        {"multi_step_iterations": 0},
        {"inner_lr_learning": "none"},
        {"first_order_iterations": 60},
        {"batch_norm": "inductive"},
    ],
    ids=str,
)
def test_learns_with_a_switch_the_other_way(options):
    algorithm = learner(**({"inner_steps": 2, "multi_step_iterations": 60, "inner_lr": 0.3} | options))
    train(algorithm, TRAIN, iterations=120)
    assert accuracy(algorithm, TEST) > 0.6


def test_running_averages_serve_a_trained_network_above_chance():
    algorithm = learner(inner_steps=2, multi_step_iterations=60, batch_norm="running")
    train(algorithm, TRAIN, iterations=120)
    assert accuracy(algorithm, TEST) > 0.35


class ShuffledSupport(MAMLPlusPlus):
    """A broken MAML++: support labels are unrelated to the queries."""

    def loss(self, episodes: Episodes):
        shuffled = torch.stack([labels[torch.randperm(len(labels))] for labels in episodes.support.y])
        return super().loss(Episodes(Examples(episodes.support.x, shuffled), episodes.query, episodes.problem))


def test_a_broken_copy_learns_nothing():
    broken = learner(ShuffledSupport, inner_steps=2, multi_step_iterations=60)
    train(broken, TRAIN, iterations=120)
    assert accuracy(broken, TEST) < 0.35


def test_noise_is_classified_at_chance():
    assert is_at_chance(learner(inner_steps=2), EpisodeSampler(noise_classes(), "test", TASK, 0))
