"""Settings to objects: the data set, the backbone, the algorithm and the hardware of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fsl_cli.algos.common.algorithm import Algorithm
from fsl_cli.compute import hardware
from fsl_cli.datasets.adapted import adapted_to
from fsl_cli.datasets.dataset import Dataset, SplitName
from fsl_cli.episodes import Problem, Task
from fsl_cli.episodes.normalization import Normalization, NormalizedSampler, normalized
from fsl_cli.episodes.sampler import Sampler
from fsl_cli.episodes.training_augmentation import NONE, AugmentedSampler
from fsl_cli.episodes.uneven_sampler import UnevenSampler
from fsl_cli.errors import FslError, first_line, raise_all
from fsl_cli.run.normalizing import normalization_of, saved_normalization
from fsl_cli.settings import build
from fsl_cli.settings.schema import AugmentSettings, DataSettings, ModelSettings
from fsl_cli.show.console import progress, warn


@dataclass(frozen=True)
class Parts:
    """What a run is made of.

    Attributes:
        dataset: the data set.
        algorithm: the algorithm with its backbone, on the device.
        hardware: device, precision, chunk.
        task: shape of the tested episodes.
        train_task: shape of the training episodes.
        trained_on: name of the data set of the training, in a test on another one; otherwise None.
        normalization: of the images; None: pixels in 0..1 as they are, or the examples are no images.
    """

    dataset: Dataset
    algorithm: Algorithm
    hardware: hardware.Hardware
    task: Task
    train_task: Task
    trained_on: str | None = None
    normalization: Normalization | None = None

    @property
    def parameters(self) -> int:
        """Number of meta-learned parameters."""
        return sum(parameter.numel() for parameter in self.algorithm.parameters())

    @property
    def problem(self) -> Problem:
        """What the tested episodes ask to be predicted."""
        return self.dataset.problem(self.task)

    def sampler(self, split: SplitName, seed: int, augment: AugmentSettings = AugmentSettings()) -> Sampler:  # noqa: B008
        """Episodes of a split as the algorithm sees them: with random changes, where there are any, and normalised."""
        if augment == NONE:
            return self.raw_sampler(split, seed, self.normalization)
        drawn = AugmentedSampler(self.raw_sampler(split, seed), augment)
        return NormalizedSampler(drawn, self.normalization) if self.normalization else drawn

    def raw_sampler(self, split: SplitName, seed: int, normalization: Normalization | None = None) -> Sampler:
        """Episodes of a split as they are: of the training shape for ``train``, of the tested shape otherwise."""
        task = self.train_task if split == "train" else self.task
        return sampler_of(self.dataset, split, task, seed, self.hardware.device, normalization)

    def as_they_are(self, sampler: Sampler, split: SplitName, seed: int) -> Sampler:
        """Episodes of a sampler with images as they are: the given sampler itself, unless it changes them."""
        changed = self.normalization is not None or isinstance(sampler, AugmentedSampler)
        return self.raw_sampler(split, seed) if changed else sampler


def assemble(
    settings: ModelSettings,
    *,
    trained_ways: int | None,
    splits: tuple[SplitName, ...],
    trained_shape: tuple[int, ...] | None = None,
    trained_on: str | None = None,
    saved: Mapping[str, Any] | None = None,
) -> Parts:
    """Build everything, from the same random state every time.

    Args:
        settings: validated settings.
        trained_ways: ways of the task the algorithm is or was trained for; None where there are no classes.
        splits: the splits this run is going to draw episodes from.
        trained_shape: of the examples that the algorithm was trained on, to which those of the data set are adapted; None:
            they are used as they are.
        trained_on: see `Parts`.
        saved: the checkpoint of a trained run, whose images are normalised as in its training, whatever the data set is now.

    Raises:
        FslError: whatever the data, the device or the network objects to.
    """
    chosen = settings.hardware
    used = hardware.set_up(
        chosen.device,
        chosen.precision,
        chosen.threads,
        chosen.deterministic,
        chosen.task_chunk,
        warn,
        compile=chosen.compile,
    )
    dataset = build_dataset(settings)
    if trained_shape is not None:
        dataset = adapted_to(dataset, trained_shape, "the trained network")
    task = task_of(settings)
    problem = dataset.problem(Task(trained_ways or 1, task.shots, task.queries))
    hardware.seed_everything(settings.seed)
    shape = dataset.example_shape
    backbone = build_backbone(settings.backbone, dataset)
    features = feature_width(backbone, shape)  # before the number of classes is asked for, which can take minutes of packing
    algorithm = build.build(
        settings.algo,
        "algo",
        {
            "backbone": backbone,
            "features": features,
            "ways": problem.outputs,
            "engine": chosen.engine,
            "classes": dataset.classes(),
            "image_shape": shape,
            "problem": problem,
        },
    ).to(used.device)
    train_task = _of_the_classes_there(algorithm.train_task(task), task, _most_ways(dataset), splits)
    of_algorithm = algorithm.task_problems(task) + _of_sizes(algorithm, task, train_task, splits) if problem.has_ways else []
    raise_all(_task_problems(dataset, splits, task, train_task) + of_algorithm + algorithm.example_problems(shape))
    if algorithm.compares_inputs and getattr(dataset, "vocabulary", None) is not None:
        what, hint = "compares the numbers of words, which say nothing", "use algo.space=network, or dataset.encoder=tfidf"
        raise FslError(f"{settings.algo.get('name')} {what}", where="algo", hint=hint)
    if chosen.task_chunk == "auto":
        examples = max(each.most_examples for each in (train_task, task))
        used.task_chunk = hardware.automatic_chunk(used.device, examples * math.prod(shape))
    normalization = normalization_of(settings.dataset, dataset) if saved is None else saved_normalization(saved, shape)
    return Parts(dataset, algorithm, used, task, train_task, trained_on, normalization)


def _most_ways(dataset: Dataset) -> int | None:
    """Ways that a training episode can have; None where there are no classes. Of a mixture, fewer than there are classes."""
    return dataset.most_ways() if hasattr(dataset, "most_ways") else dataset.classes()


def build_dataset(settings: DataSettings) -> Dataset:
    """The data set, which reads no files yet.

    Raises:
        FslError: it refuses its options.
    """
    folders = {"data_dir": settings.data_dir, "cache_dir": settings.cache_dir, "progress": progress, "warn": warn}
    dataset: Dataset = build.build(settings.dataset, "dataset", folders)
    return dataset


def sampler_of(
    dataset: Dataset,
    split: SplitName,
    task: Task,
    seed: int,
    device: torch.device | str = "cpu",
    normalization: Normalization | None = None,
) -> Sampler:
    """Episodes of a split, whose sizes may be drawn, with images normalised unless ``normalization`` is None.

    Raises:
        FslError: the data set cannot draw them.
    """
    even = normalized(dataset.sampler(split, task.smallest, seed, device), normalization)
    return even if task.drawing is None else UnevenSampler(even, task, split, seed)


def task_of(settings: DataSettings) -> Task:
    """The shape of the tested episodes; one way where there are no classes."""
    task = settings.task
    return Task.drawn(
        task.ways or 1,
        task.shots,
        task.queries,
        shots_per=task.shots_per,
        query_dirichlet=task.query_dirichlet,
        sampling=task.sampling,
    )


def _of_sizes(algorithm: Algorithm, task: Task, train_task: Task, splits: Sequence[SplitName]) -> list[FslError]:
    """Episodes of different sizes that the algorithm cannot be given."""
    used = [train_task] * ("train" in splits) + [task] * any(split != "train" for split in splits)
    problems = algorithm.train_problems(train_task) if "train" in splits else []
    if not (algorithm.masks or algorithm.uneven or all(each.balanced for each in used)):
        what = f"{type(algorithm).__name__} cannot be given classes of uneven shots or queries"
        hint = "task.shots_per=episode task.query_dirichlet=null task.sampling=uniform has even ones"
        problems.append(FslError(what, where="task", hint=hint))
    return problems


def _of_the_classes_there(train_task: Task, task: Task, classes: int | None, splits: Sequence[SplitName]) -> Task:
    """The training task with all classes of the training split where it has fewer than the algorithm's own number of ways."""
    if classes is None or not task.ways <= classes < train_task.ways:
        return train_task
    if "train" in splits:
        warn(f"training with {classes} ways instead of {train_task.ways}: the training split has no more classes")
    return train_task.with_at_most(classes)


