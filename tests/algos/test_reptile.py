"""Reptile against copies of the network that torch's optimizers train."""

from __future__ import annotations

import copy
import dataclasses
import itertools

import pytest
import torch
from problems import TinyNet, changed, random_episodes
from small_training import CPU, accuracy, everything, faint_patterns, is_at_chance, is_same, noise_classes, train_settings
from torch import nn
from torch.nn.functional import cross_entropy

from fsl_cli.algos.reptile import Reptile
from fsl_cli.backbones.mlp import MLP
from fsl_cli.episodes import Episodes, EpisodeSampler, Task
from fsl_cli.errors import FslError
from fsl_cli.inner.mini_batches import mini_batches
from fsl_cli.training import Hooks, Training

EXACT = {"rtol": 1e-8, "atol": 1e-7}  # Adam makes something of the rounding error of a gradient that is zero
TASK = Task(5, 1, 5)
SHAPE = (2, 4, 4)
TRAIN, TEST = faint_patterns(seed=0), EpisodeSampler(faint_patterns(seed=1), "test", TASK, 0)  # other patterns
OPTIMIZERS = {
    "sgd": lambda net, **more: torch.optim.SGD(net.parameters(), lr=0.1, **more),
    "momentum": lambda net, **more: torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, **more),
    "adam": lambda net, **more: torch.optim.Adam(net.parameters(), lr=0.1, betas=(0.0, 0.999), **more),
}


def reptile(backbone: nn.Module | None = None, features: int = 4, ways: int = 3, engine: str = "vmap", **options) -> Reptile:
    """A Reptile in float64 whose head is not zero."""
    torch.manual_seed(0)
    defaults = {
        "inner_lr": 0.1,
        "inner_steps": 5,
        "inner_batch": 4,
        "test_inner_batch": 4,
        "test_inner_steps": 5,
        "symmetric_head": False,
    }
    algorithm = Reptile(backbone or TinyNet(), features, ways, engine, **(defaults | options)).double()
    nn.init.normal_(algorithm.net.head.weight)
    return algorithm


def seeded(episodes: Episodes) -> Episodes:
    return dataclasses.replace(episodes, seeds=torch.arange(len(episodes)) + 7)


def trained_copy(algorithm: Reptile, episodes: Episodes, task: int, optimizer: str, steps: int, batch: int | None, **more):
    """The network after ``steps`` of an optimizer of torch on one task."""
    net = copy.deepcopy(algorithm.net)
    opt = OPTIMIZERS[optimizer](net, **more)
    x, y = episodes.support.x[task], episodes.support.y[task]
    rows = mini_batches(episodes.seeds, len(y), batch, steps)[task] if batch else torch.arange(len(y)).expand(steps, -1)
    for step in range(steps):
        opt.zero_grad()
        cross_entropy(net(x[rows[step]]), y[rows[step]]).backward()
        opt.step()
    return net


def learner(**options) -> Reptile:
    torch.manual_seed(0)
    defaults = {"inner_lr": 0.5, "inner_steps": 10, "test_inner_steps": 10}
    return Reptile(MLP(SHAPE, widths=[32]), 32, TASK.ways, **(defaults | options))


def train(algorithm: Reptile, iterations: int = 200, meta_batch: int = 5, lr: float = 1.0) -> Reptile:
    sampler = EpisodeSampler(TRAIN, "train", algorithm.train_task(TASK), 0)
    optimizer = torch.optim.SGD(algorithm.parameters(), lr=lr)
    settings = train_settings(iterations=iterations, meta_batch=meta_batch)
    run = Training(algorithm, optimizer, sampler, settings, CPU)
    run.run(Hooks(lambda i, v: None, lambda: {"val/accuracy": 0.0}, save=lambda best: None, advance=lambda i: None))
    return algorithm


# --- mini-batches


