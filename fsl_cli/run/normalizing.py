"""How the images of a run are normalised: as ``dataset.normalize`` says, and in every test as in the training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fsl_cli.datasets.dataset import Dataset, ImageClasses
from fsl_cli.episodes.normalization import Normalization, measured
from fsl_cli.errors import FslError
from fsl_cli.settings.schema import InputSettings, common


def normalization_of(node: Mapping[str, Any], dataset: Dataset) -> Normalization | None:
    """How ``dataset.normalize`` asks for images to be normalised; None: not at all.

    Raises:
        FslError: the examples are no images, there are no training classes to measure, or the channels are others.
    """
    asked, shape = InputSettings(**common("dataset", node)).normalize, dataset.example_shape
    if asked is None:
        return None
    if len(shape) != 3:
        what = f"is not valid: the examples are no images, they have the shape {list(shape)}"
        raise FslError(what, where="dataset.normalize", hint="leave it out; dataset=features has dataset.standardize")
    if asked != "data":
        return _checked(Normalization(tuple(asked[0]), tuple(asked[1])), shape)
    if not isinstance(dataset, ImageClasses):
        raise FslError("data is not valid for this data set", where="dataset.normalize", hint="use [[means],[deviations]]")
    return measured(dataset.split("train").images)


def saved_normalization(payload: Mapping[str, Any], shape: tuple[int, ...]) -> Normalization | None:
    """That of a trained run, for examples of this shape.

    Args:
        payload: its checkpoint; those of fsl 0.1.0 have none.
        shape: of the examples, which may be those of another data set.

    Raises:
        FslError: the examples have other channels.
    """
    found = payload.get("normalization")
    return _checked(Normalization.from_dict(found), shape) if found else None


def _checked(normalization: Normalization, shape: tuple[int, ...]) -> Normalization:
    """The normalisation itself, if it is one of images ``shape``; otherwise an `FslError`."""
    if len(shape) == 3 and shape[0] == len(normalization.mean):
        return normalization
    what = f"has numbers for {len(normalization.mean)} channels, and an example has the shape {list(shape)}"
    raise FslError(what, where="dataset.normalize", hint="one mean and one deviation for each channel")
