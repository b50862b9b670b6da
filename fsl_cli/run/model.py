"""A trained run that answers questions: from labelled support examples to predictions for others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fsl_cli.algos.common.algorithm import portions
from fsl_cli.datasets.dataset import SplitName
from fsl_cli.episodes import Classification, Episodes
from fsl_cli.episodes.episodes import Examples
from fsl_cli.episodes.task import Task
from fsl_cli.errors import FslError, raise_all
from fsl_cli.run.trained import Trained


@dataclass(frozen=True)
class Prediction:
    """What a model says of B query examples.

    Attributes:
        outputs: float32 ``[B, O]``: logits of the classes, or the predicted numbers of regression.
        classes: the labels as they were given, in the order of the logits; of regression, empty.
    """

    outputs: np.ndarray
    classes: list[Any]

    @property
    def probabilities(self) -> np.ndarray:
        """float32 ``[B, N]``: the softmax of the logits. They are not calibrated."""
        shifted = np.exp(self.outputs - self.outputs.max(-1, keepdims=True))
        return shifted / shifted.sum(-1, keepdims=True)

    @property
    def labels(self) -> list[Any]:
        """The most probable class of each query, as it was given."""
        return [self.classes[index] for index in self.outputs.argmax(-1)]


class Model:
    """A trained run, ready to learn from a few examples.

    Args:
        trained: the run.

    Attributes:
        algorithm: the algorithm with the weights of the checkpoint.
        iteration: of the checkpoint.
    """

    def __init__(self, trained: Trained) -> None:
        self._trained = trained
        self._parts, self.iteration = trained.load(())
        self.algorithm = self._parts.algorithm.eval()

    @property
    def config(self) -> dict[str, Any]:
        """The configuration of the run."""
        return self._trained.config

    @torch.no_grad()
    def predict(self, support_x: ArrayLike | Tensor, support_y: Sequence[Any], query_x: ArrayLike | Tensor) -> Prediction:
        """Learn from support examples and predict for queries.

        Args:
            support_x: ``[S, ...]``, examples of the shape the run was trained with: images ``[S, C, H, W]``, uint8 0..255 or
                float 0..1, or numbers. Where the run normalises images, these are normalised too.
            support_y: S labels of any kind, two or more different ones; of regression, numbers ``[S]`` or ``[S, O]``.
            query_x: ``[B, ...]``.

        Raises:
            FslError: the examples have another shape or are not finite, the algorithm cannot learn from so many classes or
                from classes of uneven shots, or its predictions are not finite.
        """
        support, query = self._inputs(support_x, "support_x"), self._inputs(query_x, "query_x")
        if len(support) != len(support_y):
            raise FslError(f"{len(support_y)} labels for {len(support)} examples", where="support_y")
        if not isinstance(self._parts.problem, Classification):
            targets = torch.as_tensor(np.asarray(support_y, dtype=np.float32)).view(len(support), -1).to(support.device)
            episodes = self._episode(Examples(support[None], targets[None]), query, self._parts.problem)
            return Prediction(self._outputs(episodes), [])
        classes = list(dict.fromkeys(_plain(label) for label in support_y))
        counts = {label: sum(_plain(each) == label for each in support_y) for label in classes}
        self._check(classes, counts, len(query))
        labels = torch.tensor([classes.index(_plain(label)) for label in support_y], device=support.device)
        order, first = _by_class(labels, len(classes))
        mask = None if bool(first.all()) else first[None]
        examples = Examples(support[order][None], labels[order][None], mask)
        return Prediction(self._outputs(self._episode(examples, query, Classification(len(classes)))), classes)

    def episodes(self, split: SplitName = "test", count: int = 1, first: int = 0) -> Episodes:
        """Episodes of a split of the run's data set: those that training, validation and test draw, in their order.

        Their images are neither normalised, which `predict` does, nor augmented.

        Args:
            split: ``train``, ``val`` or ``test``.
            count: how many.
            first: index of the first.

        Raises:
            FslError: the data set cannot be read, or the episodes differ in size: take them one at a time.
        """
        settings = self._trained.settings
        seed = settings.seed if split == "train" else settings.eval.seed
        return self._parts.raw_sampler(split, seed).batch(first, count)

    def _outputs(self, episodes: Episodes) -> np.ndarray:
        (episode,) = portions(self.algorithm, episodes, 1)
        with self._parts.hardware.autocast():
            outputs = self.algorithm.predict(episode)[0].float().cpu()
        if not bool(outputs.isfinite().all()):
            hint = "use smaller values of the inner loop's options, or another checkpoint"
            raise FslError("the predictions are not finite", where="predict", hint=hint)
        return outputs.numpy()

    def _episode(self, support: Examples, query: Tensor, problem: Any) -> Episodes:
        unknown = torch.zeros((1, len(query)), dtype=torch.int64, device=query.device)
        targets = unknown if isinstance(problem, Classification) else unknown[..., None].expand(-1, -1, problem.outputs).float()
        return Episodes(support, Examples(query[None], targets), problem)

    def _inputs(self, values: ArrayLike | Tensor, where: str) -> Tensor:
        given = values if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
        shape = self._parts.dataset.example_shape
        if tuple(given.shape[1:]) != tuple(shape):
            raise FslError(f"has the shape {list(given.shape)}, not [examples, {', '.join(map(str, shape))}]", where=where)
        scaled = given.float() / 255 if given.dtype == torch.uint8 else given.float()
        if not bool(scaled.isfinite().all()):
            raise FslError("has values that are not finite", where=where)
        normalization = self._parts.normalization
        return (normalization(scaled) if normalization else scaled).to(self._parts.hardware.device)

    def _check(self, classes: Sequence[Any], counts: dict[Any, int], queries: int) -> None:
        if len(classes) < 2:
            raise FslError("there is only one class", where="support_y", hint="give examples of two classes or more")
        if len(set(counts.values())) > 1 and not (self.algorithm.masks or self.algorithm.uneven):
            what = f"{self.config['algo']['name']} cannot learn from classes of uneven shots: {counts}"
            raise FslError(what, where="support_y", hint="give equally many examples of each class")
        raise_all(self.algorithm.task_problems(Task(len(classes), max(counts.values()), max(1, queries // len(classes)))))


def _plain(label: Any) -> Any:
    """A label that can be compared and looked up: numpy's and torch's scalars as Python's."""
    return label.item() if hasattr(label, "item") else label


def _by_class(labels: Tensor, ways: int) -> tuple[Tensor, Tensor]:
    """Rows in the order of the classes, each class with as many rows as the largest has.

    Returns:
        int64 ``[N*K]``, which row of the labels stands there, and bool ``[N*K]``, whether it stands there for the first time.
    """
    rows = [(labels == way).nonzero().flatten() for way in range(ways)]
    shots = max(len(each) for each in rows)
    order = [torch.cat([each, each[:1].repeat(shots - len(each))]) for each in rows]
    mask = [torch.arange(shots, device=labels.device) < len(each) for each in rows]
    return torch.cat(order), torch.cat(mask)