@pytest.mark.parametrize(("rows", "size", "steps"), [(12, 4, 7), (10, 4, 6), (5, 5, 3), (3, 8, 4), (6, 1, 13)])
def test_mini_batches_are_random_orders_one_after_the_other(rows, size, steps):
    seeds = torch.arange(40)
    found = mini_batches(seeds, rows, size, steps)
    assert found.shape == (40, steps, size)
    for task in range(40):
        stream = found[task].flatten().tolist()
        for first in range(0, len(stream), rows):
            epoch = stream[first : first + rows]
            assert len(set(epoch)) == len(epoch)
            assert set(epoch) <= set(range(rows))
    assert len({tuple(each.flatten().tolist()) for each in found}) > 20
    assert torch.equal(mini_batches(seeds[3:5], rows, size, steps + 5)[:, :steps], found[3:5])


# --- the update


@pytest.mark.parametrize("batch", [4, None])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("engine", ["vmap", "loop"])
def test_a_meta_step_moves_towards_the_mean_of_what_torchs_optimizers_end_at(engine, optimizer, batch):
    """Algorithm 2: theta + b mean_i (theta_i' - theta)."""
    algorithm, episodes = reptile(engine=engine, inner_optimizer=optimizer, inner_batch=batch), seeded(random_episodes(shots=3))
    nets = [trained_copy(algorithm, episodes, task, optimizer, 5, batch) for task in range(len(episodes))]
    before = [each.detach().clone() for each in algorithm.net.parameters()]
    outer = torch.optim.SGD(algorithm.parameters(), lr=0.7)
    step = algorithm.loss(episodes)
    step.loss.backward()
    outer.step()
    for old, new, *ends in zip(before, algorithm.net.parameters(), *(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(new, old + 0.7 * sum(end - old for end in ends) / len(ends), **EXACT)
        assert (new - old).abs().max() > 1e-6 or new.shape == (4,)  # a bias before batch normalisation stays
    queries = [cross_entropy(net(x), y) for net, x, y in zip(nets, episodes.query.x, episodes.query.y, strict=True)]
    torch.testing.assert_close(step.loss, sum(queries) / len(queries), **EXACT)
    ways = [[end - old for end, old in zip(net.parameters(), before, strict=True)] for net in nets]
    lengths = [torch.cat([each.flatten() for each in way]).norm() for way in ways]
    torch.testing.assert_close(step.metrics["distance"], sum(lengths) / len(lengths), **EXACT)
    assert not step.outputs.requires_grad


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_serial_meta_steps_on_the_fast_engine_follow_the_slow_way(optimizer):
    """Algorithm 1: one task after the other, each from where the last has left theta. Its weight decay is torch's too."""
    options = {"inner_optimizer": optimizer, "inner_weight_decay": 0.02, "inner_steps": 3}
    algorithm = reptile(MLP((1, 6, 6), widths=[5]), 5, engine="fast", **options)
    slow, unused = copy.deepcopy(algorithm), {"body.layers.1.bias"}  # before batch normalisation: moves nothing
    assert unused < {name for name, _ in algorithm.net.named_parameters()}
    outer = torch.optim.SGD(algorithm.parameters(), lr=0.5)
    for episodes in seeded(random_episodes(shots=3)).split(1):
        outer.zero_grad()
        algorithm.loss(episodes).loss.backward()
        outer.step()
        end = trained_copy(slow, episodes, 0, optimizer, 3, 4, weight_decay=0.02)
        with torch.no_grad():
            for theta, target in zip(slow.net.parameters(), end.parameters(), strict=True):
                theta += 0.5 * (target - theta)
    for (name, mine), expected in zip(algorithm.net.named_parameters(), slow.net.parameters(), strict=True):
        if name not in unused:
            torch.testing.assert_close(mine, expected, **EXACT, msg=name)


# --- Adam's moments that go on from task to task


def carrying(engine: str, **options) -> Reptile:
    options = {"inner_optimizer": "adam", "carry_moments": True, "inner_steps": 3} | options
    return reptile(MLP((1, 6, 6), widths=[5]), 5, engine=engine, **options)


@pytest.mark.parametrize("engine", ["vmap", "loop", "fast"])
def test_carried_moments_are_those_of_one_optimizer_that_trains_on_one_task_after_the_other(engine):
    """As in the authors' code: the weights go back to theta before each task, the optimizer's state does not."""
    algorithm, outer_rate = carrying(engine, test_inner_steps=4), 0.5
    net = copy.deepcopy(algorithm.net)
    adam = torch.optim.Adam(net.parameters(), lr=0.1, betas=(0.0, 0.999))
    outer = torch.optim.SGD(algorithm.parameters(), lr=outer_rate)
    unused = "body.layers.1.bias"  # before batch normalisation: moves nothing but by rounding errors

    def run(episodes: Episodes, steps: int) -> None:
        x, y = episodes.support.x[0], episodes.support.y[0]
        for rows in mini_batches(episodes.seeds, len(y), 4, steps)[0]:
            adam.zero_grad()
            cross_entropy(net(x[rows]), y[rows]).backward()
            adam.step()

    *training, test = seeded(random_episodes(shots=3, tasks=6)).split(1)
    for iteration, episodes in enumerate(training):
        algorithm.begin_iteration(iteration)
        outer.zero_grad()
        algorithm.loss(episodes).loss.backward()
        outer.step()
        before = copy.deepcopy(net.state_dict())
        run(episodes, 3)
        after = {name: before[name] + outer_rate * (value - before[name]) for name, value in net.state_dict().items()}
        net.load_state_dict(after)
        for name, theta in algorithm.net.named_parameters():
            if name != unused:
                torch.testing.assert_close(theta, net.get_parameter(name), **EXACT, msg=name)
    run(test, 4)
    state = everything(algorithm)
    torch.testing.assert_close(algorithm.predict(test)[0], net(test.query.x[0]), **EXACT)
    assert is_same(everything(algorithm), state)


def moments_after(algorithm: Reptile, sizes: list[int]) -> torch.Tensor:
    algorithm.begin_iteration(0)
    first, second = (
        seeded(random_episodes(shots=3, tasks=4)).split(4),
        seeded(random_episodes(shots=3, tasks=4)).split(sizes[0]),
    )
    algorithm.loss(next(first))
    algorithm.begin_iteration(1)
    for episodes in second:
        algorithm.loss(episodes)
    return torch.cat([*algorithm.moments.averages()])


def test_carried_moments_do_not_depend_on_how_many_tasks_are_computed_at_once_nor_on_the_engine():
    expected = moments_after(carrying("fast"), [4])
    assert expected[-1] == pytest.approx(1 - 0.999**24)
    for engine, size in (("fast", 1), ("fast", 3), ("loop", 4), ("vmap", 2)):
        torch.testing.assert_close(moments_after(carrying(engine), [size]), expected, rtol=1e-9, atol=1e-14)


def test_moments_carried_to_tasks_of_more_ways_are_the_mean_of_the_head():
    algorithm = carrying("vmap")
    algorithm.loss(seeded(random_episodes(shots=3)))
    assert algorithm.predict(seeded(random_episodes(5, shots=3))).isfinite().all()
    rule = algorithm.moments.rule_of(dict, 5, training=False)
    of_three = algorithm.moments.rule_of(dict, 3, training=False)
    torch.testing.assert_close(rule.second["head.weight"], of_three.second["head.weight"].mean(0).expand(5, -1))


def test_only_adam_has_moments_to_carry():
    with pytest.raises(FslError, match=r"algo.carry_moments: is for Adam only \(set algo.inner_optimizer=adam\)"):
        reptile(carry_moments=True)


@pytest.mark.parametrize("engine", ["vmap", "loop", "fast"])
def test_a_symmetric_head_is_the_mean_over_all_orders_of_the_labels(engine):
    """From a head of equal rows, which stay equal."""
    algorithm = reptile(MLP((1, 6, 6), widths=[5]), 5, engine=engine, symmetric_head=True, inner_weight_decay=0.1)
    nn.init.constant_(algorithm.net.head.weight, 0.5)
    nn.init.constant_(algorithm.net.head.bias, 0.25)
    episodes, before = seeded(random_episodes(shots=3)), copy.deepcopy(algorithm.net)
    ends = []
    for order in itertools.permutations(range(3)):
        other = changed(episodes, support_y=torch.tensor(order)[episodes.support.y])
        ends += [trained_copy(algorithm, other, task, "sgd", 5, 4, weight_decay=0.1) for task in range(len(episodes))]
    algorithm.loss(episodes).loss.backward()
    for (name, theta), old, *nets in zip(
        algorithm.net.named_parameters(), before.parameters(), *(net.parameters() for net in ends), strict=True
    ):
        if theta.grad is None:
            assert name == "body.layers.1.bias"
        else:
            torch.testing.assert_close(theta.grad, old - sum(nets) / len(nets), **EXACT, msg=name)
    assert algorithm.net.head.weight.grad.abs().max() > 1e-3


# --- prediction


@pytest.mark.parametrize("ways", [2, 3, 5])
def test_prediction_is_the_network_that_torch_trains(ways):
    algorithm, episodes = reptile(test_inner_steps=[0, 2, 6], inner_optimizer="adam"), seeded(random_episodes(ways, shots=3))
    wide = copy.deepcopy(algorithm)
    wide.net = algorithm.net.with_ways(ways)
    before, curve = everything(algorithm), []
    for steps in (0, 2, 6):
        nets = [trained_copy(wide, episodes, task, "adam", steps or 1, 4) if steps else wide.net for task in range(3)]
        logits = torch.stack([net(x) for net, x in zip(nets, episodes.query.x, strict=True)]).detach()
        curve.append((logits.argmax(-1) == episodes.query.y).double().mean(1))
    torch.testing.assert_close(algorithm.predict(episodes), logits, **EXACT)
    torch.testing.assert_close(algorithm.score(episodes, curves=True)["inner_steps"], torch.stack(curve, dim=1), **EXACT)
    assert algorithm.curve_points(TASK) == {"inner_steps": [0, 2, 6]}
    assert is_same(everything(algorithm), before)


def test_training_tasks_have_their_own_shots_and_augmented_copies_are_seen():
    assert Reptile(TinyNet(), 4, 5, train_queries=1).train_task(Task(5, 1, 15)) == Task(5, 10, 1)
    assert Reptile(TinyNet(), 4, 5, train_shots=None).train_task(TASK) == TASK
    episodes = seeded(random_episodes())
    plain, more = reptile().predict(episodes), reptile(augment_support="affine", augment_copies=2).predict(episodes)
    assert (plain - more).abs().max() > 1e-3


def test_an_engine_that_cannot_do_it_says_so():
    with pytest.raises(FslError, match=r"hardware.engine: learn2learn is not valid"):
        reptile(engine="learn2learn")


# --- learning


@pytest.mark.parametrize(
    ("options", "iterations", "meta_batch", "lr"),
    [
        ({}, 200, 5, 1.0),
        ({"inner_optimizer": "adam", "inner_lr": 0.03}, 200, 5, 1.0),
        ({"inner_optimizer": "adam", "inner_lr": 0.03, "carry_moments": True}, 200, 5, 1.0),
        ({}, 400, 1, 0.25),
    ],
    ids=["sgd", "adam", "carried", "serial"],
)
def test_learns(options, iterations, meta_batch, lr):
    algorithm = learner(**options)
    assert accuracy(algorithm, TEST, 100) < 0.4
    train(algorithm, iterations, meta_batch, lr)
    assert accuracy(algorithm, TEST, 100) > 0.8
    assert accuracy(algorithm, EpisodeSampler(faint_patterns(seed=1), "test", Task(5, 5, 5), 0), 100) > 0.5
    assert accuracy(algorithm, EpisodeSampler(faint_patterns(seed=1), "test", Task(8, 1, 5), 0), 100) > 0.35


def test_without_labels_it_does_not_learn(monkeypatch):
    """Shuffled support labels: nothing can be learned from them."""
    loss, draw = Reptile.loss, torch.Generator().manual_seed(0)

    def shuffled(self: Reptile, episodes: Episodes):
        order = torch.randperm(episodes.support.y.shape[1], generator=draw)
        return loss(self, changed(episodes, support_y=episodes.support.y[:, order]))

    monkeypatch.setattr(Reptile, "loss", shuffled)
    assert accuracy(train(learner()), TEST) < 0.4


def test_noise_is_classified_at_chance():
    assert is_at_chance(train(learner(), 20), EpisodeSampler(noise_classes(), "test", TASK, 0))
