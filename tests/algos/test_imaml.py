"""iMAML against exact solutions, explicit Hessians, finite differences of the solved problem, and between engines."""

from __future__ import annotations

import copy

import pytest
import torch
from problems import TinyNet, random_episodes
from small_training import accuracy, faint_patterns, is_at_chance, noise_classes, train
from torch import Tensor
from torch.nn.functional import cross_entropy

from fsl_cli.algos.imaml import IMAML
from fsl_cli.backbones.mlp import MLP
from fsl_cli.episodes import Episodes, EpisodeSampler, Examples, Task
from fsl_cli.inner.tasks import TaskBatch
from fsl_cli.inner.update_rules import Parameters, parameters_in

EXACT = {"rtol": 1e-9, "atol": 1e-11}
TASK = Task(5, 1, 5)
SHAPE = (2, 4, 4)
LAMBDA, ALPHA = 10.0, 0.1  # so strong that the problems of a small random network are convex
TRAIN = EpisodeSampler(faint_patterns(seed=0), "train", TASK, 0)
TEST = EpisodeSampler(faint_patterns(seed=1), "test", TASK, 0)  # other patterns
ENGINES = ["loop", "vmap", "fast"]


def imaml(engine: str = "vmap", ways: int = 3, **options) -> IMAML:
    """In float64, with a head that is not zero; the fast engine has its layers, the others smooth derivatives."""
    torch.manual_seed(0)
    backbone = MLP((1, 6, 6), widths=[4]) if engine == "fast" else TinyNet()
    options = {"inner_steps": 3, "inner_lr": ALPHA, "regularization": LAMBDA, "cg_steps": 5, "cg_damping": 0.0} | options
    algorithm = IMAML(backbone, 4, ways, engine, **options).double()
    torch.nn.init.normal_(algorithm.net.head.weight)
    return algorithm


def learner(kind: type[IMAML] = IMAML, **options) -> IMAML:
    torch.manual_seed(0)
    options = {"regularization": 0.5, "inner_steps": 4, "inner_lr": 0.4, "cg_steps": 3, "cg_damping": 1.0} | options
    return kind(MLP(SHAPE, widths=[32]), 32, TASK.ways, **options)


def loss_and_gradients(algorithm: IMAML, episodes: Episodes) -> tuple[Tensor, dict[str, Tensor]]:
    algorithm.zero_grad()
    loss = algorithm.loss(episodes).loss
    loss.backward()
    return loss.detach(), {name: each.grad.clone() for name, each in algorithm.named_parameters() if each.grad is not None}


