"""Transformations of single images against torchvision's functions, one image at a time with the same parameters."""

from __future__ import annotations

import math

import pytest
import torch

from fsl_cli.episodes.image_transforms import (
    BOX_NUMBERS,
    cropped,
    flipped,
    jittered,
    random_boxes,
    resized_crops,
    rotated,
)

functional = pytest.importorskip("torchvision.transforms.v2.functional")
IMAGES = torch.rand(60, 3, 12, 10, generator=torch.Generator().manual_seed(0))


def numbers(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


def each(function, *parameters: torch.Tensor, images: torch.Tensor = IMAGES) -> torch.Tensor:
    """torchvision's function applied to one image after the other."""
    rows = zip(images, *(values.tolist() for values in parameters), strict=True)
    return torch.stack([function(image, *row) for image, *row in rows])


def test_crops_have_black_around_the_image():
    top, left = (9 * numbers(2, 60)).long() - 4
    expected = each(lambda image, i, j: functional.crop(functional.pad(image, [4]), i + 4, j + 4, 12, 10), top, left)
    assert torch.equal(cropped(IMAGES, top, left), expected)
    far = torch.full((60,), 12)
    assert not cropped(IMAGES, far, far).any()


def test_flips_and_quarter_turns():
    which, turns = torch.arange(60) % 3 == 0, torch.arange(60) % 4
    flips = each(lambda image, flip: functional.horizontal_flip(image) if flip else image, which)
    assert torch.equal(flipped(IMAGES, which), flips)
    square = IMAGES[..., :10, :]
    expected = each(lambda image, turn: functional.rotate(image, 90.0 * turn), turns, images=square)
    torch.testing.assert_close(rotated(square, turns), expected)


def test_resized_crops():
    boxes = random_boxes(numbers(60, BOX_NUMBERS), 12, 10, 0.08)
    expected = each(lambda image, box: functional.resized_crop(image, *box, [12, 10]), boxes)
    torch.testing.assert_close(resized_crops(IMAGES, boxes), expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(resized_crops(IMAGES, torch.tensor([[0, 0, 12, 10]]).expand(60, 4)), IMAGES)


@pytest.mark.parametrize("channels", [1, 3])
def test_colours_change_in_the_given_order(channels):
    images = IMAGES[:, :channels]
    drawn = numbers(60, 6)
    factors, order = 2 * drawn[:, :3], drawn[:, 3:].argsort(1)
    adjust = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)

    def expected(image: torch.Tensor, factors: list[float], order: list[int]) -> torch.Tensor:
        for operation in order:
            image = adjust[operation](image, factors[operation])
        return image

    assert len({tuple(row) for row in order.tolist()}) == 6
    found = jittered(images, factors, order)
    torch.testing.assert_close(found, each(expected, factors, order, images=images), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(jittered(images, torch.ones(60, 3), order), images)


def test_boxes_are_distributed_as_torchvisions():
    """Of 84 x 84 images: areas, ratios and places have the mean and the deviation of those that torchvision draws."""
    from torchvision.transforms import RandomResizedCrop

    boxes = random_boxes(numbers(4000, BOX_NUMBERS), 84, 84, 0.08)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        image = torch.zeros(3, 84, 84)
        theirs = torch.tensor([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)])
    for measure in (
        lambda box: box[:, 2] * box[:, 3] / 84**2,
        lambda box: (box[:, 3] / box[:, 2]).log(),
        lambda box: box[:, 0],
        lambda box: box[:, 1],
    ):
        mine, other = (measure(each.double()) for each in (boxes, theirs))
        error = math.hypot(mine.std() / len(mine) ** 0.5, other.std() / len(other) ** 0.5)
        assert abs(mine.mean() - other.mean()) < 4 * error
        assert float(mine.std()) == pytest.approx(float(other.std()), rel=0.05)
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= 84).all()


def test_where_no_box_fits_the_largest_in_the_middle_is_taken():
    drawn = torch.full((1, BOX_NUMBERS), 0.999)  # of almost the whole area, and at most 4/3 as wide as high
    assert random_boxes(drawn, 20, 40, 0.99).tolist() == [[0, 6, 20, 27]]
    assert random_boxes(1 - drawn, 40, 20, 0.99).tolist() == [[6, 0, 27, 20]]
