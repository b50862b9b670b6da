"""MANN against slow loops; sequences and their accuracy by instance."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import sequences
import torch
from problems import changed, random_episodes
from sequences import EXACT, normal, sampler
from small_training import CPU, accuracy

from fsl_cli.algos.common.cell_learner import by_instance, instances
from fsl_cli.algos.common.memory import content_weights, cosine_similarity
from fsl_cli.algos.common.sequences import Labelled
from fsl_cli.algos.mann import MANN, MANNCell, least_used
from fsl_cli.episodes import Task
from fsl_cli.errors import FslError
from fsl_cli.evaluation import evaluate

SMALL = {"hidden": 16, "slots": 64, "width": 24, "heads": 4, "write_rows": 1}
FOUR_ROWS = SMALL | {"write_rows": 4}  # learns sooner from the queries alone, and overflows sooner


@pytest.fixture(scope="module")
def trained() -> MANN:
    return sequences.trained(sequences.learner(MANN, **SMALL), 120)


# --- the equations


def test_cosine_similarity_and_content_weights_are_the_slow_loops():
    keys, memory, strengths = normal(2, 3, 4), normal(2, 5, 4), normal(2, 3).exp()
    similarity, found = cosine_similarity(keys, memory), content_weights(keys, strengths, memory)
    for task in range(2):
        for head in range(3):
            cosines = []
            for row in range(5):
                a, b = keys[task, head].tolist(), memory[task, row].tolist()
                dot = sum(x * y for x, y in zip(a, b, strict=True))
                cosines.append(dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(x * x for x in b)))
                assert similarity[task, head, row].item() == pytest.approx(cosines[-1], rel=1e-5)
            powers = [math.exp(strengths[task, head].item() * cosine) for cosine in cosines]
            for row in range(5):
                assert found[task, head, row].item() == pytest.approx(powers[row] / sum(powers), rel=1e-5)


def test_least_used_marks_the_n_smallest_and_of_equals_the_first():
    usage = torch.tensor([[3.0, 1.0, 2.0, 0.5], [0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 1.0, 1.0]])
    assert least_used(usage, 2).tolist() == [[0, 1, 0, 1], [1, 1, 0, 0], [1, 1, 0, 0]]


@pytest.mark.parametrize("key_strength", [True, False])
@pytest.mark.parametrize("write_rows", [1, 2])
def test_a_step_is_the_paper_in_loops(key_strength, write_rows):
    torch.manual_seed(0)
    cell = MANNCell(3, 2, 5, 7, 4, 2, 0.9, key_strength, write_rows).double()
    state, inputs = sequences.random_state(cell, 2), normal(2, 8)
    hidden, carry, memory, usage, read_weights, read = state
    logits, after = cell(inputs, state)
    hidden, carry = cell.controller(torch.cat([inputs, read], 1), (hidden, carry))
    told = cell.interface(torch.cat([hidden, inputs], 1)).view(2, 2, 6)
    for task in range(2):
        least = sorted(range(7), key=lambda row: usage[task, row].item())[:write_rows]
        now = [[0.0] * 4 if row in least else memory[task, row].tolist() for row in range(7)]
        keys = [[math.tanh(x) for x in told[task, head, :4].tolist()] for head in range(2)]
        used = [0.9 * x for x in usage[task].tolist()]
        for head in range(2):
            alpha = 1 / (1 + math.exp(-told[task, head, 4].item()))
            for row in range(7):
                write = alpha * read_weights[task, head, row].item() + (1 - alpha) * (row in least)
                used[row] += write
                now[row] = [old + write * key for old, key in zip(now[row], keys[head], strict=True)]
        reads = []
        for head in range(2):
            beta = 1 + math.log(1 + math.exp(told[task, head, 5].item())) if key_strength else 1.0
            key = torch.tensor(keys[head], dtype=torch.float64)
            cosines = torch.stack([torch.cosine_similarity(key, torch.tensor(row, dtype=torch.float64), 0) for row in now])
            focus = (beta * cosines).softmax(0)
            used = [old + new for old, new in zip(used, focus.tolist(), strict=True)]
            reads.append(sum(focus[row] * torch.tensor(now[row], dtype=torch.float64) for row in range(7)))
        close = {"rtol": 1e-4, "atol": 1e-5}  # an empty row has a direction of its own
        torch.testing.assert_close(after[2][task], torch.tensor(now, dtype=torch.float64), **EXACT)
        torch.testing.assert_close(after[3][task], torch.tensor(used, dtype=torch.float64), **close)
        expected = cell.output(torch.cat([hidden[task], *reads]))
        torch.testing.assert_close(logits[task], expected, **close)


@pytest.mark.parametrize("batch_norm", ["inductive", "transductive"])
def test_predict_is_each_query_at_the_end_of_its_own_sequence(batch_norm):
    sequences.check_episode_the_slow_way(MANN, batch_norm, **SMALL)


@pytest.mark.parametrize("training", ["sequence", "episode", "both"])
def test_the_gradient_is_the_finite_difference(training):
    sequences.check_gradients(MANN, training=training, **SMALL)


@pytest.mark.parametrize("options", [{"slots": 3}, {"slots": 3, "heads": 2, "write_rows": 4}], ids=str)
def test_fewer_rows_than_an_image_takes_are_refused(options):
    with pytest.raises(FslError, match="4 rows for every image, but 3 rows of memory"):
        sequences.learner(MANN, **options)


# --- sequences


def test_a_label_is_seen_one_step_late():
    """Another label at position 2 changes nothing up to there, and all that follows."""
    algorithm = sequences.with_tiny_net(MANN, **SMALL)
    images, labels = normal(1, 5, 4), torch.tensor([[0, 1, 2, 0, 1]])
    other = labels.clone()
    other[0, 2] = 1
    one, two = (algorithm.follow(Labelled(images, each)) for each in (labels, other))
    assert torch.equal(one[:, :3], two[:, :3])
    assert not torch.isclose(one[:, 3], two[:, 3]).any()


def test_instances_are_counted_and_accuracy_is_by_instance():
    labels = torch.tensor([[0, 1, 0, 1, 1, 0], [1, 1, 1, 0, 0, 0]])
    assert instances(labels).tolist() == [[1, 1, 2, 2, 3, 3], [1, 2, 3, 1, 2, 3]]
    said = torch.tensor([[0, 0, 0, 0, 1, 0], [1, 0, 1, 1, 0, 0]])
    found = by_instance(torch.nn.functional.one_hot(said, 2).double(), labels, 3)
    assert found.tolist() == [[0.5, 0.5, 1.0], [0.5, 0.5, 1.0]]


def test_the_curve_takes_the_first_images_of_each_class_in_random_order():
    algorithm, task = sequences.learner(MANN, **SMALL), Task(3, 2, 10)
    assert list(algorithm.curve_points(task)["instance"]) == list(range(1, 11))
    assert list(algorithm.curve_points(Task(3, 1, 2))["instance"]) == [1, 2, 3]
    seen = []
    algorithm.follow = lambda images: seen.append(images) or torch.zeros(*images.labels.shape, 3)
    batch = sampler(task).batch(0, 4)
    assert algorithm.score(batch, curves=True)["instance"].shape == (4, 10)
    for label in range(3):
        assert (seen[0].labels == label).sum(1).tolist() == [10] * 4
    assert len({tuple(row) for row in seen[0].labels.tolist()}) == 4
    other = changed(batch, query_x=batch.query.x.clone())
    other.query.x.view(4, 3, 10, 2, 4, 4)[:, :, 8:] = 0  # the 11th and 12th image of a class
    algorithm.score(other, curves=True)
    assert torch.equal(seen[0].features, seen[1].features)


def test_the_support_set_is_seen_in_an_order_of_its_own():
    algorithm, episodes = sequences.with_tiny_net(MANN, **SMALL), random_episodes()
    one, same, other = (algorithm.predict(replace(episodes, seeds=torch.full((3,), seed))) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)


# --- learning


def test_learns_to_tell_unseen_classes_apart_and_more_shots_help(trained):
    one, five = accuracy(trained, sampler()), accuracy(trained, sampler(Task(3, 5, 3)))
    assert one > 0.8
    assert five > one - 0.1


def test_accuracy_rises_by_instance(trained):
    curve = evaluate(trained, sampler(Task(3, 1, 9)), 200, CPU, curves=True).curves["instance"].mean(0)
    assert curve.shape == (10,)
    assert curve[0] < 0.6 < 0.8 < curve[1]
    assert curve[2:].min() > curve[1] + 0.03  # nothing is forgotten, in sequences that are longer than those of training
    assert curve[2:].max() - curve[2:].min() < 0.05


def test_a_memory_with_fewer_rows_than_images_forgets(trained, monkeypatch):
    """The network has no weights for the rows, so a smaller memory can be tested."""
    monkeypatch.setattr(trained.cell, "slots", 16)
    curve = evaluate(trained, sampler(Task(3, 1, 9)), 100, CPU, curves=True).curves["instance"].mean(0)
    assert curve[1] > 0.8  # after a few images
    assert curve[9] < curve[1] - 0.3


def test_fewer_ways_can_be_tested_and_more_cannot(trained):
    assert trained.task_problems(Task(2, 1, 3)) == []
    assert accuracy(trained, sampler(Task(2, 1, 3))) > 0.75
    assert "labels" in str(trained.task_problems(Task(4, 1, 3))[0])


def test_noise_is_at_chance(trained):
    sequences.assert_noise_is_at_chance(trained)


def test_learns_from_whole_sequences_alone_as_in_the_paper():
    algorithm = sequences.trained(sequences.learner(MANN, training="sequence", **SMALL), 120)
    curve = evaluate(algorithm, sampler(Task(3, 1, 9)), 100, CPU, curves=True).curves["instance"].mean(0)
    assert curve[0] < 0.6 < 0.7 < curve[1]


def test_learns_from_the_queries_alone():
    assert accuracy(sequences.trained(sequences.learner(MANN, training="episode", **FOUR_ROWS), 60), sampler()) > 0.7


def test_a_copy_trained_with_shuffled_support_labels_learns_nothing():
    broken = sequences.shuffled_support(MANN)
    algorithm = sequences.trained(sequences.learner(broken, training="episode", **FOUR_ROWS), 60)
    assert accuracy(algorithm, sampler()) < 0.45


def test_a_memory_that_is_never_written_learns_nothing(monkeypatch):
    monkeypatch.setattr("fsl_cli.algos.mann.written", lambda gates, read_weights, least: torch.zeros_like(read_weights))
    algorithm = sequences.trained(sequences.learner(MANN, training="episode", **FOUR_ROWS), 60)
    assert accuracy(algorithm, sampler()) < 0.48
