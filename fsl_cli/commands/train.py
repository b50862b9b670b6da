"""`fsl train`: meta-train, validate and test one run, or every job of a sweep."""

from __future__ import annotations

from collections.abc import Sequence

from fsl_cli.compute import processes
from fsl_cli.run.plan import check, plan_run, plan_sweep
from fsl_cli.settings import overrides
from fsl_cli.settings.compose import Composer
from fsl_cli.settings.words import as_typed

_SWEEP = {"-m", "--multirun"}


def main(arguments: Sequence[str]) -> int:
    """Run the verb. Returns the exit code."""
    flags, words = overrides.split_flags(arguments)
    if not {flag.split("=")[0] for flag in flags} <= _SWEEP:  # Hydra's own: they only show something
        check(words)
        Composer("train").show(flags, as_typed(words))
        return 0
    if flags:
        plan = processes.current().from_first(lambda: plan_sweep(words))
        from fsl_cli.run.train import train_sweep  # needs torch, which problems of the command line are not to wait for

        return train_sweep(plan)
    plan = processes.current().from_first(lambda: plan_run(words))
    from fsl_cli.run.train import train

    train(plan)
    return 0
