"""Episodes within one group of classes: what they hold, and that they do not depend on the batch."""

from __future__ import annotations

import numpy as np
import pytest
from problems import numbered

from fsl_cli.episodes import Task
from fsl_cli.episodes.within_group_sampler import WithinGroupSampler, within_group_problems
from fsl_cli.errors import Problems

GROUPS = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 2, 3])  # groups of 3, 3, 4 and 1 classes, mixed
COUNTS = [5, 6, 7, 8, 5, 6, 7, 8, 5, 6, 9]


def sampler(ways: int = 2, seed: int = 0) -> WithinGroupSampler:
    return WithinGroupSampler(numbered(COUNTS), GROUPS, "train", Task(ways, 2, 3), seed)


def test_the_classes_of_an_episode_are_of_one_group_and_its_images_differ():
    episodes = sampler().batch(0, 200)
    for episode in range(200):
        assert len(set(GROUPS[episodes.classes[episode]])) == 1
        rows = [
            (int(label), *pixels)
            for half in (episodes.support, episodes.query)
            for label, pixels in zip(half.y[episode], (half.x[episode, :, :2, 0, 0] * 255).round().long().tolist(), strict=True)
        ]
        assert len(set(rows)) == 2 * 5
        for label, found, _ in rows:
            assert found == episodes.classes[episode, label]


@pytest.mark.parametrize(("ways", "drawn"), [(2, [0, 1, 2]), (4, [2])])
def test_each_group_with_enough_classes_is_equally_likely_and_each_class_and_image_in_it(ways: int, drawn: list[int]):
    indices = sampler(ways).indices(0, 6000)
    groups = np.bincount(GROUPS[indices.classes[:, 0]], minlength=4) / 6000
    assert groups == pytest.approx([1 / len(drawn) if group in drawn else 0 for group in range(4)], abs=0.02)
    classes = np.bincount(indices.classes.flatten(), minlength=11) / (6000 * ways)
    probability = [groups[group] / np.bincount(GROUPS)[group] for group in GROUPS]
    assert classes == pytest.approx(probability, abs=0.01)
    images = np.bincount(indices.images.flatten(), minlength=sum(COUNTS)) / indices.images.size
    assert images == pytest.approx(np.repeat(np.array(probability) / COUNTS, COUNTS), abs=0.004)
    labels = np.bincount(indices.classes[:, 0], minlength=11) / 6000  # the label does not tell the class
    assert labels == pytest.approx(probability, abs=0.02)


@pytest.mark.parametrize("size", [1, 7])
def test_an_episode_is_the_same_whatever_the_batch_it_is_drawn_in(size: int):
    whole = sampler().indices(0, 20)
    for first in range(0, 20, size):
        part = sampler().indices(first, min(size, 20 - first))
        assert np.array_equal(part.images, whole.images[first : first + size])
        assert np.array_equal(part.classes, whole.classes[first : first + size])
    assert not np.array_equal(sampler(seed=1).indices(0, 20).images, whole.images)


def test_a_task_that_cannot_be_drawn_is_one_line_for_each_setting():
    task = Task(5, 3, 3)
    ways, images = (str(each) for each in within_group_problems(np.array(COUNTS), GROUPS, "train", task))
    assert ways == "task.ways: 5 ways, but no group of classes of the train split has more than 4 (use at most 4)"
    assert images.startswith("task.shots, task.queries: 3 shots + 3 queries, but a class of the train split has 5 images")
    with pytest.raises(Problems):
        WithinGroupSampler(numbered(COUNTS), GROUPS, "train", task, 0)
