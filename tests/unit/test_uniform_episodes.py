"""Classes, labels and images are drawn uniformly and independently: chi-square tests and enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from problems import numbered
from scipy import stats

from fsl_cli.episodes import EpisodeSampler, Task
from fsl_cli.episodes.sampler import draw_without_replacement

UNLIKELY = 1e-4  # p-value below which a fixed-seed chi-square test calls a distribution wrong
EPISODES = 6000


def uniform(counts: np.ndarray) -> float:
    """P-value of the hypothesis that all outcomes are equally likely."""
    return stats.chisquare(np.asarray(counts).ravel()).pvalue


@pytest.fixture(scope="module")
def many():
    return EpisodeSampler(numbered([7] * 9), "val", Task(3, 2, 2), 5).indices(0, EPISODES)


def test_every_class_is_equally_likely_at_every_label(many):
    for label in range(3):
        assert uniform(np.bincount(many.classes[:, label], minlength=9)) > UNLIKELY


def test_the_label_of_a_given_class_is_uniform(many):
    for chosen in range(9):
        _, labels = np.nonzero(many.classes == chosen)
        assert uniform(np.bincount(labels, minlength=3)) > UNLIKELY


def test_every_ordered_choice_of_classes_is_equally_likely(many):
    choices = dict.fromkeys(itertools.permutations(range(9), 3), 0)
    for row in many.classes.tolist():
        choices[tuple(row)] += 1
    assert len(choices) == 9 * 8 * 7
    assert uniform(list(choices.values())) > UNLIKELY


def test_every_image_is_equally_likely_in_support_and_in_query(many):
    inside = many.images % 7
    for part in (inside[..., :2], inside[..., 2:]):
        for column in range(2):
            assert uniform(np.bincount(part[..., column].ravel(), minlength=7)) > UNLIKELY


def test_every_split_of_the_images_into_support_and_query_is_equally_likely(many):
    pairs = {}
    for row in (many.images % 7).reshape(-1, 4).tolist():
        key = (tuple(sorted(row[:2])), tuple(sorted(row[2:])))
        pairs[key] = pairs.get(key, 0) + 1
    assert len(pairs) == 21 * 10
    assert uniform(list(pairs.values())) > UNLIKELY


def test_images_of_two_classes_of_an_episode_are_independent(many):
    first, second = (many.images[:, label, 0] % 7 for label in (0, 1))
    table = np.zeros((7, 7))
    np.add.at(table, (first, second), 1)
    assert stats.chi2_contingency(table).pvalue > UNLIKELY


def test_neighbouring_episodes_are_independent(many):
    table = np.zeros((9, 9))
    np.add.at(table, (many.classes[:-1, 0], many.classes[1:, 0]), 1)
    assert stats.chi2_contingency(table).pvalue > UNLIKELY


@pytest.mark.parametrize(("population", "size"), [(5, 2), (6, 3), (5, 5), (4, 1)])
def test_draw_without_replacement_makes_every_subset_equally_likely(population, size):
    drawn = draw_without_replacement(np.random.default_rng(1).random((20000, size)), population)
    subsets = dict.fromkeys(itertools.combinations(range(population), size), 0)
    for row in np.sort(drawn, 1).tolist():
        subsets[tuple(row)] += 1  # a KeyError is a repetition or a number out of range
    assert uniform(list(subsets.values())) > UNLIKELY if len(subsets) > 1 else True


def test_draw_without_replacement_is_exactly_uniform_over_a_grid():
    """Floyd's algorithm, every branch: on an even grid of 'random' numbers each subset of 5 comes equally often."""
    columns = [(np.arange(last + 1) + 0.5) / (last + 1) for last in (2, 3, 4)]
    grid = np.stack(np.meshgrid(*columns, indexing="ij"), -1).reshape(-1, 3)
    drawn = np.sort(draw_without_replacement(grid, 5), 1)
    _, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(grid) == 60
    assert counts.tolist() == [6] * 10


def test_draw_without_replacement_takes_a_population_for_each_row():
    population = np.array([[3], [50], [1000]])
    drawn = draw_without_replacement(np.random.default_rng(0).random((3, 400, 3)), np.broadcast_to(population, (3, 400)))
    assert drawn.min() == 0
    assert (drawn.max((1, 2)) < population[:, 0]).all()
    assert drawn[0].max() == 2
    assert drawn[2].max() > 900


def test_draw_without_replacement_stays_in_range_at_the_edge_of_the_unit_interval():
    largest = np.full((10000, 1), np.nextafter(1.0, 0.0))
    population = np.arange(1, 10001)
    assert np.array_equal(draw_without_replacement(largest, population)[:, 0], population - 1)


def test_unequal_class_sizes_are_respected():
    counts = [5, 40, 6, 13, 5, 80]
    drawn = EpisodeSampler(numbered(counts), "train", Task(3, 2, 3), 3)
    indices, offsets = drawn.indices(0, 3000), np.concatenate([[0], np.cumsum(counts)])
    first, end = offsets[indices.classes][..., None], offsets[indices.classes + 1][..., None]
    assert ((indices.images >= first) & (indices.images < end)).all()
    for label, size in enumerate(counts):  # and every image of every class comes equally often
        mine = indices.images[indices.classes == label] - offsets[label]
        assert uniform(np.bincount(mine.ravel(), minlength=size)) > UNLIKELY
