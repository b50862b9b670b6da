"""Episodes: their data structures, how they are sampled, and the random numbers that algorithms use for them."""

from fsl_cli.episodes.episodes import Episodes, Examples
from fsl_cli.episodes.problem import Classification, Problem, Regression
from fsl_cli.episodes.sampler import EpisodeSampler
from fsl_cli.episodes.task import Task

__all__ = ["Classification", "EpisodeSampler", "Episodes", "Examples", "Problem", "Regression", "Task"]
