"""Random changes of the images of training episodes: those of the papers on colour photos.

They run on whole batches of episodes on the device. The random numbers depend on `Episodes.seeds` only, so that an episode is
changed in the same way in any batch, process and continued run. `fsl_cli.episodes.augmentation` is another thing: copies of the
support images for the inner loop, in tests too.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from fsl_cli.episodes.changed_sampler import ChangedSampler
from fsl_cli.episodes.episodes import Episodes, Examples
from fsl_cli.episodes.image_transforms import BOX_NUMBERS, cropped, flipped, jittered, random_boxes, resized_crops, rotated
from fsl_cli.episodes.randomness import uniform
from fsl_cli.episodes.sampler import Sampler
from fsl_cli.errors import FslError
from fsl_cli.settings.schema import AugmentSettings

NONE = AugmentSettings()


class AugmentedSampler(ChangedSampler):
    """The episodes of any sampler of images, with random changes; see ``train.augment``.

    Args:
        sampler: draws episodes of images with pixels in 0..1.
        settings: what is changed.
    """

    def __init__(self, sampler: Sampler, settings: AugmentSettings) -> None:
        super().__init__(sampler, lambda episodes: augmented(episodes, settings))


def augmented(episodes: Episodes, settings: AugmentSettings) -> Episodes:
    """Episodes of the same examples, changed at random: rotated, cropped, flipped and jittered, in this order."""
    if settings == NONE:
        return episodes
    turns = None
    if settings.rotate_classes:
        turns = (4 * uniform(episodes.seeds, (episodes.ways,), "rotation of classes")).long()
    return replace(
        episodes,
        support=_changed(episodes.support, "support", episodes.seeds, turns, settings),
        query=_changed(episodes.query, "query", episodes.seeds, turns, settings),
    )


def _changed(examples: Examples, part: str, seeds: Tensor, turns: Tensor | None, settings: AugmentSettings) -> Examples:
    """The examples of one part of the episodes; padding rows are changed like images, and stay finite."""
    images, rows = examples.x.flatten(0, 1), examples.x.shape[1]

    def numbers(purpose: str, count: int) -> Tensor:
        return uniform(seeds, (rows, count), f"{purpose} of {part}").flatten(0, 1)

    if turns is not None:
        images = rotated(images, turns.gather(1, examples.y).flatten())
    if settings.crop is not None:
        moves = (numbers("crop", 2) * (2 * settings.crop + 1)).long() - settings.crop
        images = cropped(images, *moves.unbind(1))
    if settings.resized_crop is not None:
        height, width = images.shape[-2:]
        images = resized_crops(images, random_boxes(numbers("box", BOX_NUMBERS), height, width, settings.resized_crop))
    if settings.flip:
        images = flipped(images, numbers("flip", 1)[:, 0] < 0.5)
    if settings.jitter is not None:
        factors = 1 + settings.jitter * (2 * numbers("jitter", 3) - 1)
        images = jittered(images, factors, numbers("order of jitter", 3).argsort(dim=1, stable=True))
    return replace(examples, x=images.view(examples.x.shape))


def augment_problems(settings: AugmentSettings, shape: tuple[int, ...], labels_classes: bool) -> list[FslError]:
    """The reasons why training images cannot be changed in this way; empty if they can be.

    Args:
        settings: what is to be changed.
        shape: of an example.
        labels_classes: whether the algorithm learns the classes of the training split themselves.
    """
    if settings == NONE:
        return []
    if len(shape) != 3:
        what = f"is not valid: the examples are no images, they have the shape {list(shape)}"
        return [FslError(what, where="train.augment", hint="leave it out")]
    found, where = [], "train.augment.rotate_classes"
    if settings.rotate_classes and shape[-1] != shape[-2]:
        found.append(FslError("only square images can be rotated into new classes", where=where, hint="use false"))
    if settings.rotate_classes and labels_classes:
        what = "rotated classes are new ones, and this algorithm is pre-trained on the classes of the data set"
        found.append(FslError(what, where=where, hint="use false"))
    if settings.jitter is not None and shape[0] not in (1, 3):
        found.append(FslError(f"not for images of {shape[0]} channels", where="train.augment.jitter", hint="use null"))
    return found
