"""Changes of training episodes: a function of the episode alone, of training only, and of images only."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from problems import changed, random_episodes, sampler

from fsl_cli.episodes import Episodes, Task
from fsl_cli.episodes.image_transforms import rotated
from fsl_cli.episodes.training_augmentation import AugmentedSampler, augment_problems, augmented
from fsl_cli.settings.schema import AugmentSettings

EVERYTHING = AugmentSettings(crop=2, resized_crop=0.2, flip=True, jitter=0.4, rotate_classes=True)
EACH = [
    AugmentSettings(crop=2),
    AugmentSettings(resized_crop=0.2),
    AugmentSettings(flip=True),
    AugmentSettings(jitter=0.4),
    AugmentSettings(rotate_classes=True),
    EVERYTHING,
]


def same(one: Episodes, other: Episodes) -> bool:
    pairs = zip((one.support, one.query), (other.support, other.query), strict=True)
    return all(torch.equal(a.x, b.x) and torch.equal(a.y, b.y) for a, b in pairs)


@pytest.mark.parametrize("settings", EACH, ids=str)
def test_an_episode_is_changed_alike_in_every_batch(settings):
    plain, changing = sampler(Task(3, 2, 2)), AugmentedSampler(sampler(Task(3, 2, 2)), settings)
    whole = changing.batch(0, 12)
    for index in range(12):
        alone = changing.batch(index, 1)
        assert torch.equal(alone.support.x[0], whole.support.x[index])
        assert torch.equal(alone.query.x[0], whole.query.x[index])
    before = plain.batch(0, 12)
    assert not torch.equal(before.support.x, whole.support.x)
    assert not torch.equal(before.query.x, whole.query.x)
    assert torch.equal(before.query.y, whole.query.y)
    assert 0 <= whole.query.x.min() < whole.query.x.max() <= 1
    assert changing.digest(5) == plain.digest(5)
    assert changing.task == plain.task


def test_without_changes_episodes_stay_as_they_are():
    episodes = random_episodes()
    assert augmented(episodes, AugmentSettings()) is episodes


def test_support_and_queries_and_episodes_are_changed_independently():
    images = torch.rand(1, 1, 1, 8, 8, generator=torch.Generator().manual_seed(2)).expand(200, 40, 1, 8, 8)
    labels = torch.zeros(200, 40, dtype=torch.int64)
    episodes = changed(
        random_episodes(), support_x=images, support_y=labels, query_x=images, query_y=labels, seeds=torch.arange(200)
    )
    found = augmented(episodes, AugmentSettings(flip=True))
    flips = [(each.x == images.flip(-1)).all((-1, -2, -3)).double() for each in (found.support, found.query)]
    assert abs(torch.stack(flips).mean() - 0.5) < 4 * 0.5 / 16000**0.5
    bound = 4 / 8000**0.5  # four standard errors of a correlation
    assert abs(torch.corrcoef(torch.stack([each.flatten() for each in flips]))[0, 1]) < bound
    assert abs(torch.corrcoef(torch.stack([flips[0][:-1].flatten(), flips[0][1:].flatten()]))[0, 1]) < bound


def test_all_images_of_a_class_are_rotated_alike_and_the_classes_of_an_episode_differently():
    plain = sampler(Task(3, 2, 2)).batch(0, 40)
    found = augmented(plain, AugmentSettings(rotate_classes=True))
    turns = torch.full((40, 3), -1)
    for before, after in ((plain.support, found.support), (plain.query, found.query)):
        candidates = torch.stack(
            [rotated(before.x.flatten(0, 1), torch.full((240,), turn)).view(before.x.shape) for turn in range(4)]
        )
        which = (candidates == after.x).all((-1, -2, -3)).int().argmax(0)  # [T, B]
        assert (candidates == after.x).all((-1, -2, -3)).any(0).all()
        for label in range(3):
            of_class = which[before.y == label].view(40, 2)
            assert (of_class[:, :1] == of_class).all()
            assert ((turns[:, label] == -1) | (turns[:, label] == of_class[:, 0])).all()
            turns[:, label] = of_class[:, 0]
    assert torch.bincount(turns.flatten(), minlength=4).min() > 12  # 30 are expected
    assert (turns != turns[:, :1]).any()


def test_padding_rows_stay_finite_and_do_not_change_the_others():
    plain = sampler(Task(3, 2, 2)).batch(0, 4)
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[:, 5] = False
    empty = torch.where(mask[..., None, None, None], plain.support.x, torch.zeros(()))
    padded = replace(plain, support=replace(plain.support, x=empty, mask=mask))
    found, expected = augmented(padded, EVERYTHING).support, augmented(plain, EVERYTHING).support
    assert found.x.isfinite().all()
    assert torch.equal(found.x[mask], expected.x[mask])
    assert torch.equal(found.mask, mask)


def test_what_cannot_be_changed_is_refused_in_one_line():
    def refused(shape: tuple[int, ...], settings: AugmentSettings = EVERYTHING, labels_classes: bool = False) -> list[str]:
        return [str(problem) for problem in augment_problems(settings, shape, labels_classes)]

    assert refused((3, 32, 32)) == refused((16,), AugmentSettings()) == []
    (line,) = refused((16,))
    assert line.startswith("train.augment: is not valid: the examples are no images")
    assert "only square images" in refused((3, 32, 16))[0]
    assert "pre-trained on the classes" in refused((3, 32, 32), labels_classes=True)[0]
    assert refused((3, 32, 32), AugmentSettings(flip=True), labels_classes=True) == []
    assert "train.augment.jitter: not for images of 2 channels" in refused((2, 32, 32))[0]
