"""MAML and its configurations (FOMAML, ANIL, BOIL, Meta-SGD) against the equations the slow way.

That the engines agree with each other and with learn2learn is in ``tests/parity/test_engines.py``.
"""

from __future__ import annotations

import copy

import pytest
import torch
from problems import TinyNet, random_episodes
from small_training import accuracy, everything, faint_patterns, is_at_chance, is_same, noise_classes, train
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fsl_cli.algos.maml import MAML
from fsl_cli.backbones.mlp import MLP
from fsl_cli.episodes import Classification, Episodes, EpisodeSampler, Examples, Task
from fsl_cli.errors import FslError
from fsl_cli.inner.inner_loop import Classifier

EXACT = {"rtol": 1e-9, "atol": 1e-11}
TASK = Task(5, 1, 5)
SHAPE = (2, 4, 4)
ALPHA = 0.25  # exact in float32, in which learned step sizes start
TRAIN = EpisodeSampler(faint_patterns(seed=0), "train", TASK, 0)
TEST = EpisodeSampler(faint_patterns(seed=1), "test", TASK, 0)  # other patterns
VARIANTS = {
    "maml": {},
    "fomaml": {"first_order": True},
    "anil": {"adapt": "head"},
    "boil": {"adapt": "body"},
    "meta-sgd": {"inner_lr_learning": "per_parameter"},
    "per layer": {"inner_lr_learning": "per_layer"},
}


def maml(ways: int = 3, engine: str = "vmap", **options) -> MAML:
    """A MAML in float64 whose head is not zero."""
    torch.manual_seed(0)
    algorithm = MAML(TinyNet(), 4, ways, engine, **({"inner_lr": ALPHA} | options)).double()
    nn.init.normal_(algorithm.net.head.weight)
    return algorithm


def learner(kind: type[MAML] = MAML, widths=(32,), **options) -> MAML:
    torch.manual_seed(0)
    return kind(MLP(SHAPE, widths=widths), 32, TASK.ways, **options)


def select(episodes: Episodes, queries) -> Episodes:
    query_x, query_y = episodes.query.x[:, queries], episodes.query.y[:, queries]
    return Episodes(episodes.support, Examples(query_x, query_y), episodes.problem)


def adapted_by_sgd(algorithm: MAML, episodes: Episodes, task: int, steps: int) -> Classifier:
    """A copy of the network after ``steps`` of an ordinary SGD optimiser over the part that is adapted."""
    net = copy.deepcopy(algorithm.net)
    part = {"all": net, "head": net.head, "body": net.body}[algorithm.adapt]
    optimizer = torch.optim.SGD(part.parameters(), lr=ALPHA)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(net(episodes.support.x[task]), episodes.support.y[task]).backward()
        optimizer.step()
    net.zero_grad()
    return net


# --- the inner loop


@pytest.mark.parametrize("engine", ["vmap", "loop", "learn2learn"])
@pytest.mark.parametrize("adapt", ["all", "head", "body"])
def test_the_inner_loop_is_sgd_on_the_part_that_is_adapted(engine, adapt):
    """ANIL leaves the body as it is, BOIL the head, MAML nothing."""
    if engine == "learn2learn" and adapt == "body":
        pytest.skip("learn2learn has no BOIL, which tests/parity asserts")
    algorithm, episodes = maml(engine=engine, adapt=adapt, inner_steps=2), random_episodes()
    logits, loss = algorithm.predict(episodes), algorithm.loss(episodes).loss
    losses = []
    for task in range(len(episodes)):
        net = adapted_by_sgd(algorithm, episodes, task, steps=2)
        moved = {key for key, value in net.state_dict().items() if not torch.equal(value, algorithm.net.state_dict()[key])}
        assert {key.split(".")[0] for key in moved} == {"all": {"head", "body"}, "head": {"head"}, "body": {"body"}}[adapt]
        expected = net(episodes.query.x[task]).detach()
        torch.testing.assert_close(logits[task], expected, **EXACT)
        losses.append(cross_entropy(expected, episodes.query.y[task]))
    torch.testing.assert_close(loss.detach(), sum(losses) / len(losses), **EXACT)


@pytest.mark.parametrize("adapt", ["all", "head", "body"])
def test_inductive_queries_are_normalised_by_the_support_set(adapt):
    algorithm, episodes = maml(adapt=adapt, batch_norm="inductive"), random_episodes()
    logits = algorithm.predict(episodes)
    for task in range(len(episodes)):
        net = adapted_by_sgd(algorithm, episodes, task, steps=1)
        norm, support = net.body.norm, net.body.conv(episodes.support.x[task])
        mean, variance = support.mean((0, 2, 3), keepdim=True), support.var((0, 2, 3), correction=0, keepdim=True)
        for query, image in enumerate(episodes.query.x[task]):  # one alone
            scaled = (net.body.conv(image[None]) - mean) / (variance + norm.eps).sqrt()
            features = torch.tanh(scaled * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)).mean((-2, -1))
            torch.testing.assert_close(logits[task, query], net.head(features)[0].detach(), **EXACT)


