"""Normalised images: the mean of each channel subtracted, the rest divided by its standard deviation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from fsl_cli.episodes.adapted_sampler import AdaptedSampler
from fsl_cli.episodes.changed_sampler import ChangedSampler
from fsl_cli.episodes.episodes import Episodes, Examples
from fsl_cli.episodes.mixture_sampler import MixtureSampler
from fsl_cli.episodes.sampler import EpisodeSampler, Sampler

_BLOCK = 1024  # images counted at once, so that a memory-mapped split need not fit into memory


@dataclass(frozen=True)
class Normalization:
    """``(x - mean) / std`` of each channel, for pixels in 0..1.

    Attributes:
        mean: one number for each channel.
        std: one number > 0 for each channel.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """Normalised images ``[..., C, H, W]``."""
        return (images - _by_channel(self.mean, images)) / _by_channel(self.std, images)

    def undone(self, images: Tensor) -> Tensor:
        """The pixels in 0..1 of normalised images ``[..., C, H, W]``."""
        return images * _by_channel(self.std, images) + _by_channel(self.mean, images)

    def as_dict(self) -> dict[str, list[float]]:
        """Plain values, for files."""
        return {name: list(numbers) for name, numbers in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Sequence[float]]) -> Normalization:
        """From `as_dict`."""
        return cls(tuple(values["mean"]), tuple(values["std"]))

    def __str__(self) -> str:
        mean, std = (" ".join(f"{number:.4f}" for number in numbers) for numbers in (self.mean, self.std))
        return f"mean {mean}, standard deviation {std}"


def _by_channel(numbers: tuple[float, ...], images: Tensor) -> Tensor:
    return images.new_tensor(numbers)[:, None, None]


def measured(images: Tensor) -> Normalization:
    """The mean and the standard deviation of each channel over all pixels (ddof = 0), scaled to 0..1.

    They are computed from exact counts, and are the same on every machine. A channel without variance has the deviation 1.

    Args:
        images: uint8 ``[M, C, H, W]``, which may be memory-mapped.
    """
    counts = torch.zeros(images.shape[1], 256, dtype=torch.int64)
    for block in images.split(_BLOCK):
        for channel, pixels in enumerate(block.unbind(1)):
            counts[channel] += torch.bincount(pixels.flatten(), minlength=256)
    values, shares = torch.arange(256, dtype=torch.float64) / 255, counts / counts.sum(1, keepdim=True).double()
    mean = (shares * values).sum(1)
    std = (shares * (values - mean[:, None]).square()).sum(1).sqrt()
    return Normalization(tuple(mean.tolist()), tuple(number or 1.0 for number in std.tolist()))


class NormalizedSampler(ChangedSampler):
    """The episodes of any sampler of images, normalised.

    Args:
        sampler: draws episodes of images with pixels in 0..1.
        normalization: of the images.
    """

    def __init__(self, sampler: Sampler, normalization: Normalization) -> None:
        def of(examples: Examples) -> Examples:
            return replace(examples, x=normalization(examples.x))

        def change(episodes: Episodes) -> Episodes:
            return replace(episodes, support=of(episodes.support), query=of(episodes.query))

        super().__init__(sampler, change)


def normalized(sampler: Sampler, normalization: Normalization | None) -> Sampler:
    """A sampler of normalised images; ``sampler`` itself, changed, where it can be; None: not normalised."""
    if normalization is None:
        return sampler
    if isinstance(sampler, MixtureSampler):
        sampler.change_samplers(lambda each: normalized(each, normalization))
        return sampler
    if isinstance(sampler, EpisodeSampler | AdaptedSampler):
        sampler.prepare = normalization  # also of single images, which evaluation embeds
        return sampler
    return NormalizedSampler(sampler, normalization)
