"""Shared by the tests of MANN, NTM, DNC and SNAIL: learning from a sequence."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from problems import TinyNet, changed, random_episodes
from small_training import accuracy, is_at_chance, noise_classes, train

from fsl_cli.algos.common.algorithm import Algorithm
from fsl_cli.algos.common.cell_learner import Cell, CellLearner
from fsl_cli.backbones.mlp import MLP
from fsl_cli.episodes import Episodes, EpisodeSampler, Task
from fsl_cli.episodes.class_images import ClassImages
from fsl_cli.episodes.randomness import permutations

EXACT = {"rtol": 1e-9, "atol": 1e-10}
SHAPE = (2, 4, 4)
TASK = Task(3, 1, 3)


def patterns(classes: int = 500, images: int = 20, seed: int = 0) -> ClassImages:
    """A random pattern for each class, drawn with a little noise.

    They need not be faint: an untrained network with a memory is at chance whatever it sees. But there have to be many,
    or it learns the classes and not to use its memory.
    """
    draw = np.random.default_rng(seed)
    shape = (classes, images, *SHAPE)
    pixels = np.where(draw.random(shape) < 0.05, 0.5, draw.random((classes, 1, *SHAPE)) > 0.5)
    return ClassImages(
        torch.from_numpy((pixels * 255).astype(np.uint8)).flatten(0, 1),
        np.full(classes, images),
        list(map(str, range(classes))),
    )


TRAIN, TEST = patterns(seed=0), patterns(classes=100, seed=1)  # other patterns


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape) + seed), dtype=torch.float64)


def weights(*shape: int, seed: int = 0) -> torch.Tensor:
    """Positive numbers that sum to one along the last axis."""
    return (2 * normal(*shape, seed=seed)).softmax(-1)


def random_state(cell: Cell, count: int) -> Any:
    """A state in the middle of a sequence, in float64."""
    state = cell.start(count)
    for step in range(3):
        _, state = cell(normal(count, cell.interface.in_features - cell.controller.hidden_size, seed=step), state)
    return state


def learner(make: type[Algorithm], seed: int = 0, **options: Any) -> Algorithm:
    torch.manual_seed(seed)
    return make(MLP(SHAPE, widths=[32]), 32, TASK.ways, **options)


def sampler(task: Task = TASK, **how: Any) -> EpisodeSampler:
    return EpisodeSampler(TEST, "test", task, 0, **how)


def train_sampler(algorithm: Algorithm) -> EpisodeSampler:
    return EpisodeSampler(TRAIN, "train", algorithm.train_task(TASK), 0)


def trained(algorithm: Algorithm, iterations: int = 150, lr: float = 0.005) -> Algorithm:
    """Train for seconds; the algorithm must be near chance before."""
    assert accuracy(algorithm, sampler()) < 0.48
    train(algorithm, train_sampler(algorithm), lr=lr, iterations=iterations, meta_batch=8)
    return algorithm


def shuffled_support(make: type[Algorithm]) -> type[Algorithm]:
    """A broken copy: support labels are shuffled in training, so they are unrelated to the queries."""

    class Shuffled(make):
        def loss(self, episodes: Episodes):
            order = permutations(episodes.seeds, episodes.support.y.shape[1], "test")
            return super().loss(changed(episodes, support_y=episodes.support.y.gather(1, order)))

    return Shuffled


def assert_noise_is_at_chance(algorithm: Algorithm) -> None:
    """Any leak from labels to predictions would give an accuracy above chance."""
    assert is_at_chance(algorithm, EpisodeSampler(noise_classes(), "test", TASK, 0))


def with_tiny_net(make: type[Algorithm], **options: Any) -> Algorithm:
    """In float64, with scales and shifts of the normalisations that are not the initial ones."""
    torch.manual_seed(0)
    algorithm = make(TinyNet(), 4, 3, **options).double()
    for norm in (algorithm.embedding.backbone.norm, algorithm.embedding.norm):
        norm.weight.data.uniform_(0.5, 2)
        norm.bias.data.normal_()
    return algorithm


def seeded(episodes: Episodes) -> Episodes:
    return replace(episodes, seeds=torch.arange(len(episodes)) + 5)


def features(algorithm: Algorithm, episodes: Episodes, task: int, batch_norm: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of the support and query images of an episode, normalised by hand, one image after the other."""
    net, last = algorithm.embedding.backbone, algorithm.embedding.norm
    support, query = ([net.conv(image[None])[0] for image in images[task]] for images in (episodes.support.x, episodes.query.x))
    seen = torch.stack(support + query if batch_norm == "transductive" else support)
    assert algorithm.transductive is (batch_norm == "transductive")
    mean, std = (seen.mean((0, 2, 3)), (seen.var((0, 2, 3), correction=0) + net.norm.eps).sqrt())

    def feature(maps: torch.Tensor) -> torch.Tensor:
        whitened = (maps.permute(1, 2, 0) - mean) / std * net.norm.weight + net.norm.bias
        pooled = whitened.tanh().mean((0, 1))
        return (pooled - pooled.mean()) / (pooled.var(correction=0) + last.eps).sqrt() * last.weight + last.bias

    return torch.stack(list(map(feature, support))).detach(), torch.stack(list(map(feature, query))).detach()


def check_episode_the_slow_way(make: type[CellLearner], batch_norm: str, **options: Any) -> None:
    """Every query by itself at the end of its own sequence, from the start, one image after the other."""
    algorithm, episodes = with_tiny_net(make, batch_norm=batch_norm, **options), seeded(random_episodes())
    logits = algorithm.predict(episodes)
    orders = permutations(episodes.seeds, 6, "support")
    for task in range(len(episodes)):
        (x, queries), y = features(algorithm, episodes, task, batch_norm), episodes.support.y[task]
        for position, query in enumerate(queries):
            state = algorithm.cell.start(1)
            image, label = torch.zeros(4, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
            for index in [*orders[task].tolist(), None]:
                now = query if index is None else x[index]
                output, state = algorithm.cell(torch.cat([now, image, label])[None], state)
                if index is not None:
                    image, label = now, torch.eye(3, dtype=torch.float64)[y[index]]
            torch.testing.assert_close(logits[task, position], output[0].detach(), **EXACT)


def check_gradients(make: type[Algorithm], **options: Any) -> None:
    """Every parameter has a gradient that matches finite differences."""
    algorithm, episodes = with_tiny_net(make, **options), seeded(random_episodes(ways=3, shots=1))
    algorithm.loss(episodes).loss.backward()
    reference = copy.deepcopy(algorithm)
    for name, parameter in algorithm.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
        flat, position = parameter.data.view(-1), int(parameter.grad.abs().argmax())
        before, losses = flat[position].item(), []
        for sign in (1, -1):
            flat[position] = before + sign * 1e-6
            losses.append(algorithm.loss(episodes).loss.item())
            flat[position] = before
        difference = torch.tensor((losses[0] - losses[1]) / 2e-6, dtype=torch.float64)
        torch.testing.assert_close(parameter.grad.view(-1)[position], difference, rtol=1e-4, atol=1e-8)
    assert all(torch.equal(a, b) for a, b in zip(algorithm.parameters(), reference.parameters(), strict=True))
