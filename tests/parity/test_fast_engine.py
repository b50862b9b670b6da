"""The fast engine agrees with the loop and with finite differences, in float64, for every supported layer."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from problems import TinyNet, random_episodes, sampler
from small_training import train_settings
from torch import nn

from fsl_cli.algos.maml import MAML
from fsl_cli.algos.protonet import ProtoNet
from fsl_cli.backbones.batch_norm import BatchNorm
from fsl_cli.backbones.conv4 import Conv4
from fsl_cli.backbones.mlp import MLP
from fsl_cli.backbones.resnet12 import ResNet12
from fsl_cli.compute.hardware import Hardware
from fsl_cli.episodes import Episodes, Examples, Regression, Task
from fsl_cli.errors import FslError
from fsl_cli.inner.fast.layers import Layer, Product
from fsl_cli.inner.fast.normalisation import BatchNormLayer
from fsl_cli.inner.fast.piecewise_linear import Flatten, MaxPool, MeanOverPositions, ReLU, Windows
from fsl_cli.inner.fast.translation import network_of
from fsl_cli.training import Training

EPISODES = random_episodes()  # three tasks of 6x6 images


def strided() -> nn.Sequential:
    convolutions = (
        nn.Conv2d(1, 4, 3, 2, 1),
        BatchNorm(4),
        nn.ReLU(),
        nn.Conv2d(4, 3, (3, 2), 1, (0, 1)),
        nn.ReLU(),
        BatchNorm(3),
    )
    return nn.Sequential(nn.Sequential(*convolutions), nn.AdaptiveAvgPool2d(1), nn.Identity(), nn.Flatten())


def pooled() -> nn.Sequential:
    first = (nn.Conv2d(1, 4, 3, padding=1, bias=False), BatchNorm(4), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    return nn.Sequential(*first, nn.Conv2d(4, 2, 2), nn.ReLU(), nn.Flatten())


def linear() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), BatchNorm(8), nn.ReLU(), nn.Linear(8, 5, bias=False), nn.ReLU())


def leaky() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 3, 3, 2, 1), BatchNorm(3), nn.LeakyReLU(0.2), nn.Identity(), nn.Flatten())


NETS = {"strided": (strided, 3), "pooled": (pooled, 8), "linear": (linear, 5), "leaky": (leaky, 27)}
LAYERS = {Product, Windows, Flatten, MeanOverPositions, ReLU, MaxPool, BatchNormLayer}


def maml(engine: str, net: str, **options) -> MAML:
    torch.manual_seed(0)
    build, width = NETS[net]
    algorithm = MAML(build(), width, EPISODES.ways, engine, inner_lr=0.3, **options).double()
    for parameter in algorithm.net.parameters():  # nothing at 0 or 1, where an error would not show
        nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.5)
    return algorithm


def loss_and_gradients(algorithm: MAML) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    algorithm.zero_grad()
    loss = algorithm.loss(EPISODES).loss
    loss.backward()
    return loss.detach(), {
        name: torch.zeros_like(each) if each.grad is None else each.grad.clone() for name, each in algorithm.named_parameters()
    }


VARIANTS = [
    {"inner_steps": steps, "first_order": first_order, "adapt": adapt, "inner_lr_learning": learning, "batch_norm": mode}
    for steps, first_order, adapt, learning, mode in itertools.product(
        (1, 3), (False, True), ("all", "head", "body"), ("none", "per_layer", "per_parameter"), ("transductive", "inductive")
    )
]


def name(variant: dict) -> str:
    return "-".join(str(value) for value in variant.values())


def test_every_layer_is_in_one_of_the_nets():
    def kinds(layer: type) -> set[type]:
        return {layer, *(each for child in layer.__subclasses__() for each in kinds(child))}

    networks = [network_of(build()) for build, _ in NETS.values()]
    used = {type(layer) for network in networks for layer in [*network.start, *network.layers]}
    assert used == LAYERS
    assert {each for each in kinds(Layer) if not each.__abstractmethods__} == LAYERS
    assert {layer.relu for network in networks for layer in network.layers if type(layer) is BatchNormLayer} == {True, False}
    assert {layer.bias is None for network in networks for layer in network.layers if type(layer) is Product} == {True, False}


@pytest.mark.parametrize("options", [{}, {"first_order": True}, {"inner_lr_learning": "per_parameter"}], ids=str)
def test_engines_agree_on_regression(options):
    generator = torch.Generator().manual_seed(1)
    support, query = (
        Examples(*(torch.randn(3, rows, size, generator=generator, dtype=torch.float64) for size in (1, 2))) for rows in (5, 4)
    )
    episodes, found = Episodes(support, query, Regression(2)), []
    for engine in ("loop", "vmap", "fast"):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(1, 8), nn.ReLU())
        algorithm = MAML(net, 8, 2, engine, inner_lr=0.1, inner_steps=3, **options).double()
        nn.init.normal_(algorithm.net.head.weight)
        loss = algorithm.loss(episodes).loss
        loss.backward()
        found.append([loss.detach(), *(each.grad for each in algorithm.parameters())])
    assert min(each.abs().max() for each in found[0]) > 1e-4
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("variant", VARIANTS, ids=name)
def test_fast_agrees_with_the_loop(net, variant):
    reference_loss, reference = loss_and_gradients(maml("loop", net, **variant))
    loss, gradients = loss_and_gradients(maml("fast", net, **variant))
    assert max(each.abs().max() for each in reference.values()) > 1e-3
    torch.testing.assert_close(loss, reference_loss, rtol=1e-10, atol=1e-12)
    for key in reference:
        torch.testing.assert_close(
            gradients[key], reference[key], rtol=1e-8, atol=1e-11, msg=lambda text, key=key: f"{key} {text}"
        )


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("options", [{}, {"adapt": "body"}, {"inner_lr_learning": "per_parameter"}], ids=str)
def test_fast_agrees_with_the_loop_where_batch_norm_is_not_adapted(net, first_order, options):
    options = {"inner_steps": 3, "first_order": first_order, "adapt_batch_norm": False, **options}
    reference_loss, reference = loss_and_gradients(maml("loop", net, **options))
    loss, gradients = loss_and_gradients(maml("fast", net, **options))
    torch.testing.assert_close(loss, reference_loss, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradients, reference, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(
    "options",
    [{}, {"inner_lr_learning": "per_parameter"}, {"adapt": "head"}, {"adapt": "body"}, {"adapt_batch_norm": False}],
    ids=str,
)
def test_second_order_gradient_agrees_with_finite_differences(net, options):
    algorithm = maml("fast", net, inner_steps=2, **options)
    _, gradients = loss_and_gradients(algorithm)
    step = 1e-6
    for key, parameter in algorithm.named_parameters():
        flat = parameter.data.view(-1)
        for position in {0, len(flat) // 2, len(flat) - 1}:
            values = []
            for sign in (1, -1):
                before = flat[position].item()
                flat[position] = before + sign * step
                values.append(algorithm.loss(EPISODES).loss.item())
                flat[position] = before
            numeric = (values[0] - values[1]) / (2 * step)
            assert gradients[key].view(-1)[position].item() == pytest.approx(numeric, rel=1e-4, abs=1e-7), key


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("steps", [0, 2])
def test_predictions_agree_with_the_loop(net, steps):
    fast, loop = (maml(engine, net, test_inner_steps=steps, batch_norm="inductive") for engine in ("fast", "loop"))
    torch.testing.assert_close(fast.predict(EPISODES), loop.predict(EPISODES), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    "options",
    [{}, {"downsample": "max_pool"}, {"pool": "flatten"}, {"downsample": "max_pool", "negative_slope": 0.01}],
    ids=str,
)
def test_backbones_in_single_precision(options):
    """The default networks at the size of Omniglot's images: agreement up to float32 rounding."""
    torch.manual_seed(0)
    episodes = random_episodes(ways=5, shots=1, queries=1, tasks=2, size=28).to(dtype=torch.float32)
    found = []
    for engine in ("fast", "vmap"):
        torch.manual_seed(0)
        features = 32 if "pool" in options else 8
        algorithm = MAML(Conv4((1, 28, 28), filters=8, **options), features, 5, engine, inner_steps=2, inner_lr=0.1)
        loss = algorithm.loss(episodes).loss
        loss.backward()
        found.append(
            [loss.detach(), *(each.grad for each in algorithm.parameters() if each.grad is not None and each.ndim > 1)]
        )
    for mine, theirs in zip(*found, strict=True):
        assert (mine - theirs).norm() <= 1e-3 * theirs.norm()