# --- the inner problem


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("optimizer", "decay"), [("sgd", 0.0), ("momentum", 0.1), ("adam", 0.1)])
def test_inner_steps_are_those_of_torch_on_the_proximal_problem(engine, optimizer, decay):
    algorithm = imaml(engine, inner_optimizer=optimizer, inner_weight_decay=decay, inner_lr=0.05)
    episodes, kinds = random_episodes(), {"momentum": torch.optim.SGD, "sgd": torch.optim.SGD, "adam": torch.optim.Adam}
    logits = algorithm.predict(episodes)
    losses = []
    for task in range(len(episodes)):
        net = copy.deepcopy(algorithm.net)
        centre = [each.detach().clone() for each in net.parameters()]
        options = {"momentum": 0.9} if optimizer == "momentum" else {}
        steps = kinds[optimizer](net.parameters(), lr=0.05, weight_decay=decay, **options)
        for _ in range(3):
            steps.zero_grad()
            away = sum((each - start).square().sum() for each, start in zip(net.parameters(), centre, strict=True))
            (cross_entropy(net(episodes.support.x[task]), episodes.support.y[task]) + LAMBDA / 2 * away).backward()
            if optimizer == "adam" and engine != "loop":  # it would scale the rounding errors of a zero up to a step
                for each in net.parameters():
                    each.grad[each.grad.abs() < 1e-14] = 0
            steps.step()
        expected = net(episodes.query.x[task]).detach()
        torch.testing.assert_close(logits[task], expected, rtol=1e-7, atol=1e-9)
        losses.append(cross_entropy(expected, episodes.query.y[task]))
    torch.testing.assert_close(algorithm.loss(episodes).loss.detach(), sum(losses) / 3, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_proximal_term_in_the_last_step_is_that_of_the_authors_code(engine):
    """Plain steps, then in training one step on the proximal term alone; the system is solved there."""
    algorithm, episodes = imaml(engine, proximal="last_step", regularization=2.0, cg_steps=60), random_episodes()
    loss, gradients = loss_and_gradients(algorithm, episodes)
    theta, losses, outers = [each.detach().clone() for each in algorithm.net.parameters()], [], []
    for task in range(len(episodes)):
        net = copy.deepcopy(algorithm.net)
        steps = torch.optim.SGD(net.parameters(), lr=ALPHA)
        for _ in range(3):
            steps.zero_grad()
            cross_entropy(net(episodes.support.x[task]), episodes.support.y[task]).backward()
            steps.step()
        torch.testing.assert_close(algorithm.predict(episodes)[task], net(episodes.query.x[task]), rtol=1e-7, atol=1e-9)
        steps.zero_grad()
        sum((each - start).square().sum() for each, start in zip(net.parameters(), theta, strict=True)).backward()
        steps.step()  # lambda / 2 = 1
        value = cross_entropy(net(episodes.query.x[task]), episodes.query.y[task])
        losses.append(value.detach())
        outers.append(torch.autograd.grad(value, list(net.parameters())))
    torch.testing.assert_close(loss, sum(losses) / 3, rtol=1e-7, atol=1e-9)
    damped = imaml(engine, proximal="last_step", regularization=2.0, cg_damping=1e9)
    found = loss_and_gradients(damped, episodes)[1]  # so much damping leaves the gradients at phi
    for name, *each in zip(dict(algorithm.net.named_parameters()), *outers, strict=True):
        if f"net.{name}" in found:
            torch.testing.assert_close(found[f"net.{name}"] * 1e9, sum(each) / 3, rtol=1e-6, atol=1e-8, msg=name)
    assert sum(each.abs().max() > 1e-4 for each in gradients.values()) >= 4


class Quadratic(TaskBatch):
    """TaskBatch with the support loss ``phi' A phi / 2 - b' phi``, whose inner problem has a solution in closed form."""

    def __init__(self, algorithm: IMAML, a: Tensor, b: Tensor, theta: Tensor) -> None:
        super().__init__(algorithm.inner_loop(3), random_episodes())
        self.a, self.b, self.start = a, b, {"x": theta}
        object.__setattr__(self.inner, "step_sizes", [{"x": algorithm.inner_lr}])

    def pack(self, values):
        return dict(values)

    def gradient(self, adapted: Parameters, step: int, *, first_order: bool) -> Parameters:
        return {"x": (self.a @ adapted["x"].expand(3, 4).unsqueeze(-1)).squeeze(-1) - self.b}

    def support_loss(self, adapted, step):
        raise AssertionError

    query_outputs = support_features = support_loss


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("damping", [0.0, 1.0])
def test_a_quadratic_problem_has_the_solution_and_the_gradient_of_linear_algebra(decay, damping):
    generator = torch.Generator().manual_seed(0)
    factor, b, outer = (torch.randn(3, 4, n, generator=generator, dtype=torch.float64) for n in (4, 1, 1))
    a, eye, theta = factor @ factor.mT / 4, torch.eye(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    algorithm = imaml(cg_steps=4, cg_damping=damping, inner_weight_decay=decay)
    tasks = Quadratic(algorithm, a, b.squeeze(-1), theta)
    phi = parameters_in(tasks.adapted(algorithm.rule.begin(tasks.start), range(200)))
    matrix = a + (LAMBDA + decay) * eye
    torch.testing.assert_close(phi["x"], torch.linalg.solve(matrix, b + LAMBDA * theta[:, None]).squeeze(-1), **EXACT)
    phi["x"].requires_grad_()
    found, logged = algorithm.implicit_gradient(tasks, phi, {"x": outer.squeeze(-1)})
    expected = torch.linalg.solve((1 + damping) * eye + (a + decay * eye) / LAMBDA, outer).squeeze(-1)
    torch.testing.assert_close(found["x"], expected, **EXACT)
    assert max(logged.values()) < 1e-8


# --- the implicit gradient


@pytest.mark.parametrize("engine", ["loop", "vmap"])
@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_conjugate_gradient_solves_with_the_hessian_of_each_task(engine, damping):
    algorithm, episodes = imaml(engine, cg_steps=100, cg_damping=damping), random_episodes()
    _, gradients = loss_and_gradients(algorithm, episodes)
    tasks = algorithm.tasks(episodes)
    phi = parameters_in(tasks.adapted(algorithm.rule.begin(tasks.start), range(3)))
    shapes = {name: value.shape for name, value in algorithm.net.named_parameters()}

    def loss_of(flat: Tensor, x: Tensor, y: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in shapes.values()])
        weights = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        return cross_entropy(torch.func.functional_call(algorithm.net, weights, x), y)

    solutions = []
    for task in range(len(episodes)):
        flat = torch.cat([phi[name][task].detach().flatten() for name in shapes])
        hessian = torch.func.hessian(loss_of)(flat, episodes.support.x[task], episodes.support.y[task])
        outer = torch.func.grad(loss_of)(flat, episodes.query.x[task], episodes.query.y[task])
        matrix = (1 + damping) * torch.eye(len(flat)).double() + hessian / LAMBDA
        assert torch.linalg.eigvalsh(matrix).min() > 0
        solutions.append(torch.linalg.solve(matrix, outer))
    found = torch.cat([gradients[f"net.{name}"].flatten() for name in shapes])
    torch.testing.assert_close(found, sum(solutions) / 3, rtol=1e-7, atol=1e-9)
    assert algorithm.loss(episodes).metrics["cg_residual"] < 1e-6


@pytest.mark.parametrize("engine", ["loop", "vmap"])
@pytest.mark.parametrize("options", [{}, {"inner_weight_decay": 0.2}, {"batch_norm": "inductive"}], ids=str)
def test_at_the_solution_it_is_the_finite_difference_of_the_solved_problem(engine, options):
    algorithm, episodes = imaml(engine, inner_steps=30, cg_steps=20, **options), random_episodes(tasks=2)
    assert algorithm.loss(episodes).metrics["inner_gradient"] < 1e-8
    _, gradients = loss_and_gradients(algorithm, episodes)
    for name, position in {"body.conv.weight": 5, "body.norm.bias": 1, "head.weight": 7, "head.bias": 0}.items():
        flat, losses = dict(algorithm.net.named_parameters())[name].data.view(-1), []
        for sign in (1, -1):
            before = flat[position].item()
            flat[position] = before + sign * 1e-4
            losses.append(algorithm.loss(episodes).loss.item())
            flat[position] = before
        numeric = (losses[0] - losses[1]) / 2e-4
        assert gradients[f"net.{name}"].view(-1)[position].item() == pytest.approx(numeric, rel=1e-5, abs=1e-8), name


OPTIONS = [{}, {"batch_norm": "inductive"}, {"inner_optimizer": "momentum", "inner_weight_decay": 0.1, "cg_damping": 1.0}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_engines_agree_on_the_loss_and_its_gradient(options):
    episodes = random_episodes()
    for fast in ("vmap", "fast"):
        reference, other = imaml(fast, **options), imaml(fast, **options)
        reference._tasks_of = imaml("loop", **options)._tasks_of
        loss, gradients = loss_and_gradients(reference, episodes)
        found, others = loss_and_gradients(other, episodes)
        torch.testing.assert_close(found, loss, **EXACT)
        assert sum(each.abs().max() > 1e-4 for each in gradients.values()) >= 4
        for name, each in others.items():
            torch.testing.assert_close(each, gradients[name], rtol=1e-8, atol=1e-11, msg=f"{fast} {name}")
        for name in set(gradients) - set(others):  # of the bias that batch normalisation takes away again
            assert gradients[name].abs().max() < 1e-12, name


def test_a_large_lambda_leaves_theta_where_it_is_and_the_gradient_is_that_of_the_query_loss():
    algorithm, episodes = imaml(regularization=1e8, inner_lr=5e-9), random_episodes()
    _, gradients = loss_and_gradients(algorithm, episodes)
    net = algorithm.net
    losses = [cross_entropy(net(x), y) for x, y in zip(episodes.query.x, episodes.query.y, strict=True)]
    expected = torch.autograd.grad(sum(losses) / 3, list(net.parameters()))
    for each, value in zip(gradients.values(), expected, strict=True):
        torch.testing.assert_close(each, value, rtol=1e-5, atol=1e-7)


# --- prediction


@pytest.mark.parametrize("batch_norm", ["inductive", "transductive"])
def test_noise_is_classified_at_chance(batch_norm):
    assert is_at_chance(learner(batch_norm=batch_norm), EpisodeSampler(noise_classes(), "test", TASK, 0))


# --- learning


@pytest.fixture(scope="module")
def trained() -> IMAML:
    algorithm = learner(test_inner_steps=[0, 2, 4])
    assert accuracy(algorithm, TEST) < 0.35
    train(algorithm, TRAIN, iterations=120)
    return algorithm


def test_learns_to_tell_unseen_classes_apart(trained):
    assert accuracy(trained, TEST) > 0.8


def test_is_tested_on_more_ways_and_shots_than_it_was_trained_on(trained):
    one, five = (accuracy(trained, EpisodeSampler(TEST.source, "test", Task(20, shots, 5), 0), 40) for shots in (1, 5))
    assert 0.5 < one < five


def test_accuracy_is_reported_after_each_number_of_steps(trained):
    along = trained.score(TEST.batch(0, 40), curves=True)["inner_steps"]
    assert trained.curve_points(TASK) == {"inner_steps": [0, 2, 4]}
    assert along.shape == (40, 3)
    assert along[:, 0].mean() < 0.3  # nothing has been said about the labels
    assert along[:, 2].mean() > 0.8


class WrongSign(IMAML):
    """A broken copy: gradient ascent."""

    def implicit_gradient(self, tasks, phi, outer):
        found, logged = super().implicit_gradient(tasks, phi, outer)
        return {name: -value for name, value in found.items()}, logged


class ShuffledSupport(IMAML):
    """A broken copy: support labels are unrelated to the queries."""

    def loss(self, episodes: Episodes):
        shuffled = torch.stack([labels[torch.randperm(len(labels))] for labels in episodes.support.y])
        return super().loss(Episodes(Examples(episodes.support.x, shuffled), episodes.query, episodes.problem))


@pytest.mark.parametrize("kind", [WrongSign, ShuffledSupport])
def test_broken_copies_learn_nothing(kind):
    broken = learner(kind)
    train(broken, TRAIN, iterations=120)
    assert accuracy(broken, TEST) < 0.35
