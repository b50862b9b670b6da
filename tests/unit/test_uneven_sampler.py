"""Sizes of episodes that are drawn: their distribution, that an episode depends on its number only, and what is in it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from problems import numbered, random_episodes
from scipy import stats
from small_training import CPU, train_settings

from fsl_cli.algos.nearest import Nearest
from fsl_cli.algos.protonet import ProtoNet
from fsl_cli.backbones.mlp import MLP
from fsl_cli.datasets.sinusoid import Sinusoid
from fsl_cli.episodes import Episodes, EpisodeSampler, Task
from fsl_cli.episodes.class_sizes import dirichlet_sizes, in_range, meta_dataset_sizes
from fsl_cli.episodes.episodes import joined
from fsl_cli.episodes.grouped_sampler import GroupedSampler, grouped_task_problems
from fsl_cli.episodes.rotated_sampler import RotatedSampler
from fsl_cli.episodes.sampler import task_problems
from fsl_cli.episodes.uneven_sampler import UnevenSampler, batches, order
from fsl_cli.errors import FslError
from fsl_cli.evaluation import evaluate
from fsl_cli.settings.sizes import Range
from fsl_cli.training import Training

UNLIKELY = 1e-6
COUNTS = [20, 14, 31, 25, 16, 22, 40, 18, 19, 28, 17, 23]
EPISODE = Task.drawn(Range(3, 6), Range(1, 4), Range(2, 5))
CLASS = Task.drawn(Range(3, 6), Range(1, 4), 3, shots_per="class")
DIRICHLET = Task.drawn(3, Range(1, 2), 4, query_dirichlet=2.0)
META = Task.drawn(Range(5, 50), 100, 10, sampling="meta_dataset")
ALL = [EPISODE, CLASS, DIRICHLET, META]


def sampler(task: Task, split: str = "train", seed: int = 0, counts: list[int] | None = None) -> UnevenSampler:
    even = EpisodeSampler(numbered(counts or COUNTS), split, task.smallest, seed)
    return UnevenSampler(even, task, split, seed)


def alone(of: UnevenSampler, count: int, first: int = 0) -> list[Episodes]:
    return [of.batch(number, 1) for number in range(first, first + count)]


def sizes(episode: Episodes) -> list[list[int]]:
    """Shots and queries of the classes."""
    return [each.y[0].bincount(minlength=episode.ways).tolist() for each in (episode.support, episode.query)]


def rows(episode: Episodes) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs and labels of support and queries of one episode, without padding."""
    return [(each.x[each.real], each.y[each.real]) for each in (episode.support, episode.query)]


def same(one: Episodes, other: Episodes) -> bool:
    pairs = zip(rows(one), rows(other), strict=True)
    equal = all(torch.equal(a, b) for x, y in pairs for a, b in zip(x, y, strict=True))
    return equal and torch.equal(one.classes, other.classes) and torch.equal(one.seeds, other.seeds)


# --- a pure function of (seed, split, number)


@pytest.mark.parametrize("task", ALL, ids=str)
def test_an_episode_is_the_same_in_any_batch_and_batches_have_one_shape(task):
    expected = alone(sampler(task), 24)
    for first, count in ((0, 24), (5, 7), (23, 1)):
        again = sampler(task)
        numbers = order(again, first, count)
        assert sorted(numbers) == list(range(first, first + count))
        drawn = list(batches(again, numbers))
        found = [each for episodes in drawn for each in episodes.split(1)]
        assert all(same(each, expected[number]) for each, number in zip(found, numbers, strict=True))
        if task.balanced:
            assert not any(each.masked for each in drawn)
            shapes = [(each.ways, each.support.y.shape[1], each.query.y.shape[1]) for each in drawn]
            assert len(set(shapes)) == len(shapes)
        else:
            assert count < 24 or any(each.masked for each in drawn) is (task != DIRICHLET)  # whose totals are the same


@pytest.mark.parametrize("task", ALL, ids=str)
def test_another_seed_or_split_draws_other_sizes_and_episodes(task):
    one = alone(sampler(task), 12)
    for other in (sampler(task, seed=1), sampler(task, split="test")):
        again = alone(other, 12)
        assert not any(same(*pair) for pair in zip(one, again, strict=True))
        assert [sizes(each) for each in one] != [sizes(each) for each in again]
        assert other.digest(3) != sampler(task).digest(3)


