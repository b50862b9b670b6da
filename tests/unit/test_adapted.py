"""Pictures adapted to another shape, against Pillow and torchvision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from problems import TinyNet
from small_training import CPU
from torchvision.transforms import v2

from fsl_cli.algos.protonet import ProtoNet
from fsl_cli.datasets.adapted import adapted_to
from fsl_cli.datasets.dataset import ImageClasses
from fsl_cli.episodes import Task
from fsl_cli.episodes.adapted_sampler import AdaptedSampler, PixelAdaptation, adapted_sampler
from fsl_cli.episodes.class_images import ClassImages
from fsl_cli.errors import FslError
from fsl_cli.evaluation import evaluate

TASK = Task(3, 1, 2)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def adapted(pixels: np.ndarray, channels: int, size: int) -> np.ndarray:
    change = PixelAdaptation(pixels.shape, (channels, size, size))
    return change(torch.from_numpy(pixels)[None].float() / 255)[0].numpy() * 255


@pytest.mark.parametrize("size", [13, 28, 84])
@pytest.mark.parametrize("shape", [(28, 28), (40, 31)])
def test_the_size_changes_as_in_pillow(shape, size):
    image = noise(*shape)
    expected = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
    found = adapted(image[None], 1, size)[0]
    assert np.abs(found - expected).max() <= 1.01  # Pillow rounds after each of two passes


def test_it_is_the_resizing_of_torchvision():
    image = torch.from_numpy(noise(3, 84, 60)).float() / 255
    found = PixelAdaptation((3, 84, 60), (3, 28, 28))(image[None])[0]
    torch.testing.assert_close(found, v2.functional.resize(image, [28, 28], antialias=True))


def test_colours_become_the_grey_of_pillow_and_grey_is_repeated():
    image = noise(20, 20, 3)
    expected = np.asarray(Image.fromarray(image).convert("L"))
    assert np.abs(adapted(image.transpose(2, 0, 1), 1, 20)[0] - expected).max() <= 0.51
    grey = noise(1, 20, 20)
    assert np.array_equal(adapted(grey, 3, 20).round(), np.repeat(grey, 3, 0))


class Noise(ImageClasses):
    name = "noise"

    def __init__(self, *shape: int) -> None:
        self.shape = shape

    @property
    def image_shape(self):
        return self.shape

    def split(self, name):
        return ClassImages(torch.from_numpy(noise(40, *self.image_shape)), np.full(5, 8), list("abcde"))

    def counts(self, name):
        return np.full(5, 8)


def test_only_pictures_are_adapted_and_only_where_they_differ():
    colour = Noise(3, 10, 10)
    assert adapted_to(colour, (3, 10, 10), "the network") is colour
    grey = adapted_to(colour, (1, 6, 6), "the network")
    assert grey.example_shape == (1, 6, 6)
    assert grey.adaptations() == {"noise": "3x10x10 as 1x6x6: luminance, resized (bilinear, antialiased)"}
    assert grey.sampler("test", TASK, 0).batch(0, 2).query.x.shape == (2, 6, 1, 6, 6)
    for shape in ((4, 10, 10), (16,)):
        with pytest.raises(FslError, match=r"dataset: an example of noise has the shape \[3, 10, 10\], and the network takes"):
            adapted_to(colour, shape, "the network")


def test_episodes_are_those_of_the_data_set_and_the_digest_says_that_they_are_adapted():
    change, original = PixelAdaptation((3, 10, 10), (1, 10, 10)), Noise(3, 10, 10).sampler("test", TASK, 0)
    found = adapted_sampler(original, change)
    plain, grey = original.batch(3, 2), found.batch(3, 2)
    assert torch.equal(grey.classes, plain.classes)
    assert torch.equal(grey.seeds, plain.seeds)
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    torch.testing.assert_close(grey.support.x, (plain.support.x * weights).sum(-3, keepdim=True))
    assert found.digest(5) not in (original.digest(5), found.digest(6))
    assert found.digest(5) == adapted_sampler(Noise(3, 10, 10).sampler("test", TASK, 0), change).digest(5)


def test_images_are_embedded_once_and_the_scores_are_those_of_whole_episodes():
    torch.manual_seed(0)
    algorithm, seen = ProtoNet(TinyNet()), []
    embed = algorithm.embed
    algorithm.embed = lambda images: (seen.append(len(images)), embed(images))[1]  # type: ignore[method-assign]
    change, original = PixelAdaptation((3, 10, 10), (1, 6, 6)), Noise(3, 10, 10).sampler("test", TASK, 0)
    once = evaluate(algorithm, adapted_sampler(original, change), 30, CPU)
    assert sum(seen) == 40
    whole = evaluate(algorithm, AdaptedSampler(original, change), 30, CPU)
    assert np.array_equal(once["accuracy"], whole["accuracy"])
    np.testing.assert_allclose(once["loss"], whole["loss"], rtol=1e-5)
