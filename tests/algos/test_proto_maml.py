"""Proto-MAML against ProtoNet, torch's own SGD on a copied network, finite differences, and between engines."""

from __future__ import annotations

import copy

import pytest
import torch
from problems import TinyNet, random_episodes
from small_training import accuracy, faint_patterns, is_at_chance, noise_classes, train
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fsl_cli.algos.common.prototypes import class_means, squared_euclidean
from fsl_cli.algos.proto_maml import ProtoMAML, prototype_head
from fsl_cli.backbones.batch_norm import statistics_from
from fsl_cli.backbones.mlp import MLP
from fsl_cli.episodes import Episodes, EpisodeSampler, Examples, Task
from fsl_cli.errors import FslError

EXACT = {"rtol": 1e-9, "atol": 1e-11}
TASK = Task(5, 1, 5)
SHAPE = (2, 4, 4)
ALPHA = 0.125
TRAIN = EpisodeSampler(faint_patterns(seed=0), "train", TASK, 0)
TEST = EpisodeSampler(faint_patterns(seed=1), "test", TASK, 0)  # other patterns
ENGINES = ["loop", "vmap", "fast"]


def proto_maml(engine: str = "vmap", ways: int = 3, **options) -> ProtoMAML:
    """In float64; the fast engine has its layers, the others a network with smooth derivatives."""
    torch.manual_seed(0)
    backbone = MLP((1, 6, 6), widths=[4]) if engine == "fast" else TinyNet()
    return ProtoMAML(backbone, 4, ways, engine, **({"inner_lr": ALPHA} | options)).double()


def learner(**options) -> ProtoMAML:
    torch.manual_seed(0)
    return ProtoMAML(MLP(SHAPE, widths=[32]), 32, TASK.ways, **options)


def slowly_adapted(algorithm: ProtoMAML, episodes: Episodes, task: int, steps: int) -> nn.Module:
    """A copy of the network with the head of the paper, after ``steps`` of an ordinary optimiser."""
    net, (x, y) = copy.deepcopy(algorithm.net), (episodes.support.x[task], episodes.support.y[task])
    net.head = nn.Linear(4, episodes.ways).double()
    for way in range(episodes.ways):
        prototype = torch.stack([net.body(x)[row] for row in range(len(x)) if y[row] == way]).mean(0).detach()
        net.head.weight.data[way] = 2 * prototype
        net.head.bias.data[way] = -(prototype @ prototype)
    optimizer = torch.optim.SGD(net.parameters(), lr=ALPHA)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(net(x), y).backward()
        optimizer.step()
    net.zero_grad()
    return net


# --- the head


def test_logits_of_the_head_are_negative_squared_distances_up_to_a_constant_of_each_query():
    generator = torch.Generator().manual_seed(0)
    query, prototypes = (torch.randn(2, n, 4, generator=generator, dtype=torch.float64) for n in (6, 3))
    head = prototype_head(prototypes)
    logits = query @ head["weight"].mT + head["bias"].unsqueeze(1)
    constant = query.square().sum(-1, keepdim=True)
    torch.testing.assert_close(logits - constant, -squared_euclidean(query, prototypes), **EXACT)


@pytest.mark.parametrize("ways", [2, 3, 5])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("batch_norm", ["transductive", "inductive"])
def test_without_a_step_it_is_protonet(engine, batch_norm, ways):
    algorithm = proto_maml(engine, test_inner_steps=0, batch_norm=batch_norm)
    episodes, body, shots = random_episodes(ways), algorithm.net.body, 2 * ways
    logits = algorithm.predict(episodes)
    for task in range(len(episodes)):
        support, query = episodes.support.x[task], episodes.query.x[task]
        features = body(support)
        with statistics_from(body, "batch" if batch_norm == "transductive" else "first_rows", shots):
            queries = body(query) if batch_norm == "transductive" else body(torch.cat([support, query]))[shots:]
        means = class_means(features[None], episodes.support.y[task, None], ways)
        expected = -squared_euclidean(queries[None], means)[0]
        found = logits[task] - queries.square().sum(-1, keepdim=True)
        torch.testing.assert_close(found, expected, **EXACT)


# --- the inner loop


@pytest.mark.parametrize("ways", [3, 5])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("engine", ENGINES)
def test_the_inner_loop_is_sgd_from_the_prototypes(engine, steps, ways):
    algorithm, episodes = proto_maml(engine, inner_steps=steps), random_episodes(ways)
    logits = algorithm.predict(episodes)
    for task in range(len(episodes)):
        net = slowly_adapted(algorithm, episodes, task, steps)
        torch.testing.assert_close(logits[task], net(episodes.query.x[task]).detach(), **EXACT)


