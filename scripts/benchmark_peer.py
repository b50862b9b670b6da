"""The learn2learn 0.2.0 side of `scripts/benchmark.py`, used as in learn2learn's own examples."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from fsl_cli.episodes import Episodes, Task
from fsl_cli.episodes.class_images import ClassImages
from fsl_cli.optional import learn2learn


def imported(module: str) -> Any:
    """Import ``learn2learn.<module>``."""
    return learn2learn(module, needed_for="scripts/benchmark.py")


def omniglot_net(classifier: nn.Module, ways: int, device: torch.device) -> Any:
    """learn2learn's network for Omniglot, with the weights of ``classifier``."""
    net = imported("vision.models").OmniglotCNN(ways)
    mine = dict(classifier.named_parameters())
    with torch.no_grad():
        for index, block in enumerate(net.base):
            for layer, theirs in ((0, block.conv), (1, block.normalize)):
                for name in ("weight", "bias"):
                    getattr(theirs, name).copy_(mine[f"body.blocks.{index}.{layer}.{name}"])
        for name in ("weight", "bias"):
            getattr(net.classifier, name).copy_(mine[f"head.{name}"])
    return net.to(device)


def meta_learner(net: nn.Module, inner_lr: float) -> Any:
    """learn2learn's second-order MAML."""
    return imported("algorithms").MAML(net, lr=inner_lr, first_order=False)


def meta_step(maml: Any, episodes: Episodes, steps: int) -> float:
    """Outer gradient, one task at a time as in learn2learn's ``examples/vision/maml_omniglot.py``. Returns the mean loss."""
    maml.zero_grad()
    total = 0.0
    for task in range(len(episodes)):
        learner = maml.clone()
        for _ in range(steps):
            learner.adapt(F.cross_entropy(learner(episodes.support.x[task]), episodes.support.y[task]))
        loss = F.cross_entropy(learner(episodes.query.x[task]), episodes.query.y[task])
        loss.backward()
        total += loss.item()
    for parameter in maml.parameters():
        parameter.grad.div_(len(episodes))
    return total / len(episodes)


def write_pictures(images: ClassImages, folder: Path) -> None:
    """Write image files in Omniglot's layout, black on white, half of the classes per archive, and learn2learn's label index.

    Args:
        images: greyscale images.
        folder: output folder; must not contain such files yet.
    """
    labels: list[int] = []
    for index, (count, offset) in enumerate(zip(images.counts, images.offsets, strict=True)):
        archive = "images_background" if index < len(images) // 2 else "images_evaluation"
        place = folder / "omniglot-py" / archive / "Alphabet" / f"character{index:05d}"
        place.mkdir(parents=True)
        for drawing in range(count):
            picture = Image.fromarray(255 - images.images[offset + drawing, 0].numpy())
            picture.resize((105, 105)).convert("1").save(place / f"{drawing:02d}.png")
            labels.append(index)
    by_label = {index: [i for i, label in enumerate(labels) if label == index] for index in range(len(images))}
    book = {"labels_to_indices": by_label, "indices_to_labels": dict(enumerate(labels)), "labels": list(by_label)}
    (folder / "omniglot-bookkeeping.pkl").write_bytes(pickle.dumps(book))


def tasks(folder: Path, task: Task, device: torch.device) -> Callable[[], tuple[Tensor, ...]]:
    """learn2learn's Omniglot pipeline, as in its ``omniglot_tasksets``.

    Args:
        folder: written by `write_pictures`.
        task: shape of a task.
        device: device to which the tensors are moved, as in learn2learn's examples.

    Returns:
        A function that draws one task: support images and labels, query images and labels.
    """
    from torchvision import transforms
    from torchvision.datasets.omniglot import Omniglot

    # torchvision also checks for the archives, with their official checksums.
    Omniglot._check_integrity = lambda self: True
    data, vision = imported("data"), imported("vision")
    steps = [transforms.Resize(28, interpolation=Image.Resampling.LANCZOS), transforms.ToTensor(), lambda x: 1.0 - x]
    files = vision.datasets.FullOmniglot(root=str(folder), transform=transforms.Compose(steps), download=False)
    dataset = data.MetaDataset(files)
    per_class = task.shots + task.queries
    chain = [
        data.transforms.FusedNWaysKShots(dataset, n=task.ways, k=per_class),
        data.transforms.LoadData(dataset),
        data.transforms.RemapLabels(dataset),
        data.transforms.ConsecutiveLabels(dataset),
        vision.transforms.RandomClassRotation(dataset, [0.0, 90.0, 180.0, 270.0]),
    ]
    drawn = data.TaskDataset(dataset, task_transforms=chain)
    support = torch.arange(task.ways * per_class) % per_class < task.shots

    def one() -> tuple[Tensor, ...]:
        x, y = drawn.sample()
        x, y = x.to(device), y.to(device)
        return x[support], y[support], x[~support], y[~support]

    return one


def prototypical_accuracy(features: nn.Module, drawn: tuple[Tensor, ...]) -> float:
    """Accuracy of one task, as in learn2learn's ``examples/vision/protonet_miniimagenet.py``."""
    support_x, support_y, query_x, query_y = drawn
    with torch.no_grad():
        embedded = features(torch.cat([support_x, query_x]))
        classifier = imported("nn").PrototypicalClassifier(embedded[: len(support_y)], support_y)
        return (classifier(embedded[len(support_y) :]).argmax(-1) == query_y).float().mean().item()


def _image_folder(folder: Path) -> Any:
    """Torchvision's data set of a folder for each class."""
    from torchvision import datasets, transforms

    return datasets.ImageFolder(str(folder), transforms.ToTensor())


def tasks_of_folder(folder: Path, task: Task) -> Callable[[], tuple[Tensor, Tensor]]:
    """learn2learn's pipeline for image files, as in its ``benchmarks``. Returns a function that draws one task."""
    data = imported("data")
    dataset = data.MetaDataset(_image_folder(folder))
    chain = [
        data.transforms.FusedNWaysKShots(dataset, n=task.ways, k=task.shots + task.queries),
        data.transforms.LoadData(dataset),
        data.transforms.RemapLabels(dataset),
        data.transforms.ConsecutiveLabels(dataset),
    ]
    sample: Callable[[], tuple[Tensor, Tensor]] = data.TaskDataset(dataset, task_transforms=chain).sample
    return sample


def easyfsl_tasks(folder: Path, task: Task, workers: int) -> Callable[[], Any]:
    """Easyfsl's sampler and loader, as in its notebooks. Returns a function that draws one task.

    Args:
        folder: a folder for each class.
        task: shape of a task.
        workers: processes of the loader.
    """
    from easyfsl.datasets import WrapFewShotDataset
    from easyfsl.samplers import TaskSampler
    from torch.utils.data import DataLoader

    class Accepting:
        def __init__(self, data_source: None = None) -> None:
            """Accept what torch's `Sampler` no longer does and easyfsl 1.5.0 still passes."""

    made: Any = type("Tasks", (TaskSampler, Accepting), {})
    dataset = WrapFewShotDataset(_image_folder(folder))
    sampler = made(dataset, task.ways, task.shots, task.queries, n_tasks=10**6)
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=workers, collate_fn=sampler.episodic_collate_fn)
    tasks = iter(loader)
    return lambda: next(tasks)
