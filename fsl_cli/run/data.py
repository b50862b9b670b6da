"""The data set of a command line without a run: composed as `fsl train` composes it, checked without an algorithm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fsl_cli.datasets.dataset import Dataset
from fsl_cli.episodes import Task
from fsl_cli.run.parts import build_dataset, task_of
from fsl_cli.run.plan import compose_one
from fsl_cli.settings.compose import Composer, without_hydra
from fsl_cli.settings.resolve import resolve, validate_data
from fsl_cli.settings.schema import DataSettings
from fsl_cli.settings.words import as_typed


@dataclass(frozen=True)
class Data:
    """A data set and the episodes that a run would draw from it.

    Attributes:
        settings: what the words ask for.
        dataset: the data set.
    """

    settings: DataSettings
    dataset: Dataset

    @property
    def task(self) -> Task:
        """Shape of the episodes."""
        return task_of(self.settings)


def data_of(words: Sequence[str], command: str, composer: Composer | None = None) -> Data:
    """Compose, check and build the data set of these overrides.

    Args:
        words: as they are typed.
        command: of which they are the words, for messages.
        composer: one that has composed before, which is faster; None: a new one.

    Raises:
        Problems: everything that is wrong with the settings of the data set and the task.
    """
    composed = compose_one(composer or Composer("train"), as_typed(words), command, "one data set at a time")
    settings = validate_data(resolve(without_hydra(composed)))
    return Data(settings, build_dataset(settings))
