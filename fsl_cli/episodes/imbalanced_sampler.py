"""Episodes whose classes have different numbers of shots or queries."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fsl_cli.episodes.class_sizes import dirichlet_sizes, in_range, meta_dataset_sizes
from fsl_cli.episodes.episodes import Episodes, Examples
from fsl_cli.episodes.randomness import uniform64
from fsl_cli.episodes.sampler import EpisodeSampler, draw_without_replacement, shuffled
from fsl_cli.episodes.task import Task
from fsl_cli.errors import FslError


class ImbalancedSampler:
    """Draws episodes of a fixed number of ways whose classes have shots or queries of their own.

    The classes are those that a sampler of even episodes draws. The sizes and images of an episode come from
    `episodes.randomness` for its seed, with as many numbers for each class as it has images: an episode is the same
    whatever the batch.

    Args:
        even: sampler of the classes, whose images can be drawn independently of each other.
        task: not `Task.balanced`; its ways are a number.

    Raises:
        FslError: the images of the sampler cannot be drawn like that.
    """

    def __init__(self, even: EpisodeSampler, task: Task) -> None:
        if not even.images_are_independent:
            what = "classes of an episode cannot have different numbers of images with these options of the data set"
            raise FslError(
                what, where="dataset", hint="use task.shots_per=episode task.query_dirichlet=null task.sampling=uniform"
            )
        self.task = task
        self._classes = even.of_shape(Task(task.ways, 1, 1))

    def batch(self, first: int, count: int) -> Episodes:
        """Episodes ``first .. first+count-1`` with padding where they differ in size, pixels scaled to 0..1."""
        return self.batch_of(self._classes.images, first, count)

    def batch_of(self, inputs: Callable[[Tensor], Tensor], first: int, count: int) -> Episodes:
        """Like `batch`, with the inputs that `EpisodeSampler.batch_of` takes."""
        even = self._classes
        classes, seeds = even.indices(first, count).classes, even.seeds(first, count)
        shots, queries = self._sizes(seeds, even.source.counts[classes])
        images = self._images(seeds, classes, shots + queries)
        place = np.arange(images.shape[-1])
        is_support = place < shots[..., None]
        is_query = ~is_support & (place < (shots + queries)[..., None])
        support, query = (self._examples(inputs, images, which) for which in (is_support, is_query))
        return Episodes(support, query, even.problem, seeds.to(even.device), torch.from_numpy(classes).to(even.device))

    def _sizes(self, seeds: Tensor, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shots and queries of the classes, int64 ``[T, N]`` each, of which there are ``counts`` images."""
        task, how = self.task, self.task.drawing
        assert how is not None
        if how.sampling == "meta_dataset":
            beta, alpha = _numbers(seeds, (1,), "support size")[:, 0], _numbers(seeds, (task.ways,), "shares of the classes")
            return meta_dataset_sizes(beta, alpha, counts, task.shots, task.queries)
        shots, queries = np.full_like(counts, task.shots), np.full_like(counts, task.queries)
        if how.shots_per == "class":
            shots = in_range(_numbers(seeds, (task.ways,), "shots of the classes"), how.shots, task.shots)
        if how.query_dirichlet is not None:
            numbers = _numbers(seeds, (task.ways,), "queries of the classes")
            queries = dirichlet_sizes(numbers, how.query_dirichlet, task.ways * task.queries)
        return shots, queries

    def _images(self, seeds: Tensor, classes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Different images of each class in random order, int64 ``[T, N, M]``, as many as its size; then whatever."""
        most = int(sizes.max())
        shape = (most, self.task.ways)  # one image of every class after another: the numbers of an image depend on no size
        pick, order = (np.moveaxis(_numbers(seeds, shape, use), 1, 2) for use in ("images", "order of the images"))
        source = self._classes.source
        drawn = draw_without_replacement(pick, source.counts[classes], sizes)
        return shuffled(drawn, order + (np.arange(most) >= sizes[..., None])) + source.offsets[classes][..., None]

    def _examples(self, inputs: Callable[[Tensor], Tensor], images: np.ndarray, kept: np.ndarray) -> Examples:
        """The images ``[T, N, M]`` that are kept, class by class, with padding after them."""
        count, _, most = images.shape
        flat = kept.reshape(count, -1)
        place = np.argsort(~flat, axis=1, kind="stable")[:, : flat.sum(1).max()]
        mask = np.take_along_axis(flat, place, 1)
        rows = np.take_along_axis(images.reshape(count, -1), place, 1)
        rows, place = (np.where(mask, each, each[:, :1]) for each in (rows, place))
        y, x = torch.from_numpy(place // most), inputs(torch.from_numpy(rows).flatten())
        real = None if mask.all() else torch.from_numpy(mask).to(self._classes.device)
        return Examples(x.view(*y.shape, *x.shape[1:]), y.to(self._classes.device), real)


def _numbers(seeds: Tensor, shape: tuple[int, ...], purpose: str) -> np.ndarray:
    return uniform64(seeds, shape, purpose).numpy()
