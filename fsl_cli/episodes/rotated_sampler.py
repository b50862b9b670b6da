"""Episodes whose images are all rotated by one angle."""

from __future__ import annotations

import torch

from fsl_cli.episodes.class_images import ClassImages
from fsl_cli.episodes.randomness import episode_seeds, uniform
from fsl_cli.episodes.sampler import EpisodeIndices, EpisodeSampler
from fsl_cli.episodes.task import Task


class RotatedSampler(EpisodeSampler):
    """Draws the episodes of `EpisodeSampler`, each rotated by 0, 90, 180 or 270 degrees (Sung et al. 2018, the code).

    Rotations make no new classes: the classes of one episode are rotated alike, so it never has a class beside itself rotated.

    Args:
        source: the square images of the split, not rotated.
        split: name of the split.
        task: shape of the episodes.
        seed: any integer >= 0.
        device: device of the episodes.

    Raises:
        Problems: as `EpisodeSampler`.
    """

    images_are_independent = False

    def __init__(self, source: ClassImages, split: str, task: Task, seed: int, device: torch.device | str = "cpu") -> None:
        self._upright = EpisodeSampler(source, split, task, seed)
        super().__init__(source.with_rotations(), split, task, seed, device)

    def of_shape(self, task: Task) -> RotatedSampler:
        """A sampler of the same images for a task of another shape, with random numbers of its own."""
        other = super().of_shape(task)
        assert isinstance(other, RotatedSampler)
        other._upright = self._upright.of_shape(task)
        return other

    def indices(self, first: int, count: int) -> EpisodeIndices:
        """The classes, and the rotated images, of episodes ``first .. first+count-1``."""
        drawn = self._upright.indices(first, count)
        numbers = uniform(episode_seeds(int(self._key[0]), first, count), (1, 1), "rotation")
        turns = (4 * numbers).long().numpy()
        return EpisodeIndices(drawn.classes, drawn.images + turns * len(self._upright.source.images))
