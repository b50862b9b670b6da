"""The lines and tables that a run prints."""

from __future__ import annotations

from collections.abc import Mapping

from fsl_cli.datasets.adapted import adaptations
from fsl_cli.results.results import Results
from fsl_cli.run.parts import Parts
from fsl_cli.settings.schema import ModelSettings
from fsl_cli.show import console
from fsl_cli.statistics.scores import LOSS, Score


def title(settings: ModelSettings) -> str:
    """Algorithm, data set and task in a few words."""
    task = settings.task
    ways = "" if task.ways is None else f"{task.ways}w"
    shots = " meta-dataset" if task.sampling == "meta_dataset" else f"{task.shots}s"
    return f"{settings.algo['name']} {settings.dataset['name']} {ways}{shots}"


def header(settings: ModelSettings, parts: Parts) -> str:
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


def say_data(parts: Parts) -> None:
    """Print what data the model was trained on where it is tested on others, and how pictures are adapted."""
    if parts.trained_on:
        console.say(f"data    {parts.dataset.name}; weights and running averages are those of {parts.trained_on}")
    for name, text in adaptations(parts.dataset).items():
        console.say(f"adapted {name}: {text}")


def say_normalization(parts: Parts) -> None:
    """Print the numbers by which images are normalised, if they are."""
    if parts.normalization:
        console.say(f"images  normalised by the {parts.normalization}")


def training_numbers(headline: Score, values: Mapping[str, float]) -> str:
    """The latest numbers of a training, for its progress line."""
    score = headline.text(values[f"train/{headline.name}"], digits=1 if headline.unit == "%" else 3)
    return f"loss {values['train/loss']:.3f}  {headline.name} {score}  {values['train/tasks_per_second']:.3g} tasks/s"


def validation_line(headline: Score, iteration: int, total: int, values: Mapping[str, float], best: bool) -> str:
    """The line of a validation; ``best``: its score is better than all before."""
    mean, half = (values[f"val/{headline.name}{part}"] for part in ("", "_ci95"))
    loss = f"  loss {LOSS.number(values['val/loss'], digits=3)}" if "val/loss" in values else ""
    prefix = f"val/{headline.name}/"
    sets = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
    of_sets = f"  ({', '.join(f'{name} {headline.text(value)}' for name, value in sets.items())})" if sets else ""
    end = "  best so far" if best else ""
    return f"val  {iteration}/{total}  {headline.name} {headline.text(mean, half)}{of_sets}{loss}{end}"


def trained_line(headline: Score, iterations: int, seconds: float, best: float | None, at: int) -> str:
    """The line at the end of a training."""
    done = f"trained {iterations} iterations in {console.clock(seconds)}"
    return done if best is None else f"{done}, best validation {headline.name} {headline.text(best)} at iteration {at}"


def result_line(results: Results) -> str:
    """The final line of a run: n, mean score, half width of the 95% interval and its definition."""
    name, score = results.headline.name, results.score
    text = results.headline.text(score.mean, score.ci95)
    if not results.found:
        return f"test  {score.n} episodes  {name} {text}: there are predictions that are not finite"
    line = f"test  {score.n} episodes  {name} {text} (95% CI, {score.method})"
    return f"{line}, with a loss of {results.scores['loss'].mean:.2g}" if results.diverged else line


def say_results(results: Results) -> None:
    """Print the score along each curve, a line for each point, and the final line of a run."""
    headline = results.headline
    for name, points in results.curves.items():
        rows = []
        for point in points:
            mean, half = point.score.mean, point.score.ci95
            rows.append((str(point.at), headline.interval(mean, half), str(point.score.n)))
        console.table(f"{headline.name} by {name}", (name, f"{headline.label}, 95% CI", "episodes"), rows)
    if results.sets:
        scores = {label: each[headline.name] for label, each in results.sets.items()}
        rows = [(label, headline.interval(each.mean, each.ci95), str(each.n)) for label, each in scores.items()]
        console.table(f"{headline.name} by data set", ("data set", f"{headline.label}, 95% CI", "episodes"), rows)
    console.say(result_line(results), style="bold green" if results.found and not results.diverged else "bold red")
    if results.diverged:
        console.warn("training or the inner loop has diverged: use a smaller train.optimizer.lr or algo.inner_lr")
