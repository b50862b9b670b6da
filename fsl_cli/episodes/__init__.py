"""Episodes: what they hold, how they are drawn, and what random numbers an algorithm draws for them."""

from fsl_cli.episodes.episodes import Episodes, Task
from fsl_cli.episodes.sampler import EpisodeSampler

__all__ = ["EpisodeSampler", "Episodes", "Task"]
