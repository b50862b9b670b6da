"""Checkpoints: saved atomically, loaded as tensors and plain values only, checked against the configuration."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fsl_cli.errors import FslError, first_line
from fsl_cli.results.files import WriteFile, write_atomically

FORMAT = 1

# What may differ between a checkpoint and the run that goes on from it: how long and where, not what is learned, nor the
# validation episodes that say which weights are best.
FREE_TO_DIFFER = (
    "train.iterations",
    "train.max_minutes",
    "train.patience",
    "train.log_every",
    "eval.episodes",
    "eval.checkpoint",
    "hardware.device",
    "hardware.threads",
    "hardware.deterministic",
    "hardware.task_chunk",
    "hardware.compile",
    "wandb.",
    "data_dir",
    "cache_dir",
    "resume",
)


def save(path: Path, payload: Mapping[str, Any], write: Callable[[Path, WriteFile], None] = write_atomically) -> None:
    """Write a checkpoint.

    Args:
        path: the file.
        payload: tensors and plain values.
        write: how the file is written, see `RunFolder.write`.

    Raises:
        FslError: the folder cannot be written to.
    """
    write(path, lambda file: torch.save({"format": FORMAT, **payload}, file))


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; code in it is not run.

    Raises:
        FslError: there is none, it is damaged, or it is not one of fsl's.
    """
    if not path.is_file():
        raise FslError("there is no such checkpoint", where=str(path), hint="fsl train writes checkpoints/{best,last}.pt")
    try:
        _verify(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd pickles, which the checks below say more clearly
            payload = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises almost anything on a damaged file
        raise FslError(f"cannot be read: {first_line(error)}", where=str(path), hint="it is damaged") from error
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        raise FslError("is not a checkpoint of this version of fsl", where=str(path))
    return payload


def _verify(path: Path) -> None:
    """Compare the checksums inside the file, which `torch.load` does not look at."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged:
        raise zipfile.BadZipFile(f"wrong checksum of {damaged}")


def load_weights(algorithm: nn.Module, payload: Mapping[str, Any], path: Path) -> None:
    """Put the weights of a checkpoint into ``algorithm``.

    Raises:
        FslError: the checkpoint belongs to another network or algorithm, or weights are not finite.
    """
    for name, value in payload.get("algo", {}).items():
        if isinstance(value, torch.Tensor) and not bool(value.isfinite().all()):
            hint = "the training has diverged, or the file is damaged: use another checkpoint, or train again"
            raise FslError(f"holds weights that are not finite: {name}", where=str(path), hint=hint)
    try:
        algorithm.load_state_dict(payload["algo"])
    except (RuntimeError, KeyError) as error:
        detail = str(error).splitlines()[min(1, len(str(error).splitlines()) - 1)].strip()
        raise FslError(
            f"belongs to another configuration: {detail}",
            where=str(path),
            hint="use the algo and backbone options it was trained with",
        ) from error


def check_same_configuration(saved: Mapping[str, Any], current: Mapping[str, Any], path: Path) -> None:
    """Refuse to go on from a checkpoint that was made with other settings.

    Raises:
        FslError: settings that shape the training differ; all of them are named.
    """
    old, new = _flat(saved), _flat(current)
    differing = [
        f"{key} was {old.get(key)}, now {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(FREE_TO_DIFFER)
    ]
    if differing:
        raise FslError(
            f"belongs to another configuration: {'; '.join(differing)}",
            where=str(path),
            hint="repeat those settings, or train with resume=false in another hydra.run.dir",
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
