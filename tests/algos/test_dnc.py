"""DNC: each equation of the Methods of its paper against slow loops."""

from __future__ import annotations

import pytest
import sequences
import torch
from sequences import EXACT, normal, sampler, weights
from small_training import CPU, accuracy

from fsl_cli.algos.common.memory import content_weights, oneplus
from fsl_cli.algos.dnc import DNC, DNCCell, allocation, linked, read_from, used
from fsl_cli.episodes import Task
from fsl_cli.evaluation import evaluate

SMALL = {"hidden": 16, "slots": 10, "width": 24, "read_heads": 2}


def test_usage_grows_by_writes_and_shrinks_by_free_gates():
    usage, write, read, free = normal(2, 5).sigmoid(), weights(2, 5), weights(2, 3, 5), normal(2, 3).sigmoid()
    found = used(usage, write, read, free)
    for task in range(2):
        for row in range(5):
            retained = 1.0
            for head in range(3):
                retained *= 1 - free[task, head].item() * read[task, head, row].item()
            u, w = usage[task, row].item(), write[task, row].item()
            assert found[task, row].item() == pytest.approx((u + w - u * w) * retained)


def test_allocation_goes_through_the_free_list():
    usage = normal(3, 6).sigmoid()
    found = allocation(usage)
    for task in range(3):
        values, product = usage[task].tolist(), 1.0
        for row in sorted(range(6), key=lambda row: values[row]):
            assert found[task, row].item() == pytest.approx((1 - values[row]) * product)
            product *= values[row]


def test_allocation_takes_the_first_free_row_and_none_where_all_are_used():
    assert allocation(torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])).tolist() == [[0, 1, 0], [0, 0, 0]]


def test_links_are_the_slow_loop():
    links, precedence, write = normal(2, 5, 5).sigmoid() / 5, weights(2, 5), weights(2, 5, seed=1)
    found = linked(links, precedence, write)
    for task in range(2):
        for i in range(5):
            for j in range(5):
                w_i, w_j = write[task, i], write[task, j]
                expected = (1 - w_i - w_j) * links[task, i, j] + w_i * precedence[task, j]
                expected = expected * 0 if i == j else expected
                torch.testing.assert_close(found[task, i, j], expected, **EXACT)


def test_reading_forward_follows_the_order_of_the_writes():
    """Rows 2, 0, 3 are written one after the other; forward from 0 is 3, backward from 0 is 2."""
    links, precedence = torch.zeros(1, 4, 4), torch.zeros(1, 4)
    for row in (2, 0, 3):
        write = torch.eye(4)[row][None]
        links = linked(links, precedence, write)
        precedence = (1 - write.sum(1, keepdim=True)) * precedence + write
    before, content = torch.eye(4)[0].view(1, 1, 4), torch.full((1, 1, 4), 0.25)
    found = [read_from(torch.eye(3)[mode].view(1, 1, 3), before, content, links).flatten().tolist() for mode in range(3)]
    assert found == [[0, 0, 1, 0], [0.25] * 4, [0, 0, 0, 1]]


def test_read_weights_mix_backward_content_and_forward():
    modes, before, content = weights(2, 3, 3), weights(2, 3, 5), weights(2, 3, 5, seed=1)
    links = normal(2, 5, 5)
    found = read_from(modes, before, content, links)
    for task in range(2):
        for head in range(3):
            for i in range(5):
                forward = sum(links[task, i, j] * before[task, head, j] for j in range(5))
                backward = sum(links[task, j, i] * before[task, head, j] for j in range(5))
                pi = modes[task, head]
                expected = pi[0] * backward + pi[1] * content[task, head, i] + pi[2] * forward
                torch.testing.assert_close(found[task, head, i], expected, **EXACT)


def test_a_step_is_the_paper_in_its_order():
    torch.manual_seed(0)
    cell = DNCCell(3, 2, 5, 6, 4, 2).double()
    state, inputs = sequences.random_state(cell, 2), normal(2, 8)
    hidden, carry, memory, usage, links, precedence, write, read, seen = state
    logits, after = cell(inputs, state)
    hidden, carry = cell.controller(torch.cat([inputs, seen], 1), (hidden, carry))
    for task in range(2):
        told = cell.interface(torch.cat([hidden[task], inputs[task]]))
        keys, key, erase, add, strengths, strength, free, allocate, gate, modes = told.split([8, 4, 4, 4, 2, 1, 2, 1, 1, 6])
        one = slice(task, task + 1)
        u = used(usage[one], write[one], read[one], free.sigmoid()[None])
        content = content_weights(key.view(1, 1, 4), oneplus(strength)[None], memory[one])[0, 0]
        w = gate.sigmoid() * (allocate.sigmoid() * allocation(u)[0] + (1 - allocate.sigmoid()) * content)
        m = memory[task] * (1 - torch.outer(w, erase.sigmoid())) + torch.outer(w, add)
        link = linked(links[one], precedence[one], w[None])
        p = (1 - w.sum()) * precedence[task] + w
        content = content_weights(keys.view(1, 2, 4), oneplus(strengths)[None], m[None])
        r = read_from(modes.view(1, 2, 3).softmax(-1), read[one], content, link)[0]
        vectors = (r @ m).flatten()
        for found, expected in zip(after[2:], (m, u[0], link[0], p, w, r, vectors), strict=True):
            torch.testing.assert_close(found[task], expected, **EXACT)
        y = cell.output.weight @ hidden[task] + cell.output.bias + cell.output_read.weight @ vectors
        torch.testing.assert_close(logits[task], y, **EXACT)


@pytest.mark.parametrize("batch_norm", ["inductive", "transductive"])
def test_predict_is_each_query_at_the_end_of_its_own_sequence(batch_norm):
    sequences.check_episode_the_slow_way(DNC, batch_norm, **SMALL)


def test_the_gradient_is_the_finite_difference():
    sequences.check_gradients(DNC, **SMALL)


@pytest.fixture(scope="module")
def trained() -> DNC:
    return sequences.trained(sequences.learner(DNC, training="episode", **SMALL), 60)


def test_learns_to_tell_unseen_classes_apart_with_other_shots_and_fewer_ways_too(trained):
    assert accuracy(trained, sampler()) > 0.85
    assert accuracy(trained, sampler(Task(3, 5, 3)), 100) > 0.6
    assert accuracy(trained, sampler(Task(2, 1, 3)), 100) > 0.85


def test_noise_is_at_chance(trained):
    sequences.assert_noise_is_at_chance(trained)


@pytest.mark.slow  # the training is that of every memory network, tested with MANN and NTM
def test_learns_from_whole_sequences_too():
    algorithm = sequences.trained(sequences.learner(DNC, training="both", **SMALL), 120)
    curve = evaluate(algorithm, sampler(Task(3, 1, 9)), 100, CPU, curves=True).curves["instance"].mean(0)
    assert curve[0] < 0.6 < 0.7 < curve[1]


def test_a_copy_trained_with_shuffled_support_labels_learns_nothing():
    broken = sequences.shuffled_support(DNC)
    algorithm = sequences.trained(sequences.learner(broken, training="episode", **SMALL), 60)
    assert accuracy(algorithm, sampler()) < 0.45
