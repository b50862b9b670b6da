"""Meta-LSTM against its equations in loops over coordinates."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from problems import TinyNet, changed, random_episodes
from small_training import accuracy, everything, faint_patterns, is_at_chance, is_same, noise_classes, train
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fsl_cli.algos.meta_lstm import CellState, MetaLearner, MetaLSTM, preprocessed
from fsl_cli.backbones.mlp import MLP
from fsl_cli.episodes import Episodes, EpisodeSampler, Task
from fsl_cli.errors import FslError

EXACT = {"rtol": 1e-8, "atol": 1e-10}
TASK = Task(5, 1, 5)
SHAPE = (2, 4, 4)
TRAIN = EpisodeSampler(faint_patterns(seed=0), "train", TASK, 0)
TEST = EpisodeSampler(faint_patterns(seed=1), "test", TASK, 0)  # other patterns


def meta_lstm(engine: str = "vmap", backbone: nn.Module | None = None, features: int = 4, ways: int = 3, **options) -> MetaLSTM:
    """In float64, with gates and a head that are not near their start."""
    torch.manual_seed(0)
    options = {"inner_steps": 3, "inner_lr": 0.3, "forget": 0.9} | options
    algorithm = MetaLSTM(backbone or TinyNet(), features, ways, engine, **options).double()
    for each in (
        algorithm.net.head.weight,
        algorithm.meta_learner.input_gate.weight,
        algorithm.meta_learner.forget_gate.weight,
    ):
        nn.init.normal_(each, std=0.5)
    return algorithm


def learner(**options) -> MetaLSTM:
    torch.manual_seed(0)
    return MetaLSTM(MLP(SHAPE, widths=[32]), 32, TASK.ways, **options)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def described(x: float) -> list[float]:
    return [math.log(abs(x)) / 10, math.copysign(1.0, x)] if abs(x) >= math.exp(-10) else [-1.0, math.exp(10) * x]


def slow_lstm(cell: nn.LSTMCell, x: list[float], h: list[float], c: list[float]) -> tuple[list[float], list[float]]:
    """The textbook's equations; torch keeps the gates in the order i, f, g, o."""
    size = len(h)
    rows = zip(cell.weight_ih.tolist(), cell.weight_hh.tolist(), (cell.bias_ih + cell.bias_hh).tolist(), strict=True)
    z = [sum(a * b for a, b in zip(w + u, x + h, strict=True)) + bias for w, u, bias in rows]
    i, f, g, o = (z[k * size : (k + 1) * size] for k in range(4))
    c = [sigmoid(f[k]) * c[k] + sigmoid(i[k]) * math.tanh(g[k]) for k in range(size)]
    return [sigmoid(o[k]) * math.tanh(c[k]) for k in range(size)], c


def slow_steps(learner: MetaLearner, gradients: list[float], losses: list[float], theta: float) -> tuple[float, float, float]:
    """One coordinate through all steps: its weight and its gates at the end."""
    size = learner.lstm.hidden_size if learner.lstm is not None else 0
    h, memory, i, f = [0.0] * size, [0.0] * size, 0.0, 0.0
    for gradient, loss in zip(gradients, losses, strict=True):
        x = described(gradient) + described(loss)
        if learner.lstm is not None:
            h, memory = slow_lstm(learner.lstm, x, h, memory)
            x = h
        gates = []
        for gate, before in ((learner.input_gate, i), (learner.forget_gate, f)):
            inputs = [*x, theta, before]
            z = sum(a * b for a, b in zip(gate.weight[0].tolist(), inputs, strict=True)) + gate.bias.item()
            gates.append(sigmoid(z))
        i, f = gates
        theta = f * theta - i * gradient
    return theta, i, f


# --- the cell


