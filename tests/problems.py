"""Small problems shared by the tests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from fsl_cli.backbones.batch_norm import BatchNorm
from fsl_cli.episodes import Classification, Episodes, EpisodeSampler, Examples, Task
from fsl_cli.episodes.class_images import ClassImages


class TinyNet(nn.Module):
    """A convolution, batch normalisation, a smooth non-linearity: small enough for finite differences."""

    def __init__(self, channels: int = 1, filters: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, filters, 3, stride=2, padding=1)
        self.norm = BatchNorm(filters)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.norm(self.conv(x))).mean((-2, -1))


def random_episodes(ways: int = 3, shots: int = 2, queries: int = 2, tasks: int = 3, size: int = 6) -> Episodes:
    """Episodes of noise, in float64."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(ways)
    return Episodes(
        Examples(
            torch.rand(tasks, ways * shots, 1, size, size, generator=generator, dtype=torch.float64),
            labels.repeat_interleave(shots).expand(tasks, -1),
        ),
        Examples(
            torch.rand(tasks, ways * queries, 1, size, size, generator=generator, dtype=torch.float64),
            labels.repeat_interleave(queries).expand(tasks, -1),
        ),
        Classification(ways),
    )


def changed(episodes: Episodes, **changes: torch.Tensor) -> Episodes:
    """The same episodes with other ``support_x``, ``support_y``, ``query_x``, ``query_y`` or ``seeds``."""
    parts = {
        part: replace(getattr(episodes, part), **{n[-1]: value for n, value in changes.items() if n.startswith(part)})
        for part in ("support", "query")
    }
    return replace(episodes, **parts, **{name: value for name, value in changes.items() if name[-2:] not in ("_x", "_y")})


def of_embeddings(support: torch.Tensor, labels: torch.Tensor, query: torch.Tensor, ways: int) -> Episodes:
    """Episodes as passed to `Algorithm.classify`, with query labels that must not affect the result."""
    unknown = torch.zeros(query.shape[:2], dtype=torch.int64)
    return Episodes(Examples(support, labels), Examples(query, unknown), Classification(ways))


def striped_classes(classes: int = 24, images: int = 12, size: int = 12, seed: int = 0) -> ClassImages:
    """Classes that are easy to learn to distinguish: a random pattern each, with noise."""
    random = np.random.default_rng(seed)
    patterns = random.random((classes, 1, size, size)) > 0.5
    noisy = np.where(random.random((classes, images, 1, size, size)) < 0.1, ~patterns[:, None], patterns[:, None])
    pixels = torch.from_numpy((noisy * 255).astype(np.uint8)).flatten(0, 1)
    return ClassImages(pixels, np.full(classes, images), [f"pattern {index}" for index in range(classes)])


def numbered(counts: list[int] | np.ndarray, size: int = 1, names: list[str] | None = None) -> ClassImages:
    """Images whose first two pixels name their class and their position in the class."""
    counts = np.asarray(counts, dtype=np.int64)
    images = torch.zeros(int(counts.sum()), 2, size, size, dtype=torch.uint8)
    for row, (label, position) in enumerate((c, i) for c, n in enumerate(counts) for i in range(n)):
        images[row, 0], images[row, 1] = label, position
    return ClassImages(images, counts, names or [f"class {index}" for index in range(len(counts))])


def sampler(task: Task, split: str = "train", seed: int = 0) -> EpisodeSampler:
    return EpisodeSampler(striped_classes(), split, task, seed)
