"""SNAIL: its layers against torch's own, and each query as a sequence of its own."""

from __future__ import annotations

import pytest
import sequences
import torch
import torch.nn.functional as F
from problems import random_episodes
from sequences import EXACT, normal, sampler
from small_training import accuracy

from fsl_cli.algos.snail import SNAIL, AttentionBlock, Branches, DenseBlock
from fsl_cli.episodes import Task
from fsl_cli.episodes.randomness import permutations

SMALL = {"filters": 16, "train_queries": 3}


def dense(block: DenseBlock, sequence: torch.Tensor) -> torch.Tensor:
    """One sequence ``[S, C]`` through torch's convolution."""
    kernel = torch.stack([block.back.weight, block.now.weight], -1)
    padded = F.pad(sequence.T[None], (block.dilation, 0))
    f, g = F.conv1d(padded, kernel, block.now.bias, dilation=block.dilation)[0].T.chunk(2, -1)
    return torch.cat([sequence, f.tanh() * g.sigmoid()], -1)


def attend(block: AttentionBlock, sequence: torch.Tensor) -> torch.Tensor:
    """One sequence ``[S, C]`` through torch's attention."""
    query, key, value = (layer(sequence)[None] for layer in (block.query, block.key, block.value))
    return torch.cat([sequence, F.scaled_dot_product_attention(query, key, value, is_causal=True)[0]], -1)


def slow(layer: DenseBlock | AttentionBlock, sequence: torch.Tensor) -> torch.Tensor:
    return (dense if isinstance(layer, DenseBlock) else attend)(layer, sequence)


@pytest.mark.parametrize("positions", [1, 3, 6])
@pytest.mark.parametrize("kind", [1, 2, 4, 8, "attention"])
def test_a_layer_is_that_of_torch_on_the_sequence_of_each_query(kind, positions):
    torch.manual_seed(0)
    layer = (AttentionBlock(5, 4, 3) if kind == "attention" else DenseBlock(5, kind, 3)).double()
    both = Branches(normal(2, positions, 5), normal(2, 4, 5))
    after = layer(both)
    for task in range(2):
        for query in range(4):
            expected = slow(layer, torch.cat([both.support[task], both.query[task, query][None]]))
            torch.testing.assert_close(after.support[task], expected[:-1], **EXACT)
            torch.testing.assert_close(after.query[task, query], expected[-1], **EXACT)


def test_layers_are_those_of_the_paper():
    algorithm = sequences.learner(SNAIL, shots=5)  # 3 ways: 16 positions
    widths = [
        ("attention", each.key.out_features, each.value.out_features)
        if isinstance(each, AttentionBlock)
        else ("dense", each.dilation, each.now.out_features // 2)
        for each in algorithm.layers
    ]
    convolutions = [("dense", dilation, 128) for dilation in (1, 2, 4, 8)]
    middle = ("attention", 256, 128)
    assert widths == [("attention", 64, 32), *convolutions, middle, *convolutions, ("attention", 512, 256)]
    assert algorithm.output.in_features == 32 + 3 + 32 + 4 * 128 + 128 + 4 * 128 + 256


@pytest.mark.parametrize("batch_norm", ["inductive", "transductive"])
def test_predict_is_each_query_at_the_end_of_its_own_sequence_without_a_label(batch_norm):
    algorithm = sequences.with_tiny_net(SNAIL, batch_norm=batch_norm, **SMALL)
    episodes = sequences.seeded(random_episodes())
    logits, orders = algorithm.predict(episodes), permutations(episodes.seeds, 6, "support")
    for task in range(len(episodes)):
        x, queries = sequences.features(algorithm, episodes, task, batch_norm)
        labelled = torch.cat([x, torch.eye(3, dtype=torch.float64)[episodes.support.y[task]]], -1)[orders[task]]
        for position, query in enumerate(queries):
            sequence = torch.cat([labelled, F.pad(query, (0, 3))[None]])
            for layer in algorithm.layers:
                sequence = slow(layer, sequence)
            torch.testing.assert_close(logits[task, position], algorithm.output(sequence[-1]).detach(), **EXACT)


def test_the_gradient_is_the_finite_difference():
    sequences.check_gradients(SNAIL, shots=1, **SMALL)


@pytest.fixture(scope="module")
def trained() -> SNAIL:
    return sequences.trained(sequences.learner(SNAIL, **SMALL), lr=0.003)


def test_learns_to_tell_unseen_classes_apart_with_other_shots_and_fewer_ways_too(trained):
    assert accuracy(trained, sampler()) > 0.85
    assert accuracy(trained, sampler(Task(3, 5, 3)), 100) > 0.6
    assert accuracy(trained, sampler(Task(2, 1, 3)), 100) > 0.85


def test_noise_is_at_chance(trained):
    sequences.assert_noise_is_at_chance(trained)


def test_more_ways_than_trained_are_refused(trained):
    assert "4 ways" in str(trained.task_problems(Task(4, 1, 3))[0])
    assert trained.task_problems(Task(3, 9, 3)) == []


def test_a_copy_trained_with_shuffled_support_labels_learns_nothing():
    broken = sequences.shuffled_support(SNAIL)
    algorithm = sequences.trained(sequences.learner(broken, **SMALL), lr=0.003)
    assert accuracy(algorithm, sampler()) < 0.45
