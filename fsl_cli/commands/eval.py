"""`fsl eval`: meta-test a trained run, with its saved configuration and overrides on top."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import OmegaConf

from fsl_cli.compute import processes
from fsl_cli.errors import FslError, close_match, raise_all
from fsl_cli.results import checkpoint
from fsl_cli.results.run_folder import RunFolder, check_writable, known_runs
from fsl_cli.settings import overrides
from fsl_cli.settings.resolve import resolve, validate
from fsl_cli.show import console

# Overrides that change how a trained model is tested; everything else belongs to training.
SECTIONS = ("task", "eval", "hardware", "dataset", "algo", "backbone", "data_dir", "cache_dir")
SWAPPABLE = ("dataset", "hardware")
FOLDERS = {"data_dir": "FSL_DATA_DIR", "cache_dir": "FSL_CACHE_DIR"}


def main(arguments: Sequence[str]) -> int:
    """Run the verb. Returns the exit code."""
    prepared = processes.current().from_first(lambda: _prepare(arguments))
    _evaluate(*prepared)
    return 0


def _prepare(arguments: Sequence[str]) -> tuple[dict[str, Any], RunFolder, RunFolder, int | None]:
    """Check everything before any work.

    Returns:
        The configuration, the folder of the trained run, the folder to write to, and the ways that were trained.
    """
    flags, words = overrides.split_flags(arguments)
    if flags:
        raise FslError("is not a flag of fsl eval", where=flags[0], hint="scripts/meta_test.sh tests many tasks")
    parsed = overrides.parse(words)
    own = [word for word, each in zip(words, parsed, strict=True) if _is_own(each)]
    run = next((str(each.value()) for each in parsed if each.key_or_group == "run"), None)
    if run is None:
        raise FslError("is missing", where="run", hint=f"fsl eval run=FOLDER; {known_runs()}")
    trained = RunFolder(Path(run).expanduser().absolute())
    saved = trained.read_config()
    config = apply(saved, [each for each in parsed if not _is_own(each)])
    overrides.check("eval", own)
    folder = RunFolder(overrides.output_folder("eval", own, multirun=False))
    validate(config)
    check_writable(folder.path)
    if folder.config.exists():
        raise FslError("already holds a run", where=str(folder.path), hint="choose another hydra.run.dir")
    return config, trained, folder, saved["task"]["ways"]


def apply(saved: dict[str, Any], parsed: Sequence[Override]) -> dict[str, Any]:
    """A saved configuration with overrides on top.

    Raises:
        Problems: overrides of keys that do not exist or that only matter in training.
    """
    config = OmegaConf.create(saved)
    for key, variable in FOLDERS.items():
        if os.environ.get(variable):
            config[key] = os.environ[variable]  # the run may have been trained on another machine
    keys = [key for key in overrides.all_keys(config) if key.split(".")[0] in SECTIONS]
    problems = []
    for each in sorted(parsed, key=lambda each: each.key_or_group not in SWAPPABLE):  # groups first, then their keys
        key, place = each.key_or_group, each.input_line or each.key_or_group
        if each.is_sweep_override():
            problems.append(FslError("one value at a time", where=place, hint="scripts/meta_test.sh tests many tasks"))
        elif key in SWAPPABLE:
            problems += overrides.job_problems("train", [place])
            if not problems:
                config[key] = resolve(overrides.compose_config("train", [place]))[key]
                keys += [name for name in overrides.all_keys(config) if name.startswith(f"{key}.")]
        elif key in ("algo", "backbone", "experiment"):
            problems.append(FslError("a trained model cannot change it", where=place, hint="override its options"))
        elif key.split(".")[0] not in SECTIONS and OmegaConf.select(config, key) is not None:
            problems.append(FslError("belongs to training", where=place, hint=f"fsl eval takes {', '.join(SECTIONS)}"))
        elif key not in keys or each.type is not OverrideType.CHANGE:
            problems.append(FslError("there is no such key", where=place, hint=close_match(key, ["run", *keys])))
        else:
            OmegaConf.update(config, key, each.value())
    raise_all(problems)
    return resolve(config)


def _is_own(override: Override) -> bool:
    return override.key_or_group == "run" or override.key_or_group.startswith("hydra.")


def _evaluate(config: dict[str, Any], trained: RunFolder, folder: RunFolder, trained_ways: int | None) -> None:
    from fsl_cli.results import environment
    from fsl_cli.run import meta_test as report
    from fsl_cli.run.parts import assemble

    several, settings = processes.current(), validate(config)
    path = trained.best if settings.eval.checkpoint == "best" else trained.last
    payload = several.from_first(lambda: checkpoint.load(path))
    parts = several.together(lambda: assemble(settings, trained_ways=trained_ways, splits=("test",)))
    checkpoint.load_weights(parts.algorithm, payload, path)
    if not several.first:
        report.meta_test(settings, parts, folder, path.stem, payload["progress"]["iteration"])
        return
    console.say(report.header(settings, parts), style="bold")
    console.say(f"run     {trained.path}, checkpoint {path.stem}, iteration {payload['progress']['iteration']}")
    console.say(f"folder  {folder.path}")
    folder.claim()
    folder.write_config(config)
    folder.write_json(folder.env, environment.describe(parts.hardware.device))
    results = report.meta_test(settings, parts, folder, path.stem, payload["progress"]["iteration"])
    folder.write_status("done", run=str(trained.path), accuracy=results["accuracy"])