def test_steps_of_training_and_of_the_test():
    episodes = random_episodes()
    one, three = maml(inner_steps=1), maml(inner_steps=3)
    both = maml(inner_steps=1, test_inner_steps=3)
    torch.testing.assert_close(both.loss(episodes).outputs, one.loss(episodes).outputs, **EXACT)
    torch.testing.assert_close(both.predict(episodes), three.predict(episodes), **EXACT)
    torch.testing.assert_close(one.predict(episodes), one.loss(episodes).outputs, **EXACT)
    assert not torch.allclose(one.predict(episodes), three.predict(episodes))
    unadapted = torch.stack([both.net(x).detach() for x in episodes.query.x])
    torch.testing.assert_close(maml(test_inner_steps=0).predict(episodes), unadapted, **EXACT)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_a_fresh_initialisation_adapts(variant):
    """A zero head passes no gradient to the body: BOIL would never change."""
    episodes = TRAIN.batch(0, 2)
    before, after = (learner(**variant, test_inner_steps=steps).predict(episodes) for steps in (0, 1))
    assert (after - before).abs().max() > 1e-3


def test_more_inner_steps_lower_the_support_loss():
    episodes = random_episodes()
    episodes = Episodes(episodes.support, episodes.support, Classification(3))
    losses = [maml(inner_steps=steps).loss(episodes).loss.item() for steps in (1, 3, 10, 30)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.1


# --- outer gradients


@pytest.mark.parametrize("engine", ["vmap", "loop"])
@pytest.mark.parametrize("adapt", ["all", "head", "body"])
@pytest.mark.parametrize("steps", [1, 3])
def test_first_order_gradient_is_that_of_the_query_loss_at_the_adapted_parameters(engine, adapt, steps):
    """Finn et al. 2017, section 5.2: the update at theta uses the gradient at theta'."""
    algorithm, episodes = maml(engine=engine, adapt=adapt, inner_steps=steps, first_order=True), random_episodes()
    algorithm.loss(episodes).loss.backward()
    nets = [adapted_by_sgd(algorithm, episodes, task, steps) for task in range(len(episodes))]
    for net, query_x, query_y in zip(nets, episodes.query.x, episodes.query.y, strict=True):
        cross_entropy(net(query_x), query_y).backward()
    for name, parameter in algorithm.net.named_parameters():
        mean = sum(dict(net.named_parameters())[name].grad for net in nets) / len(nets)
        torch.testing.assert_close(parameter.grad, mean, **EXACT, msg=name)


@pytest.mark.parametrize("learning", ["per_layer", "per_parameter"])
@pytest.mark.parametrize("engine", ["vmap", "loop"])
def test_gradient_of_a_step_size_is_minus_the_product_of_the_two_gradients(engine, learning):
    """dL/d alpha = -grad L_query(theta') * grad L_support(theta) for one step, summed over what shares the alpha."""
    algorithm, episodes = maml(engine=engine, inner_lr_learning=learning), random_episodes()
    algorithm.loss(episodes).loss.backward()
    names = [name for name, _ in algorithm.net.named_parameters()]
    expected = dict.fromkeys(names, 0.0)
    for task in range(len(episodes)):
        net, after = copy.deepcopy(algorithm.net), adapted_by_sgd(algorithm, episodes, task, steps=1)
        net.zero_grad()
        cross_entropy(net(episodes.support.x[task]), episodes.support.y[task]).backward()
        cross_entropy(after(episodes.query.x[task]), episodes.query.y[task]).backward()
        for name, at, there in zip(names, net.parameters(), after.parameters(), strict=True):
            expected[name] = expected[name] - at.grad * there.grad / len(episodes)
    for name, alpha in zip(names, algorithm.step_sizes.values, strict=True):
        value = expected[name] if learning == "per_parameter" else expected[name].sum()
        torch.testing.assert_close(alpha.grad, value, **EXACT, msg=name)


@pytest.mark.parametrize("learning", ["per_layer", "per_parameter"])
@pytest.mark.parametrize("adapt", ["all", "head"])
def test_step_sizes_are_trained_and_logged(learning, adapt):
    algorithm = learner(inner_lr_learning=learning, adapt=adapt, inner_lr=0.25)
    named = dict(algorithm.net.named_parameters())
    adapted = [value for name, value in named.items() if adapt == "all" or name.startswith("head.")]
    shapes = [value.shape if learning == "per_parameter" else torch.Size() for value in adapted]
    assert [alpha.shape for alpha in algorithm.step_sizes.values] == shapes
    episodes = TRAIN.batch(0, 4)
    assert algorithm.loss(episodes).metrics["inner_lr"].item() == pytest.approx(0.25)
    train(algorithm, TRAIN, iterations=3)
    names = [name for name in named if adapt == "all" or name.startswith("head.")]
    moved = {name for name, alpha in zip(names, algorithm.step_sizes.values, strict=True) if (alpha != 0.25).any()}
    assert moved >= set(names) - {"body.layers.1.bias"}  # batch normalisation takes that bias away again
    every = torch.cat([alpha.detach().flatten() for alpha in algorithm.step_sizes.values])
    assert algorithm.loss(episodes).metrics["inner_lr"].item() == pytest.approx(every.mean().item())


def test_constant_step_sizes_are_no_parameters_and_not_logged():
    algorithm = learner(inner_lr=0.25)
    assert [name for name, _ in algorithm.named_parameters() if "step_sizes" in name] == []
    assert set(algorithm.step_sizes()[0].values()) == {0.25}
    assert algorithm.loss(TRAIN.batch(0, 2)).metrics == {}


# --- prediction


@pytest.mark.parametrize("ways", [3, 5, 2])
@pytest.mark.parametrize("engine", ["vmap", "loop", "learn2learn"])
@pytest.mark.parametrize("training", [True, False])
def test_predict_changes_nothing(engine, training, ways):
    """Whatever the number of ways, which is 3 in training."""
    algorithm, episodes = maml(engine=engine).train(training), random_episodes(ways)
    algorithm.loss(random_episodes()).loss.backward()
    before = everything(algorithm)
    logits = algorithm.predict(episodes)
    assert not logits.requires_grad
    assert logits.shape == (3, 2 * ways, ways)
    assert is_same(everything(algorithm), before)
    assert torch.equal(algorithm.predict(episodes), logits)


@pytest.mark.parametrize("engine", ["vmap", "loop", "learn2learn"])
@pytest.mark.parametrize("adapt", ["all", "head"])
def test_inductive_predictions_do_not_depend_on_the_other_queries_and_transductive_ones_do(engine, adapt):
    episodes = random_episodes(queries=4)
    for batch_norm, independent in (("inductive", True), ("transductive", False)):
        algorithm = maml(engine=engine, batch_norm=batch_norm, adapt=adapt)
        assert algorithm.transductive is not independent
        fewer = algorithm.predict(select(episodes, slice(3, 5)))
        assert torch.allclose(fewer, algorithm.predict(episodes)[:, 3:5], **EXACT) is independent


def test_a_fresh_initialisation_is_blind_to_the_order_of_the_labels():
    torch.manual_seed(0)
    algorithm = MAML(TinyNet(), 4, 3, inner_steps=2).double()
    episodes, renamed = random_episodes(), torch.tensor([2, 0, 1])
    other = Episodes(Examples(episodes.support.x, renamed[episodes.support.y]), episodes.query, Classification(3))
    torch.testing.assert_close(algorithm.predict(other)[..., renamed], algorithm.predict(episodes), **EXACT)
    assert algorithm.predict(episodes).std() > 1e-3


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("batch_norm", ["inductive", "transductive"])
def test_noise_is_classified_at_chance(variant, batch_norm):
    """Any leak from labels to predictions would give an accuracy above chance."""
    algorithm = learner(**variant, batch_norm=batch_norm)
    assert is_at_chance(algorithm, EpisodeSampler(noise_classes(), "test", TASK, 0))


# --- other ways than trained


def test_another_number_of_ways_starts_from_the_mean_row_of_the_head():
    algorithm = maml()
    other = algorithm.net.with_ways(7)
    assert other.body is algorithm.net.body
    for row in range(7):
        torch.testing.assert_close(other.head.weight[row], algorithm.net.head.weight.mean(0), **EXACT)
        torch.testing.assert_close(other.head.bias[row], algorithm.net.head.bias.mean(), **EXACT)
    assert algorithm.net.with_ways(3) is algorithm.net
    assert algorithm.net.head.weight.std() > 0.1


@pytest.mark.parametrize("learning", ["none", "per_layer", "per_parameter"])
@pytest.mark.parametrize("adapt", ["all", "head"])
@pytest.mark.parametrize("ways", [2, 6])
def test_prediction_with_other_ways_is_a_network_with_that_head(learning, adapt, ways):
    algorithm, episodes = maml(inner_lr_learning=learning, adapt=adapt, inner_steps=2), random_episodes(ways)
    torch.manual_seed(1)
    for alpha in algorithm.step_sizes.values:
        nn.init.uniform_(alpha, 0.1, 0.5)
    wide = maml(ways, inner_lr_learning=learning, adapt=adapt, inner_steps=2)

    def widened(value: Tensor, per_row: bool) -> Tensor:
        return torch.stack([value.mean(0)] * ways) if per_row else value

    state = algorithm.state_dict()
    last = len(algorithm.step_sizes.values) - 1  # the step sizes of the head's weight and bias come last
    rows = {"net.head.weight", "net.head.bias"}
    rows |= {f"step_sizes.values.{last - 1}", f"step_sizes.values.{last}"} if learning == "per_parameter" else set()
    wide.load_state_dict({key: widened(value, key in rows) for key, value in state.items()})
    torch.testing.assert_close(algorithm.predict(episodes), wide.predict(episodes), **EXACT)


# --- learning


@pytest.fixture(scope="module")
def trained() -> MAML:
    algorithm = learner()
    assert accuracy(algorithm, TEST) < 0.35
    train(algorithm, TRAIN, iterations=100)
    return algorithm


def test_learns_to_tell_unseen_classes_apart(trained):
    assert accuracy(trained, TEST) > 0.8


@pytest.mark.parametrize("learning", ["none", "per_parameter"])
def test_is_tested_on_twenty_ways(trained, learning):
    algorithm = trained
    if learning == "per_parameter":
        algorithm = learner(inner_lr_learning=learning)
        train(algorithm, TRAIN, iterations=60)
    twenty = EpisodeSampler(faint_patterns(seed=1), "test", Task(20, 1, 5), 0)
    assert accuracy(algorithm, twenty, 40) > 0.5


def test_other_shots_and_steps(trained):
    five = EpisodeSampler(faint_patterns(seed=1), "test", Task(5, 5, 5), 0)
    assert accuracy(trained, five, 50) > 0.9


LEARNING = {
    "fomaml": ({"first_order": True}, 150),
    "anil": ({"adapt": "head"}, 150),
    "meta-sgd": ({"inner_lr_learning": "per_parameter"}, 150),
    "boil": ({"adapt": "body", "inner_lr": 1.0, "widths": (32, 32)}, 250),
}


@pytest.mark.parametrize(("options", "iterations"), LEARNING.values(), ids=LEARNING)
def test_every_variant_learns_at_one_shot_and_five_and_with_more_ways_where_it_can(options, iterations):
    algorithm = learner(**options)
    assert accuracy(algorithm, TEST) < 0.35
    train(algorithm, TRAIN, iterations=iterations)
    one, five = (accuracy(algorithm, EpisodeSampler(faint_patterns(seed=1), "test", Task(5, k, 5), 0)) for k in (1, 5))
    assert 0.5 < one < five
    ten = Task(10, 1, 5)
    assert algorithm.task_problems(ten) or accuracy(algorithm, EpisodeSampler(faint_patterns(seed=1), "test", ten, 0)) > 0.4


def test_boil_cannot_be_tested_on_other_ways_and_says_so():
    """Its head does not adapt, so that a head of equal rows would answer at random."""
    algorithm = maml(adapt="body")
    assert algorithm.task_problems(Task(3, 5, 1)) == []
    with pytest.raises(FslError, match=r"task.ways: .*3 ways"):
        raise algorithm.task_problems(Task(5, 1, 1))[0]
    assert maml().task_problems(Task(5, 1, 1)) == []


class ShuffledSupport(MAML):
    """A broken MAML: support labels are unrelated to the queries."""

    def loss(self, episodes: Episodes):
        shuffled = torch.stack([labels[torch.randperm(len(labels))] for labels in episodes.support.y])
        return super().loss(Episodes(Examples(episodes.support.x, shuffled), episodes.query, episodes.problem))


@pytest.mark.parametrize(("options", "iterations"), [({}, 100), *LEARNING.values()], ids=["maml", *LEARNING])
def test_a_copy_trained_with_shuffled_support_labels_learns_nothing(options, iterations):
    broken = learner(ShuffledSupport, **options)
    train(broken, TRAIN, iterations=iterations)
    assert accuracy(broken, TEST) < 0.35


def test_a_trained_network_is_at_chance_when_query_labels_are_shuffled(trained):
    class Shuffled(EpisodeSampler):
        def batch(self, first: int, count: int) -> Episodes:
            episodes = super().batch(first, count)
            generator = torch.Generator().manual_seed(first)
            order = torch.stack([torch.randperm(episodes.query.y.shape[1], generator=generator) for _ in range(count)])
            labels = episodes.query.y.gather(1, order)
            return Episodes(episodes.support, Examples(episodes.query.x, labels), episodes.problem)

    assert is_at_chance(trained, Shuffled(faint_patterns(seed=1), "test", TASK, 0))
