"""What a meta-test found: the content of ``results.json``, typed and versioned."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fsl_cli.errors import FslError
from fsl_cli.results.files import read_json
from fsl_cli.statistics.intervals import MeanInterval
from fsl_cli.statistics.scores import ACCURACY, LOSS, Score

_APART = ("headline", "scores", "curves", "sets", "normalization", "folder")  # fields that are written in another form, or not
VERSION = 2  # of the format; files of fsl 0.1.0 have no version, which is 1


@dataclass(frozen=True)
class CurvePoint:
    """The headline score at one point of a curve, for example after a number of inner steps.

    Attributes:
        at: where on the curve.
        score: mean with its interval.
    """

    at: int
    score: MeanInterval


@dataclass(frozen=True)
class Results:
    """What a meta-test found, and of what.

    Attributes:
        algo: name of the algorithm.
        dataset: name of the data set.
        backbone: name of the backbone.
        parameters: number of meta-learned parameters.
        seed: of the training.
        split: whose episodes were tested.
        checkpoint: ``best`` or ``last``.
        iteration: of the checkpoint.
        transductive: whether a prediction may depend on the other queries of its episode.
        task: ``shots`` and ``queries``, and the ``ways`` of classification, numbers or ranges such as ``1..10``; and
            how sizes are drawn.
        headline: the score that counts.
        scores: mean over the episodes, with its interval, of every score by name; fractions, not percent.
        curves: points of each curve by its name.
        sets: of a mixture of data sets, the scores over the episodes of each set, by its name.
        trained_on: name of the data set of the training where it is another one than that of the test; otherwise None.
        adaptations: how pictures were given other channels or another size, by the name of their data set.
        episodes_seed: of the test episodes.
        episodes_digest: a hash of the test episodes.
        normalization: mean and standard deviation by which each channel of the images was normalised; None: they were not.
        folder: the run folder that they were written to or read from; None: neither.
    """

    algo: str
    dataset: str
    backbone: str
    parameters: int
    seed: int
    split: str
    checkpoint: str
    iteration: int
    transductive: bool
    task: dict[str, Any]
    headline: Score
    scores: dict[str, MeanInterval]
    episodes_seed: int
    episodes_digest: str
    curves: dict[str, list[CurvePoint]] = field(default_factory=dict)
    sets: dict[str, dict[str, MeanInterval]] = field(default_factory=dict)
    trained_on: str | None = None
    adaptations: dict[str, str] = field(default_factory=dict)
    normalization: dict[str, list[float]] | None = None
    folder: Path | None = field(default=None, compare=False)

    @property
    def score(self) -> MeanInterval:
        """The score that counts."""
        return self.scores[self.headline.name]

    @property
    def found(self) -> bool:
        """Whether there is a score: False if a prediction was not finite."""
        return math.isfinite(self.score.mean)

    @property
    def diverged(self) -> bool:
        """Whether a classifier has ten times the loss of one that guesses and is no better than chance, or a million times."""
        ways, loss = self.task.get("ways"), self.scores.get(LOSS.name)
        if self.headline != ACCURACY or not isinstance(ways, int) or loss is None or not self.found:
            return False
        times = loss.mean / math.log(ways)
        return times >= 1e6 or (times >= 10 and self.score.mean - self.score.ci95 <= 1 / ways)

    @property
    def mode(self) -> str:
        """``transductive`` or ``inductive``."""
        return "transductive" if self.transductive else "inductive"

    def status(self) -> dict[str, Any]:
        """What ``status.json`` says of the results."""
        return {"headline": self.headline.name, self.headline.name: self.score.as_dict()}

    def to_json(self) -> dict[str, Any]:
        """The content of ``results.json``; of classification, ``accuracy`` and ``loss`` stand at the top too."""
        content = {key: value for key, value in asdict(self).items() if key not in _APART}
        content = {key: value for key, value in content.items() if value or key not in ("trained_on", "adaptations")}
        digest = {key: content.pop(key) for key in ("episodes_seed", "episodes_digest")}
        scores = {name: score.as_dict() for name, score in self.scores.items()}
        curves = {name: [{"at": point.at, **point.score.as_dict()} for point in points] for name, points in self.curves.items()}
        return {
            "version": VERSION,
            **content,
            "headline": self.headline.name,
            "higher_is_better": self.headline.higher_is_better,
            "unit": self.headline.unit,
            "diverged": self.diverged,
            "scores": scores,
            **(scores if self.headline == ACCURACY else {}),
            **({"curves": curves} if curves else {}),
            **({"sets": _nested(self.sets)} if self.sets else {}),
            **({"normalization": self.normalization} if self.normalization else {}),
            **digest,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Results:
        """Results from the content of a ``results.json`` of this version of the format or an earlier one.

        Raises:
            ValueError: the version is a later one.
            KeyError: something is missing.
            TypeError, AttributeError: something is not what it should be.
        """
        version = content.get("version", 1)
        if version > VERSION:
            raise ValueError(f"version {version} of the format, and this fsl knows {VERSION}")
        headline, scores = ACCURACY, {name: content[name] for name in (ACCURACY.name, LOSS.name) if name in content}
        if version > 1:
            headline = Score(content["headline"], content["higher_is_better"], content["unit"])
            scores = content["scores"]
        if headline.name not in scores:
            raise KeyError(headline.name)
        kept = ("algo", "dataset", "backbone", "parameters", "seed", "split", "checkpoint", "iteration", "transductive")
        return cls(
            **{key: content[key] for key in (*kept, "episodes_seed", "episodes_digest")},
            task=dict(content["task"]),
            headline=headline,
            scores={name: _interval(score) for name, score in scores.items()},
            curves={
                name: [CurvePoint(point["at"], _interval(point)) for point in points]
                for name, points in content.get("curves", {}).items()
            },
            sets={
                label: {name: _interval(score) for name, score in scores.items()}
                for label, scores in content.get("sets", {}).items()
            },
            trained_on=content.get("trained_on"),
            adaptations=dict(content.get("adaptations", {})),
            normalization=content.get("normalization"),
        )


def _nested(sets: Mapping[str, Mapping[str, MeanInterval]]) -> dict[str, dict[str, Any]]:
    return {label: {name: score.as_dict() for name, score in scores.items()} for label, scores in sets.items()}


def _interval(content: Mapping[str, Any]) -> MeanInterval:
    """A mean with its interval; NaN and infinity were written as null."""
    mean, half = (float("nan") if content[key] is None else float(content[key]) for key in ("mean", "ci95"))
    return MeanInterval(mean, half, int(content["n"]), str(content["method"]))


def read_results(path: Path) -> Results | None:
    """The results in a ``results.json``, or None where there are none.

    Raises:
        FslError: the file does not hold results that this version of fsl can read.
    """
    content = read_json(path)
    if content is None:
        return None
    try:
        return replace(Results.from_json(content), folder=path.parent)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FslError(f"holds no results that can be read: {error}", where=str(path), hint="evaluate the run again") from error