def test_even_tasks_have_no_drawing_and_episodes_of_one_shape_are_not_those_of_another():
    assert Task.drawn(5, 1, 15) == Task(5, 1, 15)
    assert Task.drawn(Range(3, 6), 1, 2).smallest == Task(3, 1, 2)
    even = EpisodeSampler(numbered(COUNTS), "train", Task(3, 1, 2), 0)
    assert list(order(even, 4, 3)) == [4, 5, 6]
    (drawn,) = batches(even, order(even, 4, 3))
    assert torch.equal(drawn.support.x, even.batch(4, 3).support.x)
    numbers = [np.unique(even.of_shape(Task(3, 1, queries)).indices(0, 40).classes, axis=0) for queries in (2, 3)]
    assert not np.array_equal(*numbers)


def test_the_digest_depends_on_the_episodes_and_on_the_pixels():
    digests = {sampler(task).digest(5) for task in ALL} | {sampler(EPISODE).digest(6), sampler(EPISODE, seed=1).digest(5)}
    digests.add(sampler(EPISODE, counts=[each + 1 for each in COUNTS]).digest(5))
    assert len(digests) == 7
    assert sampler(EPISODE).digest(5) in digests
    source = numbered(COUNTS)
    source.images[:] = 255 - source.images
    assert UnevenSampler(EpisodeSampler(source, "train", EPISODE.smallest, 0), EPISODE, "train", 0).digest(5) not in digests


# --- what is drawn


@pytest.mark.parametrize("task", ALL, ids=str)
def test_rows_are_different_images_of_the_class_that_the_label_stands_for(task):
    for episode in alone(sampler(task), 40):
        assert not episode.masked
        images = [(x[:, :, 0, 0] * 255).round().long() for x, _ in rows(episode)]
        for image, (_, labels) in zip(images, rows(episode), strict=True):
            assert torch.equal(image[:, 0], episode.classes[0][labels])
        assert len(torch.cat(images).unique(dim=0)) == sum(map(len, images))
        assert episode.classes.unique().numel() == episode.ways
        assert min(sizes(episode)[0]) >= 1


def test_sizes_of_an_episode_are_uniform_over_their_ranges():
    shapes = sampler(EPISODE).shapes(range(6000))
    for name, (low, high) in {"ways": (3, 6), "shots": (1, 4), "queries": (2, 5)}.items():
        counted = np.bincount([getattr(each, name) for each in shapes])[low:]
        assert len(counted) == high - low + 1
        assert stats.chisquare(counted).pvalue > UNLIKELY
    pairs = np.unique([(each.ways, each.shots) for each in shapes], axis=0, return_counts=True)[1]
    assert stats.chisquare(pairs).pvalue > UNLIKELY  # independent of each other


def test_every_class_draws_its_own_shots_and_every_image_is_equally_likely():
    of = sampler(Task.drawn(4, Range(1, 4), 3, shots_per="class"))
    (drawn,) = (list(each.split(1)) for each in batches(of, range(1500)))
    shots = np.array([rows(each)[0][1].bincount(minlength=4).tolist() for each in drawn])
    assert stats.chisquare(np.bincount(shots.ravel())[1:]).pvalue > UNLIKELY
    assert len(np.unique(shots, axis=0)) > 200
    assert all(rows(each)[1][1].bincount().tolist() == [3] * 4 for each in drawn)
    for part in (0, 1):
        found = torch.cat([(rows(each)[part][0][:, :, 0, 0] * 255).round().long() for each in drawn]).numpy()
        for number, count in enumerate(COUNTS):
            of_class = np.bincount(found[found[:, 0] == number, 1], minlength=count)
            assert stats.chisquare(of_class).pvalue > UNLIKELY


def test_in_range_has_both_ends():
    assert in_range(np.array([0.0, 0.249, 0.25, np.nextafter(1, 0)]), 3, 6).tolist() == [3, 3, 4, 6]


# --- Dirichlet


def test_dirichlet_proportions_are_those_of_numpys_generator():
    sizes = dirichlet_sizes(np.random.default_rng(0).random((4000, 5)), 2.0, 100_000) / 100_000
    expected = np.random.default_rng(1).dirichlet([2.0] * 5, 4000)
    for column in range(5):
        assert stats.ks_2samp(sizes[:, column], expected[:, column]).pvalue > UNLIKELY
    assert np.cov(sizes.T) == pytest.approx(np.cov(expected.T), abs=0.003)


def literal_rounding(shares: np.ndarray, total: int) -> np.ndarray:
    """The rounding of Veilleux et al.'s description: to the nearest, then those closest to one half until the sum fits."""
    rounded = np.round(shares * total)
    distance = np.abs(shares * total % 1 - 0.5)
    while rounded.sum() != total:
        up = rounded.sum() < total
        candidates = np.flatnonzero((rounded < shares * total) if up else (rounded > shares * total))
        index = candidates[np.argmin(distance[candidates])]
        rounded[index] += 1 if up else -1
    return rounded.astype(int)


