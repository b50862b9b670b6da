"""Episodes: their data structures, how they are sampled, and the random numbers that algorithms use for them."""

from fsl_cli.episodes.episodes import Episodes, Examples, Task
from fsl_cli.episodes.problem import Classification, Problem, Regression
from fsl_cli.episodes.sampler import EpisodeSampler

__all__ = ["Classification", "EpisodeSampler", "Episodes", "Examples", "Problem", "Regression", "Task"]
