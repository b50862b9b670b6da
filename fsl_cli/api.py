"""fsl in Python, for notebooks and scripts: the same runs as on the command line.

    import fsl_cli

    results = fsl_cli.train(["algo=protonet", "dataset=glyphs", "train.iterations=200"])
    harder = fsl_cli.evaluate(results.folder, ["task.ways=10"])
    model = fsl_cli.load(results.folder)
    answer = model.predict(support_x, support_y, query_x)
    table = fsl_cli.read_runs("outputs/train")

Overrides are the words of the command line. Nothing is printed but what the command line prints; problems are raised as
`fsl_cli.FslError`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fsl_cli.errors import FslError
from fsl_cli.results.results import Results
from fsl_cli.run.model import Model

if TYPE_CHECKING:
    import pandas

Folder = str | os.PathLike[str]


def train(overrides: Sequence[str] = ()) -> Results:
    """Meta-train, validate and test one run, as ``fsl train`` does.

    Args:
        overrides: for example ``["algo=maml", "dataset=omniglot", "hydra.run.dir=outputs/mine"]``.

    Returns:
        The results of the test; ``results.folder`` is the run folder.

    Raises:
        FslError: a problem of the overrides, the data or the device; or ``eval.episodes=0``, which has no results.
        KeyboardInterrupt: it was interrupted; a checkpoint has been saved.
    """
    from fsl_cli.run.plan import plan_run
    from fsl_cli.run.train import train as run

    plan = plan_run(list(overrides))
    if plan.jobs[0].settings.eval.episodes == 0:
        raise FslError("0 leaves no results to return", where="eval.episodes", hint="use at least 2, or fsl train")
    results = run(plan)
    assert results is not None
    return results


def evaluate(run: Folder, overrides: Sequence[str] = ()) -> Results:
    """Meta-test a trained run again, as ``fsl eval`` does.

    Args:
        run: the folder of the run.
        overrides: for example ``["task.ways=20", "eval.episodes=2000"]``.

    Returns:
        The results; ``results.folder`` is where they were written.

    Raises:
        FslError: a problem of the run, the overrides, the data or the device.
    """
    from fsl_cli.run.trained import plan_test, test_again

    return test_again(plan_test(run, list(overrides)))


def load(run: Folder, overrides: Sequence[str] = ()) -> Model:
    """Open a trained run to predict with it.

    Args:
        run: the folder of the run.
        overrides: as for `evaluate`, for example ``["eval.checkpoint=last", "hardware.device=cpu"]``.

    Raises:
        FslError: a problem of the run, the overrides or the device.
    """
    from fsl_cli.run.trained import open_run

    return Model(open_run(run, list(overrides)))


def read_runs(*folders: Folder) -> pandas.DataFrame:
    """Every run in these folders and below, one row each, to be analysed with pandas.

    Args:
        folders: run folders, sweeps, or folders that hold them; none: ``outputs``.

    Returns:
        A table with the columns ``folder`` and ``state``, ``results.*`` (such as ``results.accuracy.mean``) and ``config.*``
        (such as ``config.algo.inner_lr``); a column is empty where a run has no such value.

    Raises:
        FslError: pandas is not installed, or a folder does not exist.
    """
    from fsl_cli.results.records import records

    try:
        import pandas
    except ImportError as error:
        raise FslError("pandas is not installed", where="fsl_cli.read_runs", hint="pip install pandas") from error
    places = [Path(folder).expanduser() for folder in folders or ("outputs",)]
    for place in places:
        if not place.is_dir():
            raise FslError("does not exist", where=str(place), hint="name a run folder, or one that holds some")
    return pandas.DataFrame(records(places))
