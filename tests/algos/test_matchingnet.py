"""Matching networks against slow loops over the paper's equations."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from problems import TinyNet, of_embeddings, random_episodes
from torch import nn

from fsl_cli.algos.matchingnet import FullContext, MatchingNet
from fsl_cli.backbones.batch_norm import statistics_from
from fsl_cli.episodes import Episodes
from fsl_cli.episodes.randomness import permutations

EXACT = {"rtol": 1e-9, "atol": 1e-11}


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def matchingnet(**options) -> MatchingNet:
    torch.manual_seed(0)
    return MatchingNet(TinyNet(), 4, **options).double()


def embedded(algorithm: MatchingNet, images: torch.Tensor) -> torch.Tensor:
    with statistics_from(algorithm, "running"), torch.no_grad():
        return algorithm.backbone(images)


def episodes_with_seeds(**shape: int) -> Episodes:
    episodes = random_episodes(**shape)
    return replace(episodes, seeds=torch.tensor([3, 14, 15]))


def class_attention(query: torch.Tensor, support: torch.Tensor, labels: list[int], ways: int, scale: float) -> list[float]:
    """Equation 1 for one query, number by number."""

    def cosine(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)

    kernel = [math.exp(scale * cosine(query.tolist(), each.tolist())) for each in support]
    classes = [0.0] * ways
    for value, label in zip(kernel, labels, strict=True):
        classes[label] += value / sum(kernel)
    return classes


@pytest.mark.parametrize("scale", [1.0, 7.5])
def test_logits_are_the_log_of_the_attention_a_class_gets(scale):
    algorithm = matchingnet(scale=scale)
    support, query, labels = normal(2, 5, 4), normal(2, 3, 4), torch.tensor([[2, 0, 1, 1, 0], [0, 1, 2, 2, 2]])
    logits = algorithm.classify(of_embeddings(support, labels, query, 3)).detach()
    for task in range(2):
        for row in range(3):
            expected = class_attention(query[task, row], support[task], labels[task].tolist(), 3, scale)
            assert logits[task, row].exp().tolist() == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones(2, 3, dtype=torch.float64), **EXACT)


def test_predictions_are_of_the_embedded_images():
    algorithm, episodes = matchingnet(scale=3.0), random_episodes(ways=3, shots=2)
    logits = algorithm.predict(episodes)
    for task in range(3):
        support, query = embedded(algorithm, episodes.support.x[task]), embedded(algorithm, episodes.query.x[task])
        for row in range(6):
            expected = class_attention(query[row], support, [0, 0, 1, 1, 2, 2], 3, 3.0)
            assert logits[task, row].exp().tolist() == pytest.approx(expected, rel=1e-6)


def test_log_sums_do_not_underflow():
    support, query = torch.tensor([[[-1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]]]), torch.tensor([[[2.0, 0.0]]])
    episodes = of_embeddings(support.double(), torch.tensor([[0, 0, 1]]), query.double(), 2)
    logits = matchingnet(scale=1000.0).classify(episodes).detach()
    torch.testing.assert_close(logits, torch.tensor([[[-2000 + math.log(2), 0.0]]], dtype=torch.float64))


@pytest.mark.parametrize("fce", [False, True])
def test_the_loss_is_minus_the_log_of_the_attention_of_the_right_class(fce):
    algorithm, episodes = matchingnet(fce=fce), episodes_with_seeds()
    step = algorithm.loss(episodes)
    right = step.outputs.gather(2, episodes.query.y.unsqueeze(-1))
    assert step.loss.item() == pytest.approx(-right.mean().item())
    assert step.metrics["scale"].item() == pytest.approx(10)


def test_the_scale_is_learned_or_fixed():
    for learned in (True, False):
        algorithm = matchingnet(learn_scale=learned)
        algorithm.loss(random_episodes()).loss.backward()
        assert (algorithm.log_scale.grad is not None) is learned


def test_without_context_there_are_no_lstms():
    assert {name.split(".")[0] for name, _ in matchingnet().named_parameters()} == {"backbone", "log_scale"}
    assert "context" in {name.split(".")[0] for name, _ in matchingnet(fce=True).named_parameters()}


# --- full context embeddings


def cell(weights: tuple[torch.Tensor, ...], x: torch.Tensor, h: torch.Tensor, c: torch.Tensor):
    """An LSTM cell (Hochreiter & Schmidhuber 1997, with forget gates), torch's order of gates: i, f, g, o."""
    of_input, of_state, one, other = weights
    i, f, g, o = (of_input @ x + of_state @ h + one + other).chunk(4)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def over(lstm: nn.LSTM, sequence: list[torch.Tensor], suffix: str) -> list[torch.Tensor]:
    weights = [getattr(lstm, f"{name}_l0{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    h = c = torch.zeros_like(sequence[0])
    states = []
    for x in sequence:
        h, c = cell(weights, x, h, c)
        states.append(h)
    return states


@pytest.fixture
def context() -> FullContext:
    torch.manual_seed(1)
    return FullContext(3, processing_steps=4).double().requires_grad_(False)


def test_the_support_set_is_read_in_both_directions_with_a_skip_connection(context):
    support, order = normal(2, 5, 3), torch.tensor([[3, 1, 4, 0, 2], [0, 1, 2, 3, 4]])
    g = context.support_in_context(support, order)
    for task in range(2):
        there = order[task].tolist()
        forward = dict(zip(there, over(context.over_support, [support[task, i] for i in there], ""), strict=True))
        back = there[::-1]
        backward = dict(zip(back, over(context.over_support, [support[task, i] for i in back], "_reverse"), strict=True))
        for i in range(5):
            torch.testing.assert_close(g[task, i], forward[i] + backward[i] + support[task, i], **EXACT)


def test_the_query_is_processed_by_equations_3_to_6(context):
    g, query = normal(2, 5, 3), normal(2, 4, 3)
    f = context.query_in_context(query, g)
    lstm = context.over_steps
    of_query, of_read = lstm.weight_ih.chunk(2, dim=1)
    of_both = torch.cat([lstm.weight_hh, of_read], dim=1)  # the matrix of [h, r]
    for task in range(2):
        for row in range(4):
            x, h, c = query[task, row], torch.zeros(3).double(), torch.zeros(3).double()
            for _ in range(4):
                attention = [math.exp(h @ each) for each in g[task]]
                r = sum(a / sum(attention) * each for a, each in zip(attention, g[task], strict=True))
                h_hat, c = cell((of_query, of_both, lstm.bias_ih, lstm.bias_hh), x, torch.cat([h, r]), c)
                h = h_hat + x
            torch.testing.assert_close(f[task, row], h, **EXACT)


def test_predictions_in_context_are_attention_of_f_to_g_in_the_order_of_the_seed():
    algorithm, episodes = matchingnet(fce=True), episodes_with_seeds(shots=2)
    logits = algorithm.predict(episodes)
    for task in range(3):
        support = embedded(algorithm, episodes.support.x[task])[None]
        query = embedded(algorithm, episodes.query.x[task])[None]
        order = permutations(episodes.seeds[task : task + 1], 6, "order of the support set")
        g, f = (each.detach() for each in algorithm.context(support, query, order))
        for row in range(6):
            expected = class_attention(f[0, row], g[0], [0, 0, 1, 1, 2, 2], 3, 10.0)
            assert logits[task, row].exp().tolist() == pytest.approx(expected, rel=1e-6)
    other = replace(episodes, seeds=episodes.seeds + 1)
    assert not torch.allclose(algorithm.predict(other), logits)
