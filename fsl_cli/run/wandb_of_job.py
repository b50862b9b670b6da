"""The W&B run of a job: its settings, what the environment adds to them, and what follows from the job."""

from __future__ import annotations

from fsl_cli.results import wandb_environment as environment
from fsl_cli.results.run_folder import RunFolder
from fsl_cli.results.wandb_run import WandbRun
from fsl_cli.run import lines
from fsl_cli.run.plan import Job


def start_wandb(job: Job, folder: RunFolder, run_id: str | None) -> WandbRun | None:
    """Start the W&B run of a job, or none if W&B is disabled.

    Args:
        job: what its settings leave open, the environment decides (``WANDB_PROJECT`` and so on), then the job.
        folder: the run folder.
        run_id: id of the W&B run to go on with; None: a new one.

    Raises:
        FslError: W&B cannot start.
    """
    chosen = job.settings.wandb
    if environment.resolve_mode(chosen.mode) == "disabled":
        return None
    sweep = job.sweep.name if job.sweep else None
    name = environment.variable("NAME") or f"{lines.title(job.settings)} seed {job.settings.seed}"
    return WandbRun(
        folder.path,
        job.config,
        mode=chosen.mode,
        project=chosen.project or environment.variable("PROJECT") or "fsl",
        entity=chosen.entity,
        group=chosen.group or environment.variable("RUN_GROUP") or sweep,
        name=chosen.name or (name if job.number is None else f"{name}, job {job.number}"),
        tags=environment.tags() if chosen.tags is None else chosen.tags,
        run_id=run_id or environment.run_id(job.number),
        goes_on=run_id is not None,
    )
