"""Episodes whose pictures are given other channels and another size."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor

from fsl_cli.episodes.class_images import ClassImages
from fsl_cli.episodes.episodes import Episodes, Examples
from fsl_cli.episodes.sampler import EpisodeIndices, EpisodeSampler, Sampler

_LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue, ITU-R BT.601, as in Pillow's conversion to "L"


@dataclass(frozen=True)
class PixelAdaptation:
    """Pictures ``[B, C, H, W]`` of one shape to another: first the channels, then the size.

    Attributes:
        source: ``(C, H, W)``, C is 1 or 3.
        target: the same.
    """

    source: tuple[int, ...]
    target: tuple[int, ...]

    def __call__(self, pixels: Tensor) -> Tensor:
        """Floating-point pixels in 0..1, ``[B, *source]`` to ``[B, *target]``.

        Grey is repeated, colours become luminance, and the size changes by antialiased bilinear interpolation, whatever that
        does to proportions.
        """
        if self.source[0] == 3 and self.target[0] == 1:
            pixels = (pixels * pixels.new_tensor(_LUMINANCE).view(3, 1, 1)).sum(1, keepdim=True)
        if self.source[1:] != self.target[1:]:
            size = list(self.target[1:])
            pixels = F.interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=True).clamp_(0, 1)
        return pixels.expand(-1, self.target[0], -1, -1) if self.source[0] == 1 else pixels

    def __str__(self) -> str:
        """For example ``3x84x84 as 1x28x28: luminance, resized (bilinear, antialiased)``."""
        done = []
        if self.source[0] != self.target[0]:
            done.append("luminance" if self.target[0] == 1 else "grey repeated")
        if self.source[1:] != self.target[1:]:
            done.append("resized (bilinear, antialiased)")
        source, target = ("x".join(map(str, shape)) for shape in (self.source, self.target))
        return f"{source} as {target}: {', '.join(done)}"


def adapted_sampler(sampler: Sampler, adaptation: PixelAdaptation) -> AdaptedSampler:
    """The episodes of a sampler with adapted pictures."""
    kind = AdaptedEpisodeSampler if isinstance(sampler, EpisodeSampler) else AdaptedSampler
    return kind(sampler, adaptation)


class AdaptedSampler:
    """The episodes of any sampler with adapted pictures.

    Args:
        sampler: draws episodes of pictures.
        adaptation: of every picture.

    Attributes:
        prepare: applied to the adapted pictures ``[B, C, H, W]``; None: nothing.
    """

    def __init__(self, sampler: Sampler, adaptation: PixelAdaptation) -> None:
        self.adaptation, self.task, self.problem = adaptation, sampler.task, sampler.problem
        self.prepare: Callable[[Tensor], Tensor] | None = None
        self._sampler = sampler

    def batch(self, first: int, count: int) -> Episodes:
        """Episodes ``first .. first+count-1``."""
        episodes = self._sampler.batch(first, count)
        return replace(episodes, support=self._adapted(episodes.support), query=self._adapted(episodes.query))

    def digest(self, count: int) -> str:
        """SHA-256 of the digest of the sampler and the adaptation."""
        return hashlib.sha256(f"{self._sampler.digest(count)} {self.adaptation}".encode()).hexdigest()

    def _adapted(self, examples: Examples) -> Examples:
        pixels = self._prepared(examples.x.flatten(0, 1))
        return replace(examples, x=pixels.view(*examples.x.shape[:2], *pixels.shape[1:]))

    def _prepared(self, pixels: Tensor) -> Tensor:
        adapted = self.adaptation(pixels)
        return adapted if self.prepare is None else self.prepare(adapted)


class AdaptedEpisodeSampler(AdaptedSampler):
    """The episodes of an `EpisodeSampler` with adapted pictures; each picture can be had alone, as from that one."""

    _sampler: EpisodeSampler

    @property
    def source(self) -> ClassImages:
        """The pictures of the split before the adaptation."""
        return self._sampler.source

    def indices(self, first: int, count: int) -> EpisodeIndices:
        """As `EpisodeSampler.indices`."""
        return self._sampler.indices(first, count)

    def images(self, rows: Tensor) -> Tensor:
        """As `EpisodeSampler.images`, adapted."""
        return self._prepared(self._sampler.images(rows))

    def batch_of(self, inputs: Callable[[Tensor], Tensor], first: int, count: int) -> Episodes:
        """As `EpisodeSampler.batch_of`."""
        return self._sampler.batch_of(inputs, first, count)
