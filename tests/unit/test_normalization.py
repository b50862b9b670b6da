"""Normalised images against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import numbered, sampler

from fsl_cli.episodes import EpisodeSampler, Task
from fsl_cli.episodes import normalization as module
from fsl_cli.episodes.adapted_sampler import AdaptedEpisodeSampler, PixelAdaptation, adapted_sampler
from fsl_cli.episodes.mixture_sampler import MixtureSampler
from fsl_cli.episodes.normalization import Normalization, NormalizedSampler, measured, normalized
from fsl_cli.episodes.training_augmentation import AugmentedSampler
from fsl_cli.settings.schema import AugmentSettings

NUMBERS = Normalization((0.25,), (0.5,))


def test_the_numbers_of_the_data_are_numpys(monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 3, 7, 5), dtype=np.uint8)
    pixels[:, 2] = 51
    monkeypatch.setattr(module, "_BLOCK", 16)  # the last block is smaller
    found = measured(torch.from_numpy(pixels))
    np.testing.assert_allclose(found.mean, pixels.mean((0, 2, 3)) / 255, rtol=1e-12)
    np.testing.assert_allclose(found.std[:2], pixels[:, :2].std((0, 2, 3)) / 255, rtol=1e-12)
    assert found.std[2] == 1.0  # it has no variance to divide by
    images = found(torch.from_numpy(pixels).double() / 255)
    np.testing.assert_allclose(images.mean((0, 2, 3)), 0, atol=1e-12)
    np.testing.assert_allclose(images.std((0, 2, 3), correction=0)[:2], 1, rtol=1e-12)
    torch.testing.assert_close(found.undone(images), torch.from_numpy(pixels).double() / 255)
    assert Normalization.from_dict(found.as_dict()) == found


def test_episodes_and_single_images_are_normalised_and_the_digest_is_that_of_the_pixels():
    plain, changed = sampler(Task(3, 2, 2)), normalized(sampler(Task(3, 2, 2)), NUMBERS)
    assert isinstance(changed, EpisodeSampler)  # so that evaluation embeds an image once
    for before, after in zip(*((each.batch(3, 4).support, each.batch(3, 4).query) for each in (plain, changed)), strict=True):
        torch.testing.assert_close(after.x, (before.x - 0.25) / 0.5)
    rows = torch.arange(5)
    torch.testing.assert_close(changed.images(rows), (plain.images(rows) - 0.25) / 0.5)
    assert changed.digest(9) == plain.digest(9)
    assert normalized(plain, None) is plain


def test_other_samplers_are_wrapped_and_images_are_augmented_first():
    jitter = AugmentedSampler(sampler(Task(3, 2, 2)), AugmentSettings(jitter=0.4))
    changed = normalized(jitter, NUMBERS)
    assert isinstance(changed, NormalizedSampler)
    torch.testing.assert_close(changed.batch(2, 3).query.x, (jitter.batch(2, 3).query.x - 0.25) / 0.5)
    assert (changed.task, changed.problem, changed.digest(4)) == (jitter.task, jitter.problem, jitter.digest(4))


def test_channels_have_numbers_of_their_own():
    images = numbered([3, 3], size=2).images.float() / 255
    found = Normalization((0.0, 0.5), (1.0, 0.1))(images)
    assert torch.equal(found[:, 0], images[:, 0])
    assert found[:, 1].numpy() == pytest.approx((images[:, 1].numpy() - 0.5) / 0.1)


def test_adapted_pictures_and_those_of_a_mixture_are_normalised_last():
    def mixture() -> MixtureSampler:
        small = PixelAdaptation((1, 12, 12), (3, 8, 8))
        samplers = {name: adapted_sampler(sampler(Task(3, 2, 2), seed=seed), small) for seed, name in enumerate("ab")}
        return MixtureSampler(samplers, [1, 1], "test", 0)

    colours = Normalization((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    plain, changed = mixture(), normalized(mixture(), colours)
    assert isinstance(changed, MixtureSampler)  # whose sets have scores of their own
    torch.testing.assert_close(changed.batch(0, 9).query.x, colours(plain.batch(0, 9).query.x))
    alone = adapted_sampler(sampler(Task(3, 2, 2)), PixelAdaptation((1, 12, 12), (3, 8, 8)))
    assert isinstance(alone, AdaptedEpisodeSampler)
    before = alone.images(torch.arange(4))
    normalized(alone, colours)
    torch.testing.assert_close(alone.images(torch.arange(4)), colours(before))
