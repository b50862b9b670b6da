"""The convolutional network of texts: against a plain computation, under every algorithm, and only with its own words."""

from __future__ import annotations

from pathlib import Path

import command_line
import numpy as np
import pytest
import torch

from fsl_cli.algos.common.algorithm import Algorithm
from fsl_cli.backbones.text_cnn import TextCNN
from fsl_cli.episodes import Classification, EpisodeSampler, Task
from fsl_cli.episodes.class_images import ClassImages
from fsl_cli.errors import FslError
from fsl_cli.results.checkpoint import load_weights
from fsl_cli.run.parts import feature_width
from fsl_cli.settings import build
from fsl_cli.settings.conf_files import choices

WORDS = [f"word{number}" for number in range(20)]
RANDOM = np.random.default_rng(0)
TOKENS = np.where(RANDOM.random((60, 6)) < 0.5, np.arange(60)[:, None] // 10 + 2, RANDOM.integers(0, 22, (60, 6)))
CLASSES = ClassImages(torch.from_numpy(TOKENS.astype(np.int32)), np.full(6, 10), list("abcdef"))


def cnn(words: list[str] = WORDS, seed: int = 0, **options) -> TextCNN:
    torch.manual_seed(seed)
    return TextCNN(words, **{"embedding": 5, "filters": 4, "widths": [2, 3], **options})


def test_features_are_the_largest_responses_of_the_filters():
    net = cnn().double()
    texts = torch.tensor([[3, 4, 5, 0, 0], [2, 2, 1, 21, 7]], dtype=torch.int32)
    table = net.embedding.weight.detach().numpy().copy()
    assert table.shape == (22, 5)
    table[0] = 0  # padding
    expected = []
    for text in texts.numpy():
        features = []
        for convolution in net.convolutions:
            weight, bias = (each.detach().numpy() for each in (convolution.weight, convolution.bias))
            for number in range(4):
                width = weight.shape[2]
                windows = [table[text[first : first + width]] for first in range(len(text) - width + 1)]
                features.append(max(0, max((weight[number].T * window).sum() + bias[number] for window in windows)))
        expected.append(features)
    np.testing.assert_allclose(net(texts).detach(), expected, atol=1e-12)
    assert feature_width(net.float(), (5,)) == 8
    short = net(texts[:1, :1])  # is padded to the widest filter
    torch.testing.assert_close(short, net(torch.tensor([[3, 0, 0]])))


def test_dropout_is_of_training_only():
    net = cnn(dropout=0.5)
    texts = CLASSES.images[:5]
    assert not torch.equal(net(texts), net(texts))
    assert torch.equal(net.eval()(texts), net(texts))


def made(name: str, engine: str = "auto") -> Algorithm:
    config = command_line.composed(f"algo={name}", "backbone=mlp")["algo"]
    small = {"train_ways": 4, "train_shots": 2, "train_queries": 2, "space": "network", "inner_steps": 2, "test_epochs": 5}
    config |= {key: value for key, value in small.items() if key in config}
    runtime = {"backbone": cnn(), "features": 8, "ways": 3, "engine": engine, "classes": len(CLASSES)}
    return build.build(config, "algo", {**runtime, "image_shape": (6,), "problem": Classification(3)})


@pytest.mark.parametrize("name", choices("algo"))
def test_every_algorithm_learns_from_words(name: str):
    algorithm = made(name)
    episodes = EpisodeSampler(CLASSES, "train", algorithm.train_task(Task(3, 2, 2)), 0).batch(0, 2)
    assert episodes.support.x.dtype == torch.int32
    step = algorithm.loss(episodes)
    assert step.loss.isfinite()
    if name != "nearest":
        step.loss.backward()
        moved = [each.grad is not None and bool(each.grad.any()) for each in algorithm.parameters()]
        assert any(moved)
    logits = algorithm.eval().predict(EpisodeSampler(CLASSES, "test", Task(3, 2, 2), 0).batch(0, 2))
    assert logits.shape == (2, 6, 3)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", ["maml", "mamlpp", "imaml"])
def test_engines_agree_on_words(name: str):
    found = []
    episodes = EpisodeSampler(CLASSES, "train", Task(3, 2, 2), 0).batch(0, 3)
    for engine in ("vmap", "loop"):
        algorithm = made(name, engine).double()
        for parameter in algorithm.parameters():
            torch.manual_seed(parameter.numel())
            parameter.data += 0.2 * torch.randn(parameter.shape)
        step = algorithm.loss(episodes)
        step.loss.backward()
        found.append([step.loss.detach(), *(each.grad for each in algorithm.parameters() if each.grad is not None)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


def test_weights_of_other_words_are_refused():
    payload = {"algo": cnn(seed=1).state_dict()}
    same = cnn()
    load_weights(same, payload, Path("best.pt"))
    assert torch.equal(same.embedding.weight, payload["algo"]["embedding.weight"])
    with pytest.raises(FslError, match=r"best.pt: belongs to another configuration: it was trained with another vocabulary"):
        load_weights(cnn([*WORDS[1:], "another"]), payload, Path("best.pt"))
