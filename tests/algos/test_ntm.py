"""NTM: each equation of its addressing against slow loops."""

from __future__ import annotations

import pytest
import sequences
import torch
from sequences import EXACT, normal, sampler, weights
from small_training import CPU, accuracy

from fsl_cli.algos.common.memory import EMPTY, content_weights, erase_and_add, reads
from fsl_cli.algos.ntm import NTM, Head, NTMCell, address, sharpen, shifted
from fsl_cli.episodes import Task
from fsl_cli.evaluation import evaluate

SMALL = {"hidden": 16, "slots": 10, "width": 24, "read_heads": 2}


def test_shifts_are_a_circular_convolution():
    before, shift = weights(2, 3, 5), weights(2, 3, 3)
    found = shifted(before, shift)
    for task in range(2):
        for head in range(3):
            for row in range(5):
                expected = sum(before[task, head, (row - by) % 5] * shift[task, head, by + 1] for by in (-1, 0, 1))
                torch.testing.assert_close(found[task, head, row], expected, **EXACT)


def test_a_shift_by_one_moves_to_the_next_row():
    one = torch.eye(4)[2].view(1, 1, 4)
    assert shifted(one, torch.tensor([[[0.0, 0.0, 1.0]]])).flatten().tolist() == [0, 0, 0, 1]
    assert shifted(one, torch.tensor([[[1.0, 0.0, 0.0]]])).flatten().tolist() == [0, 1, 0, 0]


def test_sharpening_is_a_normalised_power():
    before, sharpness = weights(2, 3, 5), 1 + normal(2, 3).exp()
    found = sharpen(before, sharpness)
    for task in range(2):
        for head in range(3):
            powers = [value ** sharpness[task, head].item() for value in before[task, head].tolist()]
            expected = torch.tensor([value / sum(powers) for value in powers], dtype=torch.float64)
            torch.testing.assert_close(found[task, head], expected, **EXACT)


def test_sharpening_survives_rows_without_weight():
    before = torch.tensor([[[0.0, 1.0, 0.0]]], requires_grad=True)
    sharpness = torch.tensor([[50.0]], requires_grad=True)
    found = sharpen(before, sharpness)
    found[..., 1].sum().backward()
    assert found.flatten().tolist() == [0, 1, 0]
    assert before.grad.isfinite().all()
    assert sharpness.grad.isfinite().all()


def test_addressing_goes_from_content_over_the_gate_and_the_shift_to_sharpness():
    memory, before = normal(2, 5, 4), weights(2, 3, 5, seed=1)
    head = Head(
        normal(2, 3, 4), 1 + normal(2, 3).exp(), normal(2, 3).sigmoid(), weights(2, 3, 3), 1 + normal(2, 3, seed=1).exp()
    )
    found = address(head, memory, before)
    for task in range(2):
        for which in range(3):
            cosines = torch.cosine_similarity(head.key[task, which][None], memory[task])
            content = (head.strength[task, which] * cosines).softmax(0)
            gated = head.gate[task, which] * content + (1 - head.gate[task, which]) * before[task, which]
            s = head.shift[task, which]
            moved = torch.stack([s[0] * gated[(i + 1) % 5] + s[1] * gated[i] + s[2] * gated[i - 1] for i in range(5)])
            power = moved ** head.sharpness[task, which]
            torch.testing.assert_close(found[task, which], power / power.sum(), rtol=1e-4, atol=1e-6)


def test_a_write_erases_and_adds_and_a_read_is_the_weighted_sum():
    memory, where, erase, add = normal(2, 5, 4), weights(2, 5), normal(2, 4).sigmoid(), normal(2, 4, seed=1)
    after, look = erase_and_add(memory, where, erase, add), weights(2, 3, 5)
    for task in range(2):
        for row in range(5):
            for column in range(4):
                w = where[task, row]
                kept = memory[task, row, column] * (1 - w * erase[task, column])
                torch.testing.assert_close(after[task, row, column], kept + w * add[task, column], **EXACT)
        for head in range(3):
            expected = sum(look[task, head, row] * after[task, row] for row in range(5))
            torch.testing.assert_close(reads(look, after)[task, 4 * head : 4 * head + 4], expected, **EXACT)


