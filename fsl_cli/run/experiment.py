"""One run from settings to results: set up, train, test, report."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fsl_cli.compute import processes
from fsl_cli.compute.signals import held_back
from fsl_cli.datasets.dataset import SplitName
from fsl_cli.episodes.signal import check_signal
from fsl_cli.episodes.training_augmentation import augment_problems
from fsl_cli.errors import FslError, raise_all
from fsl_cli.evaluation import evaluate, values_of_sets
from fsl_cli.results import checkpoint
from fsl_cli.results.results import Results
from fsl_cli.results.tracking import JsonLines, Trackers, read_metrics
from fsl_cli.run import lines
from fsl_cli.run.episode_picture import draw_validation_episode
from fsl_cli.run.lifecycle import Life
from fsl_cli.run.meta_test import meta_test
from fsl_cli.run.parts import assemble, build_optimizer
from fsl_cli.run.plan import Job
from fsl_cli.run.resuming import resume_point
from fsl_cli.run.wandb_of_job import start_wandb
from fsl_cli.settings.saved import completed
from fsl_cli.settings.sizes import largest
from fsl_cli.show import console
from fsl_cli.statistics.intervals import t_interval
from fsl_cli.training import Hooks, Training


class Experiment:
    """A training run: its parts, where it starts, and its trackers.

    Args:
        job: what to do.
        life: the run's folder, status and log; begun by `run`.

    Raises:
        FslError: a part cannot be built; nothing has been written then.
    """

    def __init__(self, job: Job, life: Life) -> None:
        self.job, self.life, self.folder = job, life, life.folder
        self.settings, self.config = job.settings, job.config
        self.processes = processes.current()
        self.start = self.processes.from_first(lambda: resume_point(self.settings.resume, self.config, self.folder))
        splits: tuple[SplitName, ...] = ("train", "val", "test") if self.settings.eval.episodes else ("train", "val")
        saved = checkpoint.load(self.start) if self.start else None
        self.parts = assemble(self.settings, trained_ways=largest(self.settings.task.ways), splits=splits, saved=saved)
        augment, algorithm = self.settings.train.augment, self.parts.algorithm
        raise_all(augment_problems(augment, self.parts.dataset.example_shape, algorithm.labels_classes))
        self.training = Training(
            algorithm,
            build_optimizer(self.settings.train.optimizer, list(algorithm.parameters())),
            self.parts.sampler("train", self.settings.seed, augment),
            self.settings.train,
            self.parts.hardware,
        )
        self.validation = self.parts.sampler("val", self.settings.eval.seed)
        training = self.parts.as_they_are(self.training.sampler, "train", self.settings.seed)
        check_signal(training, "train", console.warn)
        check_signal(self.parts.as_they_are(self.validation, "val", self.settings.eval.seed), "val", console.warn)
        self.headline = self.parts.problem.headline
        self.wandb_id: str | None = None
        if self.start is not None and saved is not None:
            self._restore(self.start, saved)

    def run(self) -> Results | None:
        """Train, test the chosen checkpoint and write everything.

        Returns:
            The results; None if the test split stays closed.
        """
        with ExitStack() as stack:
            trackers = self.processes.together(lambda: self._open(stack))
            self._train(trackers)
            if self.settings.eval.episodes:
                return self._test(trackers)
            console.say("the test split stays closed (eval.episodes=0)")
            return None

    def _open(self, stack: ExitStack) -> Trackers:
        """Take the folder and start the trackers, which ``stack`` closes."""
        # resume=auto begins anew where an earlier run has ended before its first checkpoint
        claim = self.start is None and self.settings.resume != "auto"
        new = not self.folder.config.exists()
        self.life.details["iteration"] = self.training.progress.iteration
        self.life.begin(self.config, self.parts.hardware.device, self.job.command, claim=claim)
        if self.folder.silent:
            return Trackers()
        try:
            wandb = start_wandb(self.job, self.folder, self.wandb_id)
        except FslError:
            if new:  # nothing of a run is in the folder: the next try may have it
                self.life.give_back()
            raise
        if wandb:
            self.life.at_end.append(wandb.finish)
        if self.start is not None:
            self._copy_history(self.start)
        history = JsonLines(self.folder.metrics, upto=self.training.progress.iteration)
        stack.callback(history.finish)
        if wandb:
            wandb.replay(read_metrics(self.folder.metrics))
        trackers = Trackers(history, wandb)
        self.wandb_id = trackers.wandb_id
        self._header(trackers)
        return trackers

    def _header(self, trackers: Trackers) -> None:
        console.say(lines.header(self.settings, self.parts), style="bold")
        lines.say_data(self.parts)
        lines.say_normalization(self.parts)
        console.say(f"folder  {self.folder.path}")
        console.say(f"W&B     {trackers.where}")
        if self.parts.hardware.compile:
            console.say("compile on: the first iteration takes minutes, which count as training time")
        if self.start is not None:
            console.say(f"resume  {self.start}, iteration {self.training.progress.iteration}")

    def _train(self, trackers: Trackers) -> None:
        total, progress = self.settings.train.iterations, self.training.progress
        with console.TrainingProgress(total, progress.iteration) as bar:

            def log(iteration: int, values: Mapping[str, float]) -> None:
                trackers.log(iteration, values)
                if "train/loss" in values:
                    numbers = lines.training_numbers(self.headline, values)
                    bar.numbers(iteration, numbers, self.training.seconds_left(values["train/seconds_per_iteration"]))
                else:
                    best = progress.best_iteration == iteration
                    console.say(lines.validation_line(self.headline, iteration, total, values, best))

            try:
                self.training.run(Hooks(log, self._validate, self._save, bar.advance))
            except KeyboardInterrupt:
                self.life.details["iteration"] = progress.iteration
                with held_back():  # a second Ctrl-C must not leave half a checkpoint
                    checkpoint.save(self.folder.last, self._payload(), self.folder.write)
                raise
        score, at = progress.best_score, progress.best_iteration
        console.say(lines.trained_line(self.headline, progress.iteration, progress.seconds, score, at))

    def _validate(self) -> dict[str, float]:
        scores = evaluate(self.parts.algorithm, self.validation, self.settings.train.val_episodes, self.parts.hardware)
        intervals = {name: t_interval(values) for name, values in scores.values.items()}
        means = {f"val/{name}": interval.mean for name, interval in intervals.items()}
        sets = {
            f"val/{name}/{label}": t_interval(values).mean
            for label, by_name in values_of_sets(self.validation, scores.values).items()
            for name, values in by_name.items()
        }
        return {**means, f"val/{self.headline.name}_ci95": intervals[self.headline.name].ci95, **sets}

    def _save(self, best: bool) -> None:
        payload = self._payload()
        if best:
            kept = ("algo", "config", "progress", "example_shape", "normalization")
            checkpoint.save(self.folder.best, {name: payload[name] for name in kept}, self.folder.write)
        checkpoint.save(self.folder.last, payload, self.folder.write)
        progress = self.training.progress
        self.life.status("running", iteration=progress.iteration)
        if progress.validated < progress.iteration:  # a signal asked for it
            console.say(f"saved {progress.iteration}/{self.settings.train.iterations}  {self.folder.last}")

    def _payload(self) -> dict[str, Any]:
        normalization = self.parts.normalization
        return {
            **self.training.state_dict(),
            "config": dict(self.config),
            "example_shape": list(self.parts.dataset.example_shape),
            "normalization": normalization.as_dict() if normalization else None,
            "wandb_id": self.wandb_id,
        }

    def _restore(self, path: Path, payload: Mapping[str, Any]) -> None:
        checkpoint.check_same_configuration(completed(payload["config"]), completed(self.config), path)
        checkpoint.load_weights(self.parts.algorithm, payload, path)
        if "optimizer" not in payload:
            raise FslError("holds weights only", where=str(path), hint=f"go on from {path.parent / 'last.pt'}")
        self.training.load_state_dict(payload)
        if path == self.folder.last:
            self.wandb_id = payload["wandb_id"]
        if not (path.parent / "best.pt").is_file():  # what was best is not here to be tested: it starts with a validation
            self.training.progress.best_score, self.training.progress.validated = None, 0

    def _copy_history(self, path: Path) -> None:
        """Bring along what an earlier run folder knows: its metrics and its best checkpoint."""
        for source, target in (
            (path.parent / "best.pt", self.folder.best),
            (path.parent.parent / "metrics.jsonl", self.folder.metrics),
        ):
            if source != target and source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)

    def _test(self, trackers: Trackers) -> Results:
        """The only place that opens the test split of a training run."""
        path = self.folder.best if self.settings.eval.checkpoint == "best" else self.folder.last
        payload = self.processes.from_first(lambda: checkpoint.load(path))
        checkpoint.load_weights(self.parts.algorithm, payload, path)
        results = meta_test(self.settings, self.parts, self.folder, path.stem, payload["progress"]["iteration"])
        summary = {
            f"test/{name}_{key}": value for name, score in results.scores.items() for key, value in score.numbers().items()
        }
        trackers.test(
            self.training.progress.iteration,
            {f"test/{self.headline.name}": results.score.mean},
            summary,
        )
        if results.curves:
            trackers.picture(self.training.progress.iteration, "test/curves", self.folder.curves)
        if trackers.keeps_pictures:
            with tempfile.TemporaryDirectory() as scratch:
                picture = Path(scratch) / "episode.png"
                if draw_validation_episode(self.parts, self.validation, self.settings.eval.seed, picture):
                    trackers.picture(self.training.progress.iteration, "val/episode", picture)
        trackers.checkpoint(path, {f"test_{self.headline.name}": results.score.mean, **self.settings.task.described()})
        return results
