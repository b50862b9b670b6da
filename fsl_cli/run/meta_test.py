"""Meta-testing with everything it leaves, and the lines that a run prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fsl_cli.evaluation import EpisodeScores, evaluate
from fsl_cli.results.run_folder import RunFolder
from fsl_cli.run.parts import Parts
from fsl_cli.settings.schema import Settings
from fsl_cli.show import console
from fsl_cli.show.pictures import draw_curves
from fsl_cli.statistics.intervals import t_interval


def meta_test(settings: Settings, parts: Parts, folder: RunFolder, checkpoint_name: str, iteration: int) -> dict[str, Any]:
    """Meta-test on the test split; process 0 writes ``results.json`` and ``episodes.npz``, prints the final line.

    Returns:
        The content of ``results.json``.
    """
    sampler = parts.sampler("test", settings.eval.seed)
    count = settings.eval.episodes
    with console.progress(f"testing on {count} episodes", count) as advance:
        scores = evaluate(parts.algorithm, sampler, count, parts.hardware, advance, curves=True)
    curves = _curves(scores, parts)
    results = {
        "algo": settings.algo["name"],
        "dataset": settings.dataset["name"],
        "backbone": settings.backbone["name"],
        "parameters": parts.parameters,
        "seed": settings.seed,
        "split": "test",
        "checkpoint": checkpoint_name,
        "iteration": iteration,
        "transductive": parts.algorithm.transductive,
        "task": settings.task.model_dump(),
        "accuracy": t_interval(scores["accuracy"]).as_dict(),
        "loss": t_interval(scores["loss"]).as_dict(),
        **({"curves": curves} if curves else {}),
        "episodes_seed": settings.eval.seed,
        "episodes_digest": sampler.digest(count),
    }
    if not parts.hardware.processes.first:
        return results
    along = {f"accuracy_by_{name}": values for name, values in scores.curves.items()}
    folder.write_episodes({"accuracy": scores["accuracy"], "loss": scores["loss"], **along})
    folder.write_json(folder.results, results)
    if curves:
        draw_curves(curves, folder.curves)
    for name, curve in curves.items():
        _say_curve(name, curve)
    console.say(result_line(scores), style="bold green")
    return results


def _curves(scores: EpisodeScores, parts: Parts) -> dict[str, list[dict[str, Any]]]:
    """The accuracy along each curve: at each point its mean with its interval."""
    points = parts.algorithm.curve_points(parts.task)
    return {
        name: [{"at": at, **t_interval(column).as_dict()} for at, column in zip(points[name], values.T, strict=True)]
        for name, values in scores.curves.items()
    }


def result_line(scores: EpisodeScores) -> str:
    """The final line of a run: n, mean accuracy, half width of the 95% interval and its definition."""
    accuracy = t_interval(scores["accuracy"])
    mean, half = 100 * accuracy.mean, 100 * accuracy.ci95
    return f"test  {accuracy.n} episodes  accuracy {mean:.2f} ± {half:.2f} % (95% CI, {accuracy.method})"


def _say_curve(name: str, curve: Sequence[Mapping[str, Any]]) -> None:
    """Print the accuracy along a curve, a line for each point."""
    rows = [(str(each["at"]), f"{100 * each['mean']:.2f} ± {100 * each['ci95']:.2f}", str(each["n"])) for each in curve]
    console.table(f"accuracy by {name}", (name, "accuracy %, 95% CI", "episodes"), rows)


def title(settings: Settings) -> str:
    """Algorithm, data set and task in a few words."""
    return f"{settings.algo['name']} {settings.dataset['name']} {settings.task.ways}w{settings.task.shots}s"


def header(settings: Settings, parts: Parts) -> str:
    """The header line of a run."""
    mode = "transductive" if parts.algorithm.transductive else "inductive"
    return " | ".join(
        (
            f"{settings.algo['name']} ({mode})",
            str(settings.dataset["name"]),
            str(parts.task),
            f"{settings.backbone['name']} ({parts.parameters:,} parameters)",
            parts.hardware.describe(),
            f"seed {settings.seed}",
        )
    )


def validation_line(iteration: int, total: int, values: Mapping[str, float], best: float) -> str:
    """The line of a validation; ``best`` is the best accuracy so far, this one included."""
    mean, half = 100 * values["val/accuracy"], 100 * values["val/accuracy_ci95"]
    note = "  best so far" if values["val/accuracy"] >= best else ""
    return f"val  {iteration}/{total}  accuracy {mean:.2f} ± {half:.2f} %  loss {values['val/loss']:.3f}{note}"