def test_bf16_rounds_only_the_factors_of_products():
    """Close to float32, forward and backward, with float32 weights, gradients and logits; not equal to it."""
    episodes = random_episodes(ways=3, shots=2, queries=3, tasks=2, size=12).to(dtype=torch.float32)
    found = []
    for enabled in (False, True):
        torch.manual_seed(0)
        algorithm = MAML(Conv4((1, 12, 12), filters=8), 8, 3, "fast", inner_steps=2, inner_lr=0.05)
        nn.init.normal_(algorithm.net.head.weight)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            step = algorithm.loss(episodes)
        step.loss.backward()  # outside autocast, as training does it
        gradient = torch.cat([each.grad.flatten() for each in algorithm.parameters() if each.grad is not None])
        assert (gradient.dtype, step.outputs.dtype) == (torch.float32, torch.float32)
        found.append((step.loss.item(), gradient))
    (exact_loss, exact), (loss, gradient) = found
    assert loss == pytest.approx(exact_loss, rel=0.02)
    assert loss != exact_loss
    assert F.cosine_similarity(gradient, exact, dim=0) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("make", [lambda net: MAML(net, 8, 3, inner_steps=2), lambda net: ProtoNet(net, train_ways=None)])
def test_compiled_training_takes_the_same_steps_and_compiles_once(make, monkeypatch):
    """Uses `torch.compile` with tracing but without code generation, which takes minutes."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    weights = []
    for compiled in (False, True):
        torch.manual_seed(0)
        algorithm = make(MLP((1, 12, 12), widths=[8]))
        hardware = Hardware(torch.device("cpu"), "fp32", 4, compile=compiled)
        optimizer = torch.optim.SGD(algorithm.parameters(), lr=0.1)
        training = Training(algorithm, optimizer, sampler(Task(3, 1, 2)), train_settings(), hardware)
        for _ in range(3):
            training.step()
        weights.append(torch.cat([each.detach().flatten() for each in algorithm.parameters()]))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    torch.testing.assert_close(weights[1], weights[0])


# --- what it takes


def test_fast_supports_conv4_and_mlp_and_auto_chooses_it():
    assert network_of(Conv4((1, 28, 28)))
    assert network_of(Conv4((3, 28, 28), downsample="max_pool"))
    assert network_of(MLP((1, 28, 28)))
    for net, engine in (("strided", "fast"), ("pooled", "fast")):
        loss, gradients = loss_and_gradients(maml("auto", net, inner_steps=2))
        same_loss, same = loss_and_gradients(maml(engine, net, inner_steps=2))
        assert loss == same_loss
        assert all(torch.equal(gradients[key], same[key]) for key in same)


class Shuffled(nn.Sequential):
    def forward(self, x):
        return super().forward(x.flip(0))


def hooked(net: nn.Module | None = None) -> nn.Module:
    net = net or linear()[2]
    net.register_forward_hook(lambda module, inputs, output: 2 * output)
    return nn.Sequential(net)


def tied() -> nn.Module:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    net[2].weight = net[0].weight
    return net


@pytest.mark.parametrize(
    "module",
    [
        TinyNet(),
        Shuffled(nn.Linear(2, 2)),
        nn.Sequential(nn.Flatten(), Shuffled(nn.Linear(2, 2))),
        hooked(),
        nn.Sequential(nn.Conv2d(2, 2, 3, groups=2)),
        nn.Sequential(nn.Conv2d(2, 2, 3, dilation=2)),
        nn.Sequential(nn.Conv2d(2, 2, 3, padding="same")),
        nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect")),
        nn.Sequential(nn.Conv2d(2, 2, 3), nn.MaxPool2d(2, ceil_mode=True)),
        nn.Sequential(nn.Conv2d(2, 2, 3), nn.MaxPool2d(2, dilation=2)),
        nn.Sequential(nn.Conv2d(2, 2, 3), nn.AdaptiveAvgPool2d(2)),
        nn.Sequential(nn.Conv2d(2, 2, 3), nn.Flatten(2)),
        nn.Sequential(nn.Linear(2, 2), nn.Tanh()),
        nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)),
        nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)),
        nn.Sequential(*[nn.Linear(2, 2)] * 2),  # one layer in two places
        tied(),
        hooked(nn.Sequential(nn.Linear(2, 2))),
    ],
    ids=lambda module: "-".join(type(each).__name__ for each in module.modules()),
)
def test_unsupported_modules_use_vmap(module):
    assert network_of(module) is None


def test_a_layer_without_parameters_may_occur_several_times():
    relu, found = nn.ReLU(), []
    for engine in ("fast", "loop"):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), relu, nn.Linear(8, 8), relu, nn.Linear(8, 8), relu)
        found.append(MAML(net, 8, 3, engine, inner_steps=2).double().loss(EPISODES).loss)
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)


def test_fast_refuses_an_unsupported_network_and_auto_uses_vmap():
    with pytest.raises(FslError, match="fast is not valid"):
        MAML(TinyNet(), 4, 3, "fast")
    found = []
    for engine in ("auto", "vmap"):
        torch.manual_seed(0)
        found.append(MAML(TinyNet(), 4, 3, engine).double().loss(EPISODES).loss)
    assert found[0] == found[1]


def test_resnet12_uses_vmap():
    pytest.importorskip("learn2learn")
    assert network_of(ResNet12((3, 16, 16))) is None


# --- the layers by themselves


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [((3, 3), (2, 2), (1, 1)), ((2, 3), (1, 2), (0, 2)), ((1, 1), (3, 1), (0, 0))]
)
def test_windows_match_unfold_and_its_transpose(kernel, stride, padding):
    x = torch.randn(2, 3, 7, 6, 4, dtype=torch.float64)
    saved: dict = {}
    windows = Windows(kernel, stride, padding)
    y = windows.forward({}, x, saved)
    images = x.flatten(0, 1).permute(0, 3, 1, 2)
    unfolded = F.unfold(images, kernel, padding=padding, stride=stride).mT.unflatten(2, (4, -1)).mT.flatten(2)
    torch.testing.assert_close(y.flatten(0, 1).flatten(1, 2), unfolded)
    dy = torch.randn_like(y)
    torch.testing.assert_close((windows.adjoint(dy, saved) * x).sum(), (dy * y).sum())