def test_whole_numbers_are_the_nearest_that_add_up():
    numbers = np.random.default_rng(0).random((500, 6))
    gamma = stats.gamma.ppf(numbers, 0.7)
    found = dirichlet_sizes(numbers, 0.7, 75)
    assert (found.sum(1) == 75).all()
    assert (found >= 0).all()
    for row, each in zip(gamma, found, strict=True):
        assert each.tolist() == literal_rounding(row / row.sum(), 75).tolist()


def test_a_small_concentration_leaves_classes_without_queries_and_never_all():
    found = np.array([sizes(each)[1] for each in alone(sampler(Task.drawn(3, 1, 4, query_dirichlet=0.01)), 60)])
    assert (found.sum(1) == 12).all()
    assert (found == 0).sum() > 80
    assert np.isfinite(dirichlet_sizes(np.zeros((1, 3)), 1e-6, 12)).all()


# --- Meta-Dataset


def literal_meta_dataset(beta: float, alphas: list[float], counts: list[int], most_queries: int = 10) -> tuple[list[int], int]:
    """Triantafillou et al. 2020, section 3.2, one class after the other; beta in (0, 1], alphas in log(0.5) .. log(2)."""
    queries = min(most_queries, min(math.floor(0.5 * count) for count in counts))
    size = min(500, sum(math.ceil(beta * min(100, count - queries)) for count in counts))
    weights = [math.exp(alpha) * count for alpha, count in zip(alphas, counts, strict=True)]
    shots = []
    for weight, count in zip(weights, counts, strict=True):
        share = weight / sum(weights)
        shots.append(min(math.floor(share * (size - len(counts))) + 1, count - queries))
    return shots, queries


def test_sizes_of_meta_dataset_are_those_of_the_paper_the_slow_way():
    random = np.random.default_rng(0)
    capped = 0
    for _ in range(300):
        counts = random.integers(2, random.choice([8, 60, 900]), random.integers(5, 51))
        beta, alpha = random.random(1), random.random((1, len(counts)))
        shots, queries = meta_dataset_sizes(beta, alpha, counts[None], 100, 10)
        alphas = math.log(0.5) + alpha[0] * (math.log(2) - math.log(0.5))
        expected, asked = literal_meta_dataset(float(beta[0]), alphas.tolist(), counts.tolist())
        assert shots[0].tolist() == expected
        assert queries[0].tolist() == [asked] * len(counts)
        capped += sum(expected) > 400
    assert capped > 20