def _task_problems(dataset: Dataset, splits: Sequence[SplitName], task: Task, train_task: Task) -> list[FslError]:
    """What the splits cannot give; a number that is the algorithm's own is called ``algo.train_shots`` and so on."""
    tasks: dict[SplitName, Task] = {split: task for split in splits if split != "train"}
    if "train" not in splits or train_task == task:
        return dataset.task_problems(dict.fromkeys(splits, task))
    found = {each.where: each for each in dataset.task_problems(tasks)}
    own = {f"task.{name}" for name, size in task.sizes.items() if size != train_task.sizes[name]}
    for each in dataset.task_problems({"train": train_task}):
        names = (each.where or "").split(", ")
        where = ", ".join(name.replace("task.", "algo.train_") if name in own else name for name in names)
        found.setdefault(where, FslError(each.what, where=where, hint=each.hint))
    return list(found.values())


def build_optimizer(node: Mapping[str, Any], parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer that ``train.optimizer`` describes, after a trial step on copies of the parameters.

    Raises:
        FslError: there is nothing to learn, or it refuses its options or these parameters, or needs more than their
            gradients to take a step.
    """
    if not parameters:
        hint = "use backbone=mlp; algo=nearest backbone=mlp compares examples as they are"
        raise FslError("leaves the algorithm nothing to learn", where="backbone", hint=hint)
    copies = [nn.Parameter(torch.zeros_like(each)) for each in parameters]
    for each in copies:
        each.grad = torch.zeros_like(each)
    trial = build.build(node, "train.optimizer", {"params": copies})
    try:
        trial.step()
    except Exception as error:  # each has its own way to say so
        what = f"{node['_target_']} cannot be used here: {first_line(error)}"
        hint = "use torch.optim.Adam, AdamW, SGD or another one like them"
        raise FslError(what, where="train.optimizer", hint=hint) from error
    return build.build(node, "train.optimizer", {"params": parameters})


def build_backbone(node: Mapping[str, Any], dataset: Dataset) -> nn.Module:
    """The backbone for the examples of a data set.

    Raises:
        FslError: it is one for images or for words, and the examples are none, or the reverse.
    """
    shape, words = dataset.example_shape, getattr(dataset, "vocabulary", None)
    if build.takes(node, "backbone", "vocabulary") and words is None:
        what = f"{node.get('name')} works on words, and an example of {dataset.name} has the shape {list(shape)}"
        raise FslError(what, where="backbone", hint="use dataset=text dataset.encoder=tokens, or another backbone")
    if words is not None and not build.takes(node, "backbone", "vocabulary"):
        what = f"{node.get('name')} does not work on words, and dataset.encoder is tokens"
        raise FslError(what, where="backbone", hint="use backbone=text_cnn, or dataset.encoder=wordllama")
    if build.takes(node, "backbone", "image_shape") and len(shape) != 3:
        what = f"{node.get('name')} works on images, and an example of {dataset.name} has the shape {list(shape)}"
        raise FslError(what, where="backbone", hint="use backbone=mlp")
    backbone: nn.Module = build.build(node, "backbone", {"image_shape": shape, "example_shape": shape, "vocabulary": words})
    return backbone


def feature_width(backbone: nn.Module, shape: tuple[int, ...]) -> int:
    """Width D of a backbone's output ``[B, D]``, found by running it once.

    Raises:
        FslError: the backbone does not accept such examples, or its output has another shape.
    """
    training = backbone.training
    try:
        with torch.no_grad():
            output = backbone.eval()(torch.zeros(2, *shape))
    except RuntimeError as error:
        reason = first_line(error)
        raise FslError(f"does not accept {list(shape)} examples: {reason}", where="backbone") from error
    finally:
        backbone.train(training)
    if output.ndim != 2:
        raise FslError(f"gives {list(output.shape)} for two examples, not [2, features]", where="backbone")
    return output.shape[1]
