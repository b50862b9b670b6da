"""Episodes are a pure function of (seed, split, index); their digest; tasks that do not fit the data."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from problems import numbered, striped_classes

from fsl_cli.episodes import Episodes, EpisodeSampler, Examples, Task
from fsl_cli.episodes.class_images import ClassImages
from fsl_cli.episodes.sampler import task_problems
from fsl_cli.errors import FslError, Problems

TASK = Task(ways=4, shots=2, queries=3)
SEED, SPLIT = 3, "train"


def sampler(source: ClassImages | None = None, split: str = SPLIT, task: Task = TASK, seed: int = SEED) -> EpisodeSampler:
    return EpisodeSampler(source or striped_classes(), split, task, seed)


def tensors(episodes: Episodes) -> list[torch.Tensor]:
    return [episodes.support.x, episodes.support.y, episodes.query.x, episodes.query.y]


def same(one: Episodes, other: Episodes) -> bool:
    return one.problem == other.problem and all(map(torch.equal, tensors(one), tensors(other)))


def glue(parts: list[Episodes]) -> Episodes:
    support_x, support_y, query_x, query_y = (torch.cat(each) for each in zip(*map(tensors, parts), strict=True))
    return Episodes(Examples(support_x, support_y), Examples(query_x, query_y), parts[0].problem)


# --- a pure function of (seed, split, index)


@pytest.mark.parametrize("size", [1, 3, 7, 20])
def test_an_episode_is_the_same_whatever_the_batch_it_is_drawn_in(size):
    whole = sampler().batch(0, 20)
    pieces = sampler()
    batches = [pieces.batch(first, min(size, 20 - first)) for first in range(0, 20, size)]
    assert same(glue(batches), whole)


def test_an_episode_is_the_same_whatever_the_offset_and_the_order_of_calls():
    whole, again = list(sampler().batch(0, 12).split(1)), sampler()
    for first in reversed(range(12)):
        assert same(again.batch(first, 1), whole[first])


def test_far_episodes_can_be_reached():
    pieces = list(sampler().batch(10**12, 4).split(1))
    assert same(sampler().batch(10**12 + 3, 1), pieces[3])
    assert not same(pieces[2], pieces[3])


def test_the_state_of_global_generators_does_not_matter_and_is_left_alone():
    first = sampler().batch(0, 3)
    torch.manual_seed(99)
    np.random.seed(99)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert same(sampler().batch(0, 3), first)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


FRESH_PROCESS = """
import json, sys
sys.path.insert(0, {tests!r})
from problems import striped_classes
from fsl_cli.episodes import EpisodeSampler, Examples, Task
drawn = EpisodeSampler(striped_classes(), {split!r}, Task(4, 2, 3), {seed}, device="cpu")
print(json.dumps([drawn.digest(50), drawn.indices(7, 3).images.tolist(), drawn.batch(7, 3).query.x.sum().item()]))
"""


def test_a_fresh_process_draws_the_same_episodes(warm, tmp_path):
    script = FRESH_PROCESS.format(tests=str(Path(__file__).parents[1]), split=SPLIT, seed=SEED)
    assert warm.start(script, module="-c", cwd=tmp_path, log=tmp_path / "log").wait() == 0
    here = sampler()
    drawn = here.indices(7, 3).images.tolist()
    assert json.loads((tmp_path / "log").read_text()) == [here.digest(50), drawn, here.batch(7, 3).query.x.sum().item()]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_device_does_not_matter(device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    there = EpisodeSampler(striped_classes(), SPLIT, TASK, SEED, torch.device(device)).batch(5, 4)
    assert {each.device.type for each in tensors(there)} == {device}
    assert same(there.to("cpu"), sampler().batch(5, 4))


def test_golden_episodes():
    """Values printed by these calls in the first version: if they change, versions no longer share episodes."""
    drawn = EpisodeSampler(numbered([20] * 50), "test", Task(5, 1, 1), 0).indices(0, 2)
    assert drawn.classes.tolist() == [[18, 2, 49, 1, 32], [15, 35, 42, 25, 27]]
    assert drawn.images.tolist() == [
        [[362, 367], [45, 44], [986, 992], [33, 37], [658, 645]],
        [[313, 305], [714, 707], [841, 845], [501, 512], [547, 558]],
    ]


@pytest.mark.parametrize(
    ("other_seed", "other_split"), [(SEED + 1, SPLIT), (SEED + 2**32, SPLIT), (SEED, "val"), (SEED, "test")], ids=str
)
def test_another_seed_or_split_draws_other_episodes(other_seed, other_split):
    one, other = sampler().indices(0, 200), sampler(split=other_split, seed=other_seed).indices(0, 200)
    # Two independent 4-class draws of 24 agree in all four labels with probability 1 / (24*23*22*21).
    assert not (one.classes == other.classes).all(-1).any()
    expected = 200 * TASK.ways / 24  # labels that agree by chance
    assert abs((one.classes == other.classes).sum() - expected) < 5 * np.sqrt(expected)


def test_episodes_of_one_stream_differ_from_each_other():
    classes = sampler().indices(0, 300).classes
    assert len({tuple(row) for row in classes}) > 295


# --- what an episode is


def test_shapes_types_and_range():
    episodes = sampler(numbered([9] * 6, size=5)).batch(2, 7)
    assert len(episodes) == 7
    assert episodes.ways == 4
    assert episodes.support.x.shape == (7, 8, 2, 5, 5)
    assert episodes.query.x.shape == (7, 12, 2, 5, 5)
    assert episodes.support.x.dtype == episodes.query.x.dtype == torch.float32
    assert episodes.support.y.dtype == episodes.query.y.dtype == torch.int64
    assert [each.shape for each in (episodes.support.y, episodes.query.y)] == [(7, 8), (7, 12)]


def test_pixels_are_scaled_to_0_to_1():
    ramp = ClassImages(torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1), np.full(16, 16), list("abcdefghijklmnop"))
    episodes = sampler(ramp).batch(0, 200)
    seen = torch.cat([episodes.support.x.flatten(), episodes.query.x.flatten()]).unique()
    assert torch.equal(seen, torch.arange(256) / 255)


def test_every_row_is_an_image_of_the_class_its_label_stands_for():
    drawn, source = sampler(numbered([9] * 24)), numbered([9] * 24)
    episodes, indices = drawn.batch(0, 50), drawn.indices(0, 50)
    for x, y, part in (
        (episodes.support.x, episodes.support.y, indices.images[:, :, : TASK.shots]),
        (episodes.query.x, episodes.query.y, indices.images[:, :, TASK.shots :]),
    ):
        label_of = (x[:, :, 0, 0, 0] * 255).round().long().numpy()
        assert np.array_equal(label_of, np.take_along_axis(indices.classes, y.numpy(), axis=1))
        expected = source.images[torch.from_numpy(part.reshape(50, -1))].float() / 255
        assert torch.equal(x, expected)


def test_each_label_has_its_shots_and_queries():
    episodes = sampler().batch(0, 5)
    for y, per_class in ((episodes.support.y, TASK.shots), (episodes.query.y, TASK.queries)):
        counted = torch.stack([(y == label).sum(1) for label in range(TASK.ways)])
        assert torch.equal(counted, torch.full((4, 5), per_class))
        assert y.min() == 0
        assert y.max() == TASK.ways - 1


def test_classes_and_images_do_not_repeat_and_support_is_disjoint_from_query():
    images = sampler(task=Task(24, 5, 7)).indices(0, 300)  # all classes and all images of each
    assert (np.sort(images.classes, 1) == np.arange(24)).all()
    flat = np.sort(images.images.reshape(300, -1), 1)
    assert (flat == np.arange(24 * 12)).all()
    fewer = sampler().indices(0, 300)
    assert all(len(set(row)) == 4 for row in fewer.classes.tolist())
    assert all(len(set(row)) == 20 for row in fewer.images.reshape(300, -1).tolist())


# --- the digest


def changed(source: ClassImages, **fields) -> ClassImages:
    return dataclasses.replace(source, **fields)


def test_digest_changes_with_whatever_changes_the_episodes():
    base = numbered([9] * 24, size=4)
    darker = base.images.clone()
    darker[-1] += 1  # one image, which is surely drawn in 100 episodes
    digests = {
        "base": sampler(base).digest(100),
        "count": sampler(base).digest(101),
        "seed": sampler(base, seed=SEED + 1).digest(100),
        "split": sampler(base, split="test").digest(100),
        "ways": sampler(base, task=Task(5, 2, 3)).digest(100),
        "shots for queries": sampler(base, task=Task(4, 3, 2)).digest(100),
        "queries": sampler(base, task=Task(4, 2, 4)).digest(100),
        "classes": sampler(numbered([9] * 25, size=4)).digest(100),
        "images": sampler(numbered([10] * 24, size=4)).digest(100),
        "size": sampler(numbered([9] * 24, size=5)).digest(100),
        "order of the classes": sampler(changed(base, names=base.names[::-1])).digest(100),
        "pixels": sampler(changed(base, images=darker)).digest(100),
    }
    assert len(set(digests.values())) == len(digests)
    assert all(len(each) == 64 for each in digests.values())


def test_digest_is_a_function_of_the_episodes_alone():
    one, other = sampler(), sampler()
    other.batch(0, 9)
    assert one.digest(100) == other.digest(100)


# --- bad tasks


@pytest.mark.parametrize(
    ("task", "messages"),
    [
        (Task(7, 1, 1), ["task.ways: 7 ways, but the val split has 6 classes (use at most 6)"]),
        (
            Task(6, 5, 5),
            [
                "task.shots, task.queries: 5 shots + 5 queries, but a class of the val split has 9 images"
                " (their sum may be at most 9)"
            ],
        ),
        (Task(7, 9, 1), ["task.ways: 7 ways", "task.shots, task.queries: 9 shots"]),
        (Task(6, 4, 5), []),
    ],
    ids=str,
)
def test_tasks_that_do_not_fit_the_data_are_refused(task, messages):
    source = numbered([9, 20, 11, 9, 9, 30])
    found = [str(problem) for problem in task_problems(source.counts, "val", task)]
    assert len(found) == len(messages)
    assert all(text.startswith(message) for text, message in zip(found, messages, strict=True))
    if messages:
        with pytest.raises(Problems) as error:
            EpisodeSampler(source, "val", task, 0)
        assert isinstance(error.value, FslError)
        assert len(error.value.problems) == len(messages)
    else:
        EpisodeSampler(source, "val", task, 0).batch(0, 1)


def test_a_split_without_classes_is_a_problem_too():
    assert len(task_problems(np.array([], dtype=np.int64), "val", Task(2, 1, 1))) == 2


# --- helpers of Episodes, and rotated classes


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_split_gives_the_same_episodes_in_order(size):
    episodes = sampler().batch(0, 5)
    parts = list(episodes.split(size))
    assert [len(part) for part in parts] == [min(size, 5 - first) for first in range(0, 5, size)]
    assert same(glue(parts), episodes)


def test_to_changes_the_type_of_the_images_only():
    episodes = sampler().batch(0, 2).to(dtype=torch.float64)
    assert episodes.support.x.dtype == episodes.query.x.dtype == torch.float64
    assert episodes.support.y.dtype == episodes.query.y.dtype == torch.int64


def test_rotations_are_classes_of_their_own():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (7, 1, 5, 5), dtype=np.uint8)
    source = ClassImages(torch.from_numpy(images), np.array([3, 4]), ["a", "b"])
    turned = source.with_rotations()
    assert len(turned) == 8
    assert list(turned.names) == [f"{name}@{angle}" for angle in (0, 90, 180, 270) for name in "ab"]
    assert turned.counts.tolist() == [3, 4] * 4
    for quarter in range(4):
        expected = np.stack([[np.rot90(image[0], quarter)] for image in images])
        assert np.array_equal(turned.gather(torch.arange(7 * quarter, 7 * (quarter + 1))).numpy(), expected)


def test_images_that_are_not_square_cannot_be_rotated():
    oblong = ClassImages(torch.zeros(2, 1, 4, 5, dtype=torch.uint8), np.array([2]), ["a"])
    with pytest.raises(ValueError, match="square"):
        oblong.with_rotations()


@pytest.mark.parametrize(
    "fields",
    [{"images": torch.zeros(2, 1, 4, 4)}, {"images": torch.zeros(2, 4, 4, dtype=torch.uint8)}, {"names": ["a", "b"]}],
    ids=["float", "three axes", "names"],
)
def test_class_images_that_do_not_fit_together_are_refused(fields):
    good = {"images": torch.zeros(2, 1, 4, 4, dtype=torch.uint8), "counts": np.array([2]), "names": ["a"]}
    ClassImages(**good)
    with pytest.raises(ValueError, match="images"):
        ClassImages(**(good | fields))