def test_a_step_writes_and_then_reads():
    torch.manual_seed(0)
    cell = NTMCell(3, 2, 5, 7, 4, 2).double()
    state, inputs = sequences.random_state(cell, 2), normal(2, 8)
    hidden, carry, memory, before, read = state
    logits, (*_, after, attended, now) = cell(inputs, state)
    hidden, carry = cell.controller(torch.cat([inputs, read], 1), (hidden, carry))
    told = cell.interface(torch.cat([hidden, inputs], 1))
    looked = []
    for which, part in enumerate(told[:, :30].split(10, 1)):
        key, strength, gate, shift, sharpness = part[:, None].split([4, 1, 1, 3, 1], -1)
        one, other = (1 + (1 + x[..., 0].exp()).log() for x in (strength, sharpness))
        head = Head(key.tanh(), one, gate[..., 0].sigmoid(), shift.softmax(-1), other)
        looked.append(address(head, memory, before[:, which : which + 1]))
        if which == 0:
            memory = erase_and_add(memory, looked[0][:, 0], told[:, 30:34].sigmoid(), told[:, 34:].tanh())
    torch.testing.assert_close(after, memory, **EXACT)
    torch.testing.assert_close(attended, torch.cat(looked, 1), **EXACT)
    torch.testing.assert_close(now, torch.cat([(each @ memory)[:, 0] for each in looked[1:]], 1), **EXACT)
    torch.testing.assert_close(logits, cell.output(torch.cat([hidden, now], 1)), **EXACT)


def test_memory_begins_almost_empty_and_every_head_on_row_0():
    _, _, memory, attended, read = NTMCell(3, 2, 5, 7, 4, 2).start(2)
    assert (memory == EMPTY).all()
    assert (attended.argmax(-1) == 0).all()
    assert (attended.sum(-1) == 1).all()
    assert not read.any()


def test_content_weights_of_an_empty_memory_are_even():
    found = content_weights(normal(2, 3, 4), torch.full((2, 3), 9.0).double(), torch.full((2, 5, 4), EMPTY).double())
    torch.testing.assert_close(found, torch.full_like(found, 0.2), rtol=0, atol=0.02)


@pytest.mark.parametrize("batch_norm", ["inductive", "transductive"])
def test_predict_is_each_query_at_the_end_of_its_own_sequence(batch_norm):
    sequences.check_episode_the_slow_way(NTM, batch_norm, **SMALL)


def test_the_gradient_is_the_finite_difference():
    sequences.check_gradients(NTM, **SMALL)


@pytest.fixture(scope="module")
def trained() -> NTM:
    return sequences.trained(sequences.learner(NTM, training="episode", **SMALL), 60)


def test_learns_to_tell_unseen_classes_apart_with_other_shots_and_fewer_ways_too(trained):
    assert accuracy(trained, sampler()) > 0.85
    assert accuracy(trained, sampler(Task(3, 5, 3)), 100) > 0.6
    assert accuracy(trained, sampler(Task(2, 1, 3)), 100) > 0.85


def test_noise_is_at_chance(trained):
    sequences.assert_noise_is_at_chance(trained)


def test_learns_from_whole_sequences_too():
    algorithm = sequences.trained(sequences.learner(NTM, training="both", **SMALL), 120)
    curve = evaluate(algorithm, sampler(Task(3, 1, 9)), 100, CPU, curves=True).curves["instance"].mean(0)
    assert curve[0] < 0.6 < 0.7 < curve[1]


def test_a_copy_trained_with_shuffled_support_labels_learns_nothing():
    broken = sequences.shuffled_support(NTM)
    algorithm = sequences.trained(sequences.learner(broken, training="episode", **SMALL), 60)
    assert accuracy(algorithm, sampler()) < 0.45
