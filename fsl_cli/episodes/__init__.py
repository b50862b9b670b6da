"""Episodes: what they hold, how they are drawn, and what random numbers an algorithm draws for them."""

from fsl_cli.episodes.episodes import Episodes, Examples, Task
from fsl_cli.episodes.problem import Classification, Problem, Regression
from fsl_cli.episodes.sampler import EpisodeSampler

__all__ = ["Classification", "EpisodeSampler", "Episodes", "Examples", "Problem", "Regression", "Task"]
