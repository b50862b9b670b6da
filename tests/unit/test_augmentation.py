"""Augmented support sets against torch's own operations, and their independence of the batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from problems import changed, random_episodes, sampler

from fsl_cli.algos.maml import MAML
from fsl_cli.backbones.mlp import MLP
from fsl_cli.episodes import Task
from fsl_cli.episodes.augmentation import with_augmented_support

EPISODES = sampler(Task(3, 2, 2)).batch(0, 6)
KINDS = ["shift", "affine", "flip"]


@pytest.mark.parametrize("kind", KINDS)
def test_copies_are_appended_to_the_support_set_with_its_labels(kind):
    more = with_augmented_support(EPISODES, kind, 2)
    assert more.support.x.shape == (6, 18, 1, 12, 12)
    assert torch.equal(more.support.x[:, :6], EPISODES.support.x)
    for copy in (more.support.y[:, 6:12], more.support.y[:, 12:]):
        assert torch.equal(copy, EPISODES.support.y)
    assert torch.equal(more.query.x, EPISODES.query.x)
    assert not torch.equal(more.support.x[:, 6:12], EPISODES.support.x)
    assert not torch.equal(more.support.x[:, 6:12], more.support.x[:, 12:])
    assert 0 <= more.support.x.min() <= more.support.x.max() <= 1 + 1e-6


def test_none_is_the_same_object():
    assert with_augmented_support(EPISODES, "none", 3) is EPISODES


def test_flipped_copies_are_torchs_flips_of_about_half_of_the_images():
    images = with_augmented_support(EPISODES, "flip", 5).support.x[:, 6:].flatten(0, 1)
    originals = EPISODES.support.x.repeat(1, 5, 1, 1, 1).flatten(0, 1)
    pairs = list(zip(images, originals, strict=True))
    same = torch.tensor([torch.allclose(image, original, atol=1e-5) for image, original in pairs])
    flipped = torch.tensor([torch.allclose(image, original.flip(-1), atol=1e-5) for image, original in pairs])
    assert (same ^ flipped).all()
    assert 0.35 < flipped.float().mean() < 0.65


@pytest.mark.parametrize("kind", ["shift", "affine"])
def test_a_copy_is_moved_by_at_most_the_documented_amount(kind):
    """A small bright square moves by at most a tenth of the image, plus rotation and scaling about the centre."""
    images = torch.zeros(4, 50, 1, 40, 40)
    images[..., 19:21, 19:21] = 1.0
    episodes = changed(random_episodes(), support_x=images, support_y=torch.zeros(4, 50).long(), seeds=torch.arange(4))
    moved = with_augmented_support(episodes, kind, 1).support.x[:, 50:]
    mass = moved.sum((-1, -2, -3))
    assert ((mass > 3) & (mass < 5.2)).all()
    position = torch.arange(40.0) - 19.5
    x = (moved.sum((-2, -3)) * position).sum(-1) / mass
    y = (moved.sum((-1, -3)) * position).sum(-1) / mass
    for offset in (x, y):
        assert 3.2 < offset.abs().max() <= (4.01 if kind == "shift" else 4 * 2**0.5 / 0.9)
        assert abs(offset.mean()) < 0.7


def test_affine_copies_are_rotated_and_shifted_copies_are_not():
    images = torch.zeros(1, 40, 1, 41, 41)
    images[..., 20, :] = 1.0  # a horizontal line
    episodes = changed(random_episodes(), support_x=images, support_y=torch.zeros(1, 40).long(), seeds=torch.tensor([3]))

    def slopes(kind: str) -> torch.Tensor:
        moved = with_augmented_support(episodes, kind, 1).support.x[0, 40:, 0]
        rows = (moved * torch.arange(41.0)[:, None]).sum(1) / moved.sum(1).clamp(min=1e-6)
        return (rows[:, 25] - rows[:, 15]) / 10

    assert slopes("shift").abs().max() < 0.01
    assert 0.1 < slopes("affine").abs().max() < 0.28  # tan 15 degrees


@pytest.mark.parametrize("kind", KINDS)
def test_random_transformations_depend_on_the_episode_only(kind):
    whole = with_augmented_support(EPISODES, kind, 1).support.x
    parts = torch.cat([with_augmented_support(part, kind, 1).support.x for part in EPISODES.split(4)])
    torch.testing.assert_close(parts, whole)
    other = with_augmented_support(replace(EPISODES, seeds=EPISODES.seeds + 1), kind, 1).support.x
    assert not torch.equal(other, whole)


def test_maml_adapts_to_the_augmented_support_set():
    torch.manual_seed(0)
    plain = MAML(MLP((1, 12, 12), widths=[8]), 8, 3)
    augmented = MAML(MLP((1, 12, 12), widths=[8]), 8, 3, augment_support="affine", augment_copies=3)
    augmented.load_state_dict(plain.state_dict())
    expected = plain.predict(with_augmented_support(EPISODES, "affine", 3))
    torch.testing.assert_close(augmented.predict(EPISODES), expected)
    assert not torch.allclose(plain.predict(EPISODES), expected)
