"""Episodes whose classes are groups of classes: what they hold, and that they do not depend on the batch."""

from __future__ import annotations

import numpy as np
import pytest
from problems import numbered

from fsl_cli.algos.imp import IMP
from fsl_cli.backbones.mlp import MLP
from fsl_cli.episodes import Task
from fsl_cli.episodes.grouped_sampler import GroupedSampler, grouped_task_problems
from fsl_cli.errors import Problems

GROUPS = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 2])  # three groups of 3, 3 and 4 classes, mixed
COUNTS = [5, 6, 7, 8, 5, 6, 7, 8, 5, 6]
TASK = Task(2, 6, 9)  # of each of three classes, two support images and three queries


def sampler(task: Task = TASK, modes: int = 3, seed: int = 0) -> GroupedSampler:
    return GroupedSampler(numbered(COUNTS), GROUPS, modes, "train", task, seed)


def test_support_and_queries_are_different_images_of_the_same_classes_of_a_group():
    episodes, drawn = sampler().batch(0, 300), sampler().indices(0, 300)
    support, query = ((each.x[..., :2, 0, 0] * 255).round().long().numpy() for each in (episodes.support, episodes.query))
    classes_of = {0: set(), 1: set(), 2: set()}
    for episode in range(300):
        assert len(set(drawn.classes[episode])) == 2
        assert drawn.classes[episode].tolist() == episodes.classes[episode].tolist()
        for label, group in enumerate(drawn.classes[episode]):
            mine = support[episode][episodes.support.y[episode] == label]
            asked = query[episode][episodes.query.y[episode] == label]
            classes, times = np.unique(mine[:, 0], return_counts=True)
            assert times.tolist() == [2, 2, 2]
            assert set(GROUPS[classes]) == {group}
            assert [classes.tolist(), [3, 3, 3]] == [each.tolist() for each in np.unique(asked[:, 0], return_counts=True)]
            assert len({tuple(row) for row in [*mine, *asked]}) == 15
            classes_of[group] |= set(classes)
    assert classes_of == {group: set(np.flatnonzero(group == GROUPS)) for group in range(3)}


def test_every_group_class_and_image_is_equally_likely():
    drawn = sampler(Task(2, 1, 1), modes=1).indices(0, 6000)
    groups = np.bincount(drawn.classes.flatten()) / 12000
    assert groups == pytest.approx([1 / 3] * 3, abs=0.02)
    images = np.bincount(drawn.images.flatten(), minlength=sum(COUNTS)) / 24000
    expected = np.repeat([1 / 3 / np.bincount(GROUPS)[g] / n for g, n in zip(GROUPS, COUNTS, strict=True)], COUNTS)
    assert images == pytest.approx(expected, abs=0.006)


@pytest.mark.parametrize("size", [1, 7])
def test_an_episode_is_the_same_whatever_the_batch_it_is_drawn_in(size):
    whole = sampler().indices(0, 20)
    for first in range(0, 20, size):
        part = sampler().indices(first, min(size, 20 - first))
        assert np.array_equal(part.images, whole.images[first : first + size])
        assert np.array_equal(part.classes, whole.classes[first : first + size])
    assert not np.array_equal(sampler(seed=1).indices(0, 20).images, whole.images)


@pytest.mark.parametrize(
    ("task", "modes", "start"),
    [
        (Task(4, 6, 9), 3, "task.ways: 4 ways, but the train split has 3 groups of classes"),
        (Task(2, 8, 8), 4, "dataset: 4 classes of a group, but one of the train split has 3"),
        (Task(2, 6, 8), 3, "task.shots, task.queries: 6 shots and 8 queries cannot be shared evenly by the 3 classes"),
        (Task(2, 9, 9), 3, "task.shots, task.queries: 9 shots + 9 queries, but 3 classes of the train split have 15 images"),
    ],
)
def test_a_task_that_cannot_be_drawn_is_one_line(task, modes, start):
    (problem,) = grouped_task_problems(np.array(COUNTS), GROUPS, modes, "train", task)
    assert str(problem).startswith(start)
    with pytest.raises(Problems):
        sampler(task, modes)


def test_a_method_of_clusters_takes_them():
    algorithm = IMP(MLP((2, 1, 1), widths=[8]))
    assert algorithm.loss(sampler().batch(0, 2)).loss.isfinite()