def test_preprocessing_is_that_of_the_paper():
    values = [0.0, 1.0, -1.0, 3e-5, -3e-5, math.exp(-10) * 1.01, math.exp(-10) * 0.99, -7.5, 1e-12, 100.0]
    found = preprocessed(torch.tensor(values, dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor([described(x) for x in values], dtype=torch.float64), **EXACT)


@pytest.mark.parametrize("hidden_size", [0, 3])
def test_the_cell_is_its_equations_for_every_coordinate(hidden_size):
    torch.manual_seed(0)
    cell = MetaLearner(hidden_size, 0.3, 0.9).double()
    for each in cell.parameters():
        nn.init.normal_(each)
    tasks, size, steps = 2, 4, 3
    c = torch.randn(tasks, size, dtype=torch.float64)
    gradients = torch.randn(steps, tasks, size, dtype=torch.float64) * torch.tensor([1e-6, 1e-2, 1.0, 5.0])
    losses = torch.rand(steps, tasks, dtype=torch.float64) * 3
    state = CellState(c, torch.zeros_like(c), torch.zeros_like(c))
    for step in range(steps):
        state = cell(gradients[step], losses[step], state)
    for task in range(tasks):
        for p in range(size):
            slow = slow_steps(cell, gradients[:, task, p].tolist(), losses[:, task].tolist(), c[task, p].item())
            found = torch.stack([state.c[task, p], state.i[task, p], state.f[task, p]])
            torch.testing.assert_close(found, torch.tensor(slow, dtype=torch.float64), **EXACT)


@pytest.mark.parametrize("hidden_size", [0, 3])
def test_gates_start_near_gradient_descent(hidden_size):
    cell = MetaLearner(hidden_size, 0.3, 0.99)
    c, gradient = torch.randn(2, 50), torch.randn(2, 50)
    state = cell(gradient, torch.ones(2), CellState(c, torch.zeros(2, 50), torch.zeros(2, 50)))
    torch.testing.assert_close(state.c, 0.99 * c - 0.3 * gradient, rtol=0.1, atol=0.05)


# --- the learner


def slow_logits(algorithm: MetaLSTM, episodes: Episodes, task: int, steps: int) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Query logits of one task by a copy of the network and the cell on one coordinate at a time; g_t and L_t."""
    net, found, losses = copy.deepcopy(algorithm.net), [], []
    start = torch.cat([each.detach().flatten() for each in net.parameters()])
    for _ in range(steps):
        loss = cross_entropy(net(episodes.support.x[task]), episodes.support.y[task])
        found.append(torch.cat([each.flatten() for each in torch.autograd.grad(loss, list(net.parameters()))]))
        losses.append(loss.detach())
        history = torch.stack(found, dim=1).tolist()
        ends = [slow_steps(algorithm.meta_learner, g, losses, c)[0] for g, c in zip(history, start.tolist(), strict=True)]
        nn.utils.vector_to_parameters(torch.tensor(ends, dtype=torch.float64), net.parameters())
    return net(episodes.query.x[task]).detach(), found, losses


@pytest.mark.parametrize("hidden_size", [0, 2])
@pytest.mark.parametrize("engine", ["vmap", "loop", "fast"])
def test_the_whole_is_the_slow_way(engine, hidden_size):
    backbone, features = (MLP((1, 6, 6), widths=[5]), 5) if engine == "fast" else (TinyNet(), 4)
    algorithm = meta_lstm(engine, backbone, features, hidden_size=hidden_size, test_inner_steps=[0, 1, 3])
    episodes = random_episodes(tasks=2)
    curve, losses = [], []
    for steps in (0, 1, 3):
        logits = torch.stack([slow_logits(algorithm, episodes, task, steps)[0] for task in range(2)])
        curve.append((logits.argmax(-1) == episodes.query.y).double().mean(1))
    step = algorithm.loss(episodes)
    for each, labels in zip(logits, episodes.query.y, strict=True):
        losses.append(cross_entropy(each, labels))
    torch.testing.assert_close(algorithm.predict(episodes), logits, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(step.outputs, logits, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(step.loss.detach(), sum(losses) / 2, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(algorithm.score(episodes, curves=True)["inner_steps"], torch.stack(curve, dim=1), **EXACT)
    assert algorithm.curve_points(TASK) == {"inner_steps": [0, 1, 3]}
    assert not step.outputs.requires_grad


@pytest.mark.parametrize("hidden_size", [0, 2])
def test_the_outer_gradient_treats_gradients_and_losses_as_constants(hidden_size, monkeypatch):
    """Finite differences by every parameter of the cell and some of c_0, g_t and L_t held at what they were."""
    algorithm, episodes = meta_lstm(hidden_size=hidden_size), random_episodes(tasks=2)
    held, inputs = [], MetaLSTM._gradient_and_loss

    def recording(self, *args):
        held.append(inputs(self, *args))
        return held[-1]

    monkeypatch.setattr(MetaLSTM, "_gradient_and_loss", recording)
    algorithm.loss(episodes).loss.backward()
    monkeypatch.setattr(MetaLSTM, "_gradient_and_loss", lambda self, tasks, coordinates, weights, step: held[step])
    for name, parameter in algorithm.named_parameters():
        flat, step = parameter.data.view(-1), 1e-5
        for index in range(0, len(flat), max(1, len(flat) // 6)):
            before, values = flat[index].item(), []
            for sign in (1, -1):
                flat[index] = before + sign * step
                values.append(algorithm.loss(episodes).loss.item())
            flat[index] = before
            numeric = (values[0] - values[1]) / (2 * step)
            assert parameter.grad.view(-1)[index].item() == pytest.approx(numeric, rel=1e-5, abs=1e-8), name
    assert all(each.grad.abs().max() > 0 for each in algorithm.meta_learner.parameters())


@pytest.mark.parametrize("ways", [2, 5])
def test_other_ways_start_from_the_mean_row_of_the_head(ways):
    algorithm, episodes = meta_lstm(), random_episodes(ways)
    wide = copy.deepcopy(algorithm)
    wide.net = algorithm.net.with_ways(ways)
    before = everything(algorithm)
    expected = slow_logits(wide, episodes, 1, 3)[0]
    torch.testing.assert_close(algorithm.predict(episodes)[1], expected, rtol=1e-6, atol=1e-7)
    assert is_same(everything(algorithm), before)


def test_an_engine_that_cannot_do_it_says_so():
    with pytest.raises(FslError, match=r"hardware.engine: learn2learn is not valid"):
        meta_lstm("learn2learn")


# --- learning


@pytest.mark.parametrize("options", [{}, {"hidden_size": 3, "inner_steps": 2}, {"batch_norm": "inductive"}], ids=str)
def test_learns(options):
    algorithm = learner(**options)
    assert accuracy(algorithm, TEST, 100) < 0.4
    gates = [each.detach().clone() for each in algorithm.meta_learner.parameters()]
    train(algorithm, TRAIN, iterations=120, meta_batch=8)
    assert accuracy(algorithm, TEST, 100) > 0.55
    assert accuracy(algorithm, EpisodeSampler(faint_patterns(seed=1), "test", Task(5, 5, 5), 0), 100) > 0.65
    assert accuracy(algorithm, EpisodeSampler(faint_patterns(seed=1), "test", Task(8, 1, 5), 0), 100) > 0.45
    assert all((old != new).any() for old, new in zip(gates, algorithm.meta_learner.parameters(), strict=True))


def test_without_labels_it_does_not_learn(monkeypatch):
    """Shuffled support labels: nothing can be learned from them."""
    loss, draw = MetaLSTM.loss, torch.Generator().manual_seed(0)

    def shuffled(self: MetaLSTM, episodes: Episodes):
        order = torch.randperm(episodes.support.y.shape[1], generator=draw)
        return loss(self, changed(episodes, support_y=episodes.support.y[:, order]))

    monkeypatch.setattr(MetaLSTM, "loss", shuffled)
    algorithm = learner()
    train(algorithm, TRAIN, iterations=120, meta_batch=8)
    assert accuracy(algorithm, TEST, 100) < 0.4


def test_noise_is_classified_at_chance():
    algorithm = learner()
    train(algorithm, TRAIN, iterations=20)
    assert is_at_chance(algorithm, EpisodeSampler(noise_classes(), "test", TASK, 0))
