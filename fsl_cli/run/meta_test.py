"""Meta-testing: scores of the test episodes, the files they leave, and the lines that a run prints."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fsl_cli.compute.signals import held_back
from fsl_cli.datasets.adapted import adaptations
from fsl_cli.episodes.signal import check_signal
from fsl_cli.errors import FslError
from fsl_cli.evaluation import EpisodeScores, evaluate, values_of_sets
from fsl_cli.results.results import CurvePoint, Results
from fsl_cli.results.run_folder import RunFolder
from fsl_cli.run import lines
from fsl_cli.run.parts import Parts
from fsl_cli.settings.schema import ModelSettings
from fsl_cli.show import console
from fsl_cli.show.pictures import draw_curves
from fsl_cli.statistics.intervals import t_interval


def meta_test(settings: ModelSettings, parts: Parts, folder: RunFolder, checkpoint_name: str, iteration: int) -> Results:
    """Meta-test on the test split, write what was found and print it; of several processes the first one does that.

    Raises:
        FslError: predictions are not finite, which the files and the printed line say too; or the data set has no signal.
    """
    results, scores = compute(settings, parts, checkpoint_name, iteration)
    if parts.hardware.processes.first:
        write(folder, results, scores)
        lines.say_results(results)
    if not results.found:
        without = int(np.isnan(scores[results.headline.name]).sum())
        what = (
            f"there is no {results.headline.name}: predictions of {without} of {results.score.n} test episodes are not finite"
        )
        raise FslError(what, where="test", hint="use smaller learning rates, of the inner loop too, or another checkpoint")
    return replace(results, folder=folder.path)


def compute(settings: ModelSettings, parts: Parts, checkpoint_name: str, iteration: int) -> tuple[Results, EpisodeScores]:
    """Score the test episodes: the means with their intervals, and one row per episode."""
    sampler = parts.sampler("test", settings.eval.seed)
    check_signal(parts.as_they_are(sampler, "test", settings.eval.seed), "test", console.warn)
    count = settings.eval.episodes
    with console.progress(f"testing on {count} episodes", count) as advance:
        scores = evaluate(parts.algorithm, sampler, count, parts.hardware, advance, curves=True)
    points = parts.algorithm.curve_points(parts.task)
    results = Results(
        algo=settings.algo["name"],
        dataset=settings.dataset["name"],
        backbone=settings.backbone["name"],
        parameters=parts.parameters,
        seed=settings.seed,
        split="test",
        checkpoint=checkpoint_name,
        iteration=iteration,
        transductive=parts.algorithm.transductive,
        task=settings.task.described(),
        headline=sampler.problem.headline,
        scores={name: t_interval(values) for name, values in scores.values.items()},
        curves={
            name: [CurvePoint(at, t_interval(column)) for at, column in zip(points[name], values.T, strict=True)]
            for name, values in scores.curves.items()
        },
        normalization=parts.normalization.as_dict() if parts.normalization else None,
        episodes_seed=settings.eval.seed,
        episodes_digest=sampler.digest(count),
        sets={
            label: {name: t_interval(each) for name, each in values.items()}
            for label, values in values_of_sets(sampler, scores.values).items()
        },
        trained_on=parts.trained_on,
        adaptations=adaptations(parts.dataset),
    )
    return results, scores


def write(folder: RunFolder, results: Results, scores: EpisodeScores) -> None:
    """Leave ``results.json``, ``episodes.npz`` and, where there are curves, ``curves.png``, in the place of earlier ones."""
    headline = results.headline
    along = {f"{headline.name}_by_{name}": values for name, values in scores.curves.items()}
    with held_back():  # whoever stops the run finds the files of one test, not of two
        folder.write_episodes({**scores.values, **along})
        folder.write_json(folder.results, results.to_json())
    if results.curves:
        drawn = {
            name: [(point.at, headline.scaled(point.score.mean), headline.scaled(point.score.ci95)) for point in points]
            for name, points in results.curves.items()
        }
        folder.write(folder.curves, lambda file: draw_curves(drawn, headline.label, results.score.n, file))
