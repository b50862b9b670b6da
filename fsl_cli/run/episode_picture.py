"""A picture of one validation episode and of what the algorithm makes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from fsl_cli.algos.common.step_learner import StepLearner
from fsl_cli.episodes import Episodes
from fsl_cli.episodes.sampler import Sampler
from fsl_cli.run.parts import Parts
from fsl_cli.show.pictures import draw_episode, draw_fit

_POINTS = 200  # of the curve of a regression


def draw_validation_episode(parts: Parts, sampler: Sampler, seed: int, path: Path) -> bool:
    """Draw the first validation episode: images with the classes they are taken for, or a curve with its predictions.

    Args:
        parts: of the run.
        sampler: of the validation episodes.
        seed: theirs.
        path: PNG file to write.

    Returns:
        Whether there is a picture: examples that are neither images of classes nor numbers with one output have none.
    """
    shape = parts.dataset.example_shape
    parts.algorithm.eval()
    with torch.no_grad(), parts.hardware.autocast():
        if parts.problem.has_ways and len(shape) == 3:
            _draw_classes(parts, sampler.batch(0, 1), path)
        elif not parts.problem.has_ways and shape == (1,) and parts.problem.outputs == 1:
            _draw_curve(parts, seed, path)
        else:
            return False
    return True


def _draw_classes(parts: Parts, episodes: Episodes, path: Path) -> None:
    predicted = parts.algorithm.predict(episodes)[0].argmax(-1)
    normalization = parts.normalization
    support, query = (
        (normalization.undone(each.x[0]).clamp(0, 1) if normalization else each.x[0], each.y[0])
        for each in (episodes.support, episodes.query)
    )
    draw_episode(support, query, predicted, episodes.ways, path)


def _draw_curve(parts: Parts, seed: int, path: Path) -> None:
    task = replace(parts.task.smallest, queries=_POINTS)
    episodes = parts.dataset.sampler("val", task, seed, parts.hardware.device).batch(0, 1)
    algorithm = parts.algorithm
    if isinstance(algorithm, StepLearner):
        steps = sorted({0, algorithm.test_steps[-1]})
        outputs = dict(zip((f"after {each} steps" for each in steps), algorithm.outputs_after(episodes, steps), strict=True))
    else:
        outputs = {"prediction": algorithm.predict(episodes)}
    support, query = ((each.x[0, :, 0], each.y[0, :, 0]) for each in (episodes.support, episodes.query))
    draw_fit(support, query, {name: each[0, :, 0] for name, each in outputs.items()}, path)