OPTIONS = [
    {"inner_steps": 1},
    {"inner_steps": 3},
    {"inner_steps": 3, "batch_norm": "inductive"},
    {"inner_steps": 3, "first_order": True},
    {"inner_steps": 2, "inner_optimizer": "momentum", "inner_weight_decay": 0.1},
    {"inner_steps": 2, "inner_lr_learning": "per_parameter"},
    {"augment_support": "shift", "augment_copies": 2},
]


def loss_and_gradients(algorithm: ProtoMAML, episodes: Episodes) -> tuple[Tensor, dict[str, Tensor]]:
    algorithm.zero_grad()
    loss = algorithm.loss(episodes).loss
    loss.backward()
    return loss.detach(), {name: each.grad.clone() for name, each in algorithm.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_engines_agree_on_the_loss_and_its_gradient(options):
    """The loop differentiates for each task by itself, with nothing but autograd."""
    episodes = random_episodes()
    for fast in ("vmap", "fast"):
        reference, other = proto_maml(fast, **options), proto_maml(fast, **options)
        reference._tasks_of = proto_maml("loop", **options)._tasks_of
        loss, gradients = loss_and_gradients(reference, episodes)
        found, others = loss_and_gradients(other, episodes)
        torch.testing.assert_close(found, loss, **EXACT)
        assert sum(each.abs().max() > 1e-4 for each in gradients.values()) >= 3
        for name, each in others.items():
            torch.testing.assert_close(each, gradients[name], rtol=1e-8, atol=1e-11, msg=f"{fast} {name}")
        for name in set(gradients) - set(others):  # of the bias that batch normalisation takes away again
            assert gradients[name].abs().max() < 1e-12, name


@pytest.mark.parametrize("engine", ["loop", "vmap"])
@pytest.mark.parametrize("options", [{"inner_steps": 2}, {"inner_lr_learning": "per_layer"}], ids=str)
def test_outer_gradient_is_the_finite_difference_through_the_prototypes_too(engine, options):
    algorithm, episodes = proto_maml(engine, **options), random_episodes()
    _, gradients = loss_and_gradients(algorithm, episodes)
    for name, parameter in algorithm.named_parameters():
        flat = parameter.data.view(-1)
        for position in {0, len(flat) - 1} if parameter.requires_grad else ():
            losses = []
            for sign in (1, -1):
                before = flat[position].item()
                flat[position] = before + sign * 1e-5
                losses.append(algorithm.loss(episodes).loss.item())
                flat[position] = before
            numeric = (losses[0] - losses[1]) / 2e-5
            assert gradients[name].view(-1)[position].item() == pytest.approx(numeric, rel=1e-5, abs=1e-8), name


def test_the_head_is_not_meta_learned():
    algorithm = proto_maml()
    expected = algorithm.predict(random_episodes())
    nn.init.normal_(algorithm.net.head.weight)
    assert torch.equal(algorithm.predict(random_episodes()), expected)
    assert {name for name, each in algorithm.named_parameters() if not each.requires_grad} == {
        "net.head.weight",
        "net.head.bias",
    }


def test_learn2learn_cannot_start_from_prototypes_and_that_is_said():
    with pytest.raises(FslError, match=r"hardware.engine: learn2learn is not valid"):
        proto_maml("learn2learn")


# --- prediction


@pytest.mark.parametrize("batch_norm", ["inductive", "transductive"])
def test_noise_is_classified_at_chance(batch_norm):
    assert is_at_chance(learner(batch_norm=batch_norm), EpisodeSampler(noise_classes(), "test", TASK, 0))


# --- learning


@pytest.fixture(scope="module")
def trained() -> ProtoMAML:
    algorithm = learner(test_inner_steps=[0, 1, 3])
    assert accuracy(algorithm, TEST) < 0.4
    train(algorithm, TRAIN, iterations=150)
    return algorithm


def test_learns_to_tell_unseen_classes_apart(trained):
    assert accuracy(trained, TEST) > 0.85


def test_is_tested_on_more_ways_and_shots_than_it_was_trained_on(trained):
    one, five = (accuracy(trained, EpisodeSampler(TEST.source, "test", Task(20, shots, 5), 0), 40) for shots in (1, 5))
    assert 0.5 < one < five


class ShuffledSupport(ProtoMAML):
    """A broken copy: support labels are unrelated to the queries."""

    def loss(self, episodes: Episodes):
        shuffled = torch.stack([labels[torch.randperm(len(labels))] for labels in episodes.support.y])
        return super().loss(Episodes(Examples(episodes.support.x, shuffled), episodes.query, episodes.problem))


def test_a_copy_trained_with_shuffled_support_labels_learns_nothing():
    torch.manual_seed(0)
    broken = ShuffledSupport(MLP(SHAPE, widths=[32]), 32, TASK.ways)
    train(broken, TRAIN, iterations=150)
    assert accuracy(broken, TEST) < 0.4