def test_episodes_of_meta_dataset_have_the_papers_ranges():
    counts = np.random.default_rng(1).integers(10, 250, 70).tolist()
    drawn = sampler(META, counts=counts)
    ways = [each.ways for each in drawn.shapes(range(3000))]
    assert stats.chisquare(np.bincount(ways)[5:]).pvalue > UNLIKELY
    assert max(ways) == 50
    for episode in alone(drawn, 40):
        shots, queries = sizes(episode)
        of_classes = [counts[each] for each in episode.classes[0].tolist()]
        assert len(set(queries)) == 1
        assert queries[0] == min(10, min(of_classes) // 2)
        assert sum(shots) <= 500
        assert all(shot + query <= count for shot, query, count in zip(shots, queries, of_classes, strict=True))
    assert max(each.ways for each in sampler(META).shapes(range(300))) == len(COUNTS)  # no more ways than there are classes


# --- what cannot be drawn


@pytest.mark.parametrize(
    ("task", "line"),
    [
        (EPISODE.with_sizes(ways=Range(3, 13)), "task.ways: 13 ways, but the val split has 12 classes (use at most 12)"),
        (
            EPISODE.with_sizes(shots=Range(1, 12)),
            "task.shots, task.queries: 12 shots + 5 queries, but a class of the val split",
        ),
        (DIRICHLET, None),
        (
            DIRICHLET.with_sizes(queries=5),
            "task.shots, task.queries: 2 shots + 15 queries, which may all be of one class, but a class of the val split",
        ),
        (META, None),
        (META.with_sizes(ways=Range(13, 50)), "task.ways: 13 ways, but the val split has 12 classes"),
        (
            Task.drawn(5, Range(1, 9), 1).with_images(15),
            "task.shots, task.queries: 15 images of a class, but a class of the val",
        ),
        (Task.drawn(5, Range(1, 9), 1).with_images(14), None),
    ],
    ids=str,
)
def test_the_largest_sizes_must_be_there(task, line):
    found = task_problems(np.array(COUNTS), "val", task)
    assert [str(each).startswith(line) for each in found] == ([True] if line else [])


def test_samplers_of_other_kinds_draw_ranges_and_refuse_unequal_classes():
    rotated = RotatedSampler(numbered(COUNTS), "train", EPISODE.smallest, 0)
    found = UnevenSampler(rotated, EPISODE, "train", 0)
    assert {each.ways for each in alone(found, 30)} == {3, 4, 5, 6}
    assert len({(each.support.y.shape[1] // each.ways) for each in alone(found, 30)}) == 4
    groups = np.repeat([0, 1, 2, 3, 4, 5], 2)
    grouped = GroupedSampler(numbered(COUNTS), groups, 2, "train", Task(3, 2, 2), 0)
    ways = UnevenSampler(grouped, Task.drawn(Range(3, 6), 2, 2), "train", 0)
    assert {each.ways for each in alone(ways, 30)} == {3, 4, 5, 6}
    for even in (rotated, grouped):
        for task in (CLASS, DIRICHLET, META):
            with pytest.raises(FslError, match="cannot have different numbers of images with these options of the data set"):
                UnevenSampler(even, task, "train", 0)
    for task in (CLASS, EPISODE):
        (problem,) = grouped_task_problems(np.array(COUNTS), groups, 2, "train", task)
        assert "share as many shots and queries in every episode" in str(problem)


def test_a_sampler_that_cannot_be_given_another_shape_refuses():
    class Fixed:
        task, problem = Task(3, 1, 1), random_episodes().problem

        def batch(self, first: int, count: int) -> Episodes:
            raise AssertionError

        def digest(self, count: int) -> str:
            raise AssertionError

    with pytest.raises(FslError, match="its episodes cannot be of different sizes"):
        UnevenSampler(Fixed(), EPISODE, "train", 0)


def test_regression_has_uneven_shots():
    task = Task.drawn(1, Range(5, 8), 10)
    found = UnevenSampler(Sinusoid().sampler("train", task.smallest, 0), task, "train", 0)
    assert {each.support.x.shape[1] for each in alone(found, 30)} == {5, 6, 7, 8}
    assert {each.query.x.shape[1] for each in alone(found, 30)} == {10}
    assert found.digest(4) != found.digest(5)
    with pytest.raises(FslError, match="differ in size"):
        found.batch(0, 20)
    imbalanced = Task.drawn(1, 5, 10, query_dirichlet=1.0)
    with pytest.raises(FslError, match="its episodes cannot be of different sizes"):
        UnevenSampler(Sinusoid().sampler("train", Task(1, 5, 10), 0), imbalanced, "train", 0)


def test_a_number_of_images_leaves_the_queries_to_what_the_shots_are_not():
    task = Task.drawn(4, Range(1, 9), 5).with_images(10)
    assert (task.shots, task.queries, task.smallest) == (9, 9, Task(4, 1, 1))
    found = alone(sampler(task), 60)
    assert {(each.support.y.shape[1] // 4, each.query.y.shape[1] // 4) for each in found} == {(k, 10 - k) for k in range(1, 10)}
    assert Task(4, 3, 5).with_images(10) == Task(4, 3, 7)


# --- training and evaluation


@pytest.mark.parametrize("task", ALL, ids=str)
def test_evaluation_gives_every_episode_the_score_it_has_alone(task):
    algorithm = Nearest(MLP((2, 1, 1), widths=[4])).eval()
    of = sampler(task)
    scores = evaluate(algorithm, of, 20, CPU)
    expected = [algorithm.score(each) for each in alone(of, 20)]
    assert scores["accuracy"] == pytest.approx([float(each["accuracy"]) for each in expected])
    assert scores["loss"] == pytest.approx([float(each["loss"]) for each in expected], rel=1e-4)
    assert len(set(scores["loss"])) > 15
    plain = evaluate(algorithm, of, 20, CPU, curves=True)
    assert np.array_equal(plain["loss"], scores["loss"])


@pytest.mark.parametrize("task", ALL, ids=str)
def test_a_step_has_the_mean_loss_of_its_episodes_whatever_their_sizes(task):
    torch.manual_seed(0)
    algorithm = ProtoNet(MLP((2, 1, 1), widths=[4], batch_norm=False))
    of = sampler(task)
    losses = [algorithm.loss(of.batch(number, 1)).loss for number in range(6, 12)]
    expected = torch.autograd.grad(torch.stack(losses).mean(), list(algorithm.parameters()))
    training = Training(algorithm, torch.optim.SGD(algorithm.parameters(), 0.0), of, train_settings(meta_batch=6), CPU)
    training.progress.iteration = 1
    training.step()
    for parameter, gradient in zip(algorithm.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_joined_episodes_have_padding_where_they_are_shorter():
    one, other = random_episodes(shots=2, tasks=1), random_episodes(shots=3, tasks=2)
    both = joined([one, other])
    assert both.support.x.shape[:2] == (3, 9)
    assert both.support.real.sum(1).tolist() == [6, 9, 9]
    assert both.query.mask is None
    assert torch.equal(both.support.x[0, :6], one.support.x[0])
    assert joined([one]) is one
