"""Episodes of several data sets: which set, whose episode, and what cannot be mixed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import numbered

from fsl_cli.datasets.dataset import ExampleClasses
from fsl_cli.datasets.mixture import Mixture
from fsl_cli.datasets.sinusoid import Sinusoid
from fsl_cli.episodes import Task
from fsl_cli.episodes.class_images import ClassImages
from fsl_cli.errors import FslError
from fsl_cli.evaluation import values_of_sets

TASK = Task(3, 1, 2)
WEIGHTS = [1.0, 2.0, 5.0]


class Numbered(ExampleClasses):
    """Classes of two-channel pictures, or of vectors, that say which class and example they are."""

    def __init__(self, name: str, classes: int, width: int | None = None) -> None:
        self.name, self.images = name, numbered(np.full(classes, 4))
        if width:
            vectors = torch.arange(4 * classes * width).view(-1, width).float()
            self.images = ClassImages(vectors, self.images.counts, self.images.names)

    def split(self, name):
        return self.images

    def counts(self, name):
        return self.images.counts

    @property
    def example_shape(self):
        return self.images.example_shape


def mixture(**options) -> Mixture:
    return Mixture({"a": Numbered("x", 5), "b": Numbered("y", 7), "c": Numbered("z", 4)}, weights=WEIGHTS, **options)


def test_sets_are_drawn_by_their_weights_independently_of_each_other():
    chosen = mixture().sampler("train", TASK, 0).set_of(0, 40_000)
    expected = np.array(WEIGHTS) / sum(WEIGHTS)
    assert np.bincount(chosen) / 40_000 == pytest.approx(expected, abs=0.01)
    pairs = np.bincount(3 * chosen[:-1] + chosen[1:]) / 39_999
    assert pairs == pytest.approx(np.outer(expected, expected).flatten(), abs=0.01)
    assert np.bincount(Mixture({"a": Numbered("x", 5), "b": Numbered("y", 7)}).sampler("val", TASK, 0).set_of(0, 4000)) == (
        pytest.approx([2000, 2000], abs=120)
    )


def test_an_episode_is_that_of_its_set_and_training_classes_have_numbers_of_their_own():
    whole, drawn = mixture(), mixture().sampler("train", TASK, 3)
    episodes, chosen = drawn.batch(10, 50), drawn.set_of(10, 50)
    assert set(chosen) == {0, 1, 2}
    for index, number in enumerate(chosen):
        label = "abc"[number]
        own = whole.sets[label].sampler("train", TASK, 3).batch(10 + index, 1)
        assert torch.equal(episodes.support.x[index], own.support.x[0])
        assert torch.equal(episodes.query.x[index], own.query.x[0])
        assert episodes.classes[index].tolist() == (own.classes[0] + [0, 5, 12][number]).tolist()
        assert episodes.seeds[index] == own.seeds[0]
    assert (whole.classes(), whole.most_ways()) == (16, 4)
    assert set(mixture().sampler("test", TASK, 3).batch(0, 9).classes.flatten().tolist()) == {-1}


@pytest.mark.parametrize("size", [1, 7])
def test_an_episode_does_not_depend_on_the_batch(size):
    drawn = mixture().sampler("train", TASK, 0)
    whole = drawn.batch(0, 20)
    for first in range(0, 20, size):
        part = drawn.batch(first, min(size, 20 - first))
        assert torch.equal(part.support.x, whole.support.x[first : first + size])
        assert torch.equal(part.classes, whole.classes[first : first + size])
    for split, seed in (("val", 0), ("train", 1)):
        assert not np.array_equal(mixture().sampler(split, TASK, seed).set_of(0, 20), drawn.set_of(0, 20))


def test_the_digest_tells_weights_and_sets_apart():
    found = mixture().sampler("test", TASK, 0).digest(10)
    assert found == mixture().sampler("test", TASK, 0).digest(10)
    larger = Mixture({**mixture().sets, "c": Numbered("z", 6)}, weights=WEIGHTS)
    others = [larger, Mixture(mixture().sets)]
    assert len({found, *(each.sampler("test", TASK, 0).digest(10) for each in others)}) == 3


def test_values_are_told_apart_by_set():
    drawn = mixture().sampler("test", TASK, 0)
    chosen = drawn.set_of(0, 30)
    found = values_of_sets(drawn, {"accuracy": 10.0 * chosen + np.arange(30) / 100})
    assert list(found) == ["a", "b", "c"]
    for number, label in enumerate(found):
        assert found[label]["accuracy"] == pytest.approx(10 * number + np.flatnonzero(chosen == number) / 100)
    assert values_of_sets(Numbered("x", 5).sampler("test", TASK, 0), {"accuracy": chosen}) == {}


@pytest.mark.parametrize(
    ("sets", "options", "message"),
    [
        ((Numbered("x", 5),), {}, "dataset.sets: 1 data sets are no mixture"),
        ((Numbered("x", 5), Sinusoid()), {}, "dataset.sets: b is regression, and only data sets with classes can be mixed"),
        ((Numbered("x", 5), Numbered("y", 5)), {"weights": [1.0]}, "dataset.weights: 1 weights for 2 data sets"),
        ((Numbered("x", 5), Numbered("y", 5, 8)), {}, r"dataset.sets: cannot be mixed: a \[2, 1, 1\], b \[8\]"),
        ((Numbered("x", 5, 6), Numbered("y", 5, 8)), {}, r"dataset.sets: cannot be mixed: a \[6\], b \[8\]"),
    ],
)
def test_what_cannot_be_mixed_is_one_line(sets, options, message):
    with pytest.raises(FslError, match=message):
        Mixture(dict(zip("abc", sets, strict=False)), **options).sets  # noqa: B018


def test_vectors_of_one_width_are_mixed_and_a_set_that_is_too_small_is_named():
    both = Mixture({"a": Numbered("x", 5, 8), "b": Numbered("y", 3, 8)})
    assert both.sampler("train", TASK, 0).batch(0, 5).support.x.shape == (5, 3, 8)
    (problem,) = both.task_problems({"train": Task(4, 1, 2)})
    assert str(problem) == "task.ways: b: 4 ways, but the train split has 3 classes (use at most 3)"


def test_numbers_of_words_are_not_mixed():
    class Words(Numbered):
        vocabulary = ("a", "b")

    (problem,) = Mixture({"a": Words("x", 5, 8), "b": Words("y", 5, 8)}).task_problems({"train": TASK})
    assert str(problem).startswith("dataset.sets: a, b: numbers of words, which mean other words in another set")
