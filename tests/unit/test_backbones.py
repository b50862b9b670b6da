"""Backbones against plain torch networks with the same weights, and against learn2learn's own networks."""

from __future__ import annotations

import copy
import importlib
import itertools
import subprocess
import sys

import pytest
import torch
from problems import random_episodes
from torch import nn

from fsl_cli.algos.maml import MAML
from fsl_cli.backbones.batch_norm import BatchNorm, statistics_from
from fsl_cli.backbones.conv4 import Conv4
from fsl_cli.backbones.feature_maps import FeatureMaps
from fsl_cli.backbones.mlp import MLP
from fsl_cli.backbones.r2d2net import R2D2Net
from fsl_cli.backbones.resnet12 import ResNet12, squares
from fsl_cli.backbones.wrn28 import WRN28
from fsl_cli.errors import FslError
from fsl_cli.optional import learn2learn
from fsl_cli.run.parts import feature_width


def images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def parameters(net: nn.Module) -> int:
    return sum(each.numel() for each in net.parameters())


def randomise_batch_norm(net: nn.Module) -> None:
    """Set weights and averages of batch normalisation to values other than 0 and 1, which would hide errors."""
    torch.manual_seed(0)
    for layer in net.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d, BatchNorm)):
            layer.weight.data.uniform_(0.5, 1.5)
            layer.bias.data.normal_(0, 0.3)
            layer.running_mean.normal_(0, 0.3)
            layer.running_var.uniform_(0.5, 1.5)


def values(net: nn.Module) -> list[torch.Tensor]:
    """Parameters and buffers, layer after layer."""
    return [value for key, value in net.state_dict().items() if not key.endswith("num_batches_tracked")]


def copy_into(target: nn.Module, source: nn.Module) -> None:
    for mine, theirs in zip(values(target), values(source), strict=True):
        assert mine.shape == theirs.shape
        mine.copy_(theirs)


# --- conv4


def test_conv4_pooled_twice_is_relationnets_embedding():
    theirs = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=0), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 8, 3, padding=0), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
    )
    randomise_batch_norm(theirs)
    mine, x = Conv4((1, 28, 28), filters=8, downsample="max_pool_twice"), images(5, 1, 28, 28)
    copy_into(mine, theirs)
    assert theirs(x).shape == (5, 8, 5, 5)
    torch.testing.assert_close(mine(x), theirs(x).flatten(1), rtol=1e-5, atol=1e-5)
    assert FeatureMaps(mine, (1, 28, 28)).shape == (8, 5, 5)
    Conv4((1, 10, 10), downsample="max_pool_twice")(images(2, 1, 10, 10))
    with pytest.raises(FslError, match="9x10 images are too small for max_pool_twice, which halves them two times"):
        Conv4((1, 9, 10), downsample="max_pool_twice")


def plain_conv4(channels: int, filters: int, stride: bool, slope: float = 0.0) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs in (channels, filters, filters, filters):
        convolution = nn.Conv2d(inputs, filters, 3, stride=2 if stride else 1, padding=1)
        layers += [convolution, nn.BatchNorm2d(filters), nn.LeakyReLU(slope), *([] if stride else [nn.MaxPool2d(2)])]
    return nn.Sequential(*layers)


@pytest.mark.parametrize("slope", [0.0, 0.1])
@pytest.mark.parametrize("pool", [None, "mean", "flatten"])
@pytest.mark.parametrize("downsample", ["stride", "max_pool"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 35, 40)], ids=str)
def test_conv4_matches_a_plain_torch_network(downsample, shape, pool, slope):
    theirs = plain_conv4(shape[0], 8, downsample == "stride", slope)
    randomise_batch_norm(theirs)
    mine = Conv4(shape, filters=8, downsample=downsample, pool=pool, negative_slope=slope)
    copy_into(mine, theirs)
    x = images(5, *shape)

    def expected(x):
        features = theirs(x)
        mean = downsample == "stride" if pool is None else pool == "mean"
        return features.mean((-2, -1)) if mean else features.flatten(1)

    torch.testing.assert_close(mine(x), expected(x), rtol=1e-5, atol=1e-6)
    copy_into(mine, theirs)  # the averages have moved
    theirs.eval()
    with statistics_from(mine, "running"):
        torch.testing.assert_close(mine(x), expected(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("downsample", ["stride", "max_pool"])
def test_conv4_has_the_parameters_of_the_papers(downsample):
    first, other = 1 * 64 * 9 + 64 + 2 * 64, 64 * 64 * 9 + 64 + 2 * 64  # weights, bias, scale and shift
    assert parameters(Conv4((1, 28, 28), downsample=downsample)) == first + 3 * other == 111_936
    assert parameters(plain_conv4(1, 64, downsample == "stride")) == 111_936


@pytest.mark.parametrize(
    ("downsample", "shape", "width"),
    [
        ("stride", (1, 28, 28), 10),
        ("stride", (3, 84, 84), 10),
        ("stride", (1, 3, 5), 10),
        ("max_pool", (1, 28, 28), 10),
        ("max_pool", (3, 84, 84), 250),
        ("max_pool", (1, 16, 35), 20),
    ],
    ids=str,
)
def test_conv4_widths(downsample, shape, width):
    net = Conv4(shape, filters=10, downsample=downsample)
    assert net(images(2, *shape)).shape == (2, width)
    assert feature_width(net, shape) == width


def test_flattened_maps_of_strided_convolutions_are_the_features_of_reptiles_code():
    net = Conv4((1, 28, 28), pool="flatten")
    assert net(images(2, 1, 28, 28)).shape == (2, 2 * 2 * 64)
    assert feature_width(net, (1, 28, 28)) == 256
    assert list(net.state_dict()) == list(Conv4((1, 28, 28)).state_dict())


def test_max_pool_needs_sixteen_pixels():
    Conv4((1, 16, 16), downsample="max_pool")
    with pytest.raises(FslError, match=r"backbone.downsample: 15x16 images are too small for max_pool.*downsample=stride"):
        Conv4((1, 15, 16), downsample="max_pool")


def test_stride_variant_starts_with_xavier_weights_and_zero_biases():
    """Glorot & Bengio 2010, eq. 16: uniform up to sqrt(6 / (fan in + fan out))."""
    torch.manual_seed(0)
    for layer in Conv4((1, 28, 28)).modules():
        if isinstance(layer, nn.Conv2d):
            bound = (6 / (9 * (layer.in_channels + layer.out_channels))) ** 0.5
            assert 0.97 * bound < layer.weight.abs().max() <= bound
            assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
            assert not layer.bias.any()


def test_max_pool_variant_starts_as_pytorch_does():
    torch.manual_seed(0)
    mine = Conv4((1, 28, 28), downsample="max_pool")
    torch.manual_seed(0)
    theirs = plain_conv4(1, 64, stride=False)
    assert all(map(torch.equal, values(mine), values(theirs)))


# --- mlp


def test_mlp_matches_a_plain_torch_network():
    theirs = nn.Sequential(
        nn.Flatten(),
        *(nn.Linear(3 * 4 * 5, 7), nn.BatchNorm1d(7), nn.ReLU()),
        *(nn.Linear(7, 6), nn.BatchNorm1d(6), nn.ReLU()),
    )
    randomise_batch_norm(theirs)
    mine = MLP((3, 4, 5), widths=[7, 6])
    copy_into(mine, theirs)
    x = images(8, 3, 4, 5)
    torch.testing.assert_close(mine(x), theirs(x), rtol=1e-5, atol=1e-6)
    assert feature_width(mine, (3, 4, 5)) == 6


def test_mlp_has_mamls_widths():
    sizes = [784, 256, 128, 64, 64]
    expected = sum(inputs * outputs + 3 * outputs for inputs, outputs in itertools.pairwise(sizes))
    assert parameters(MLP((1, 28, 28))) == expected == 247_296


@pytest.mark.parametrize("widths", [[], [64, 0], [-1]], ids=str)
def test_invalid_mlp_widths_are_refused(widths):
    with pytest.raises(FslError, match=r"backbone.widths: .* is not a list of layer widths \(e.g. \[256,64\]\)"):
        MLP((1, 28, 28), widths=widths)


# --- learn2learn's networks


def theirs(name: str, **options) -> nn.Module:
    models = importlib.import_module(f"learn2learn.vision.models.{name}")
    net = {"resnet12": "ResNet12Backbone", "wrn28": "WRN28Backbone"}[name]
    torch.manual_seed(0)
    net = getattr(models, net)(**options)
    randomise_batch_norm(net)
    return net


@pytest.mark.parametrize(("wider", "channels", "width"), [(True, 3, 640), (False, 1, 512)])
def test_resnet12_is_learn2learns(wider, channels, width):
    reference = theirs("resnet12", wider=wider, channels=channels, dropblock_dropout=0.0)
    mine = ResNet12((channels, 84, 84), wider=wider)
    copy_into(mine, reference)
    assert parameters(mine) == parameters(reference)
    x = images(2, channels, 84, 84)
    with torch.no_grad():
        with statistics_from(mine, "running"):
            out = mine(x)
            torch.testing.assert_close(out, reference.eval()(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mine(x), reference.train()(x), rtol=1e-3, atol=1e-4)
    assert out.shape == (2, width)
    assert out.std() > 0.01


def test_resnet12_takes_small_images():
    net = ResNet12((1, 28, 28), wider=False)
    assert feature_width(net, (1, 28, 28)) == 512
    assert feature_width(ResNet12((1, 16, 16), wider=False), (1, 16, 16)) == 512
    with pytest.raises(FslError, match="images are 15x16, resnet12 needs at least 16x16"):
        ResNet12((1, 15, 16))
    with pytest.raises(FslError, match="images are 28x28, resnet12 needs at least 80x80"):
        ResNet12((1, 28, 28), dropblock=0.1)


def test_dropped_squares_are_learn2learns():
    module = importlib.import_module("learn2learn.vision.models.resnet12")
    corners = (torch.rand(3, 4, 6, 7, generator=torch.Generator().manual_seed(0)) < 0.1).float()
    for side in (1, 4, 5):
        assert torch.equal(
            1 - squares(corners, side),
            module.DropBlock(side)._compute_block_mask(corners),
        )


def test_dropblock_works_in_an_inner_loop():
    torch.manual_seed(0)
    algorithm = MAML(ResNet12((1, 80, 80), wider=False, dropblock=0.3), 512, 2).train()
    losses = [algorithm.loss(random_episodes(2, 1, 1, 2, size=80).to(dtype=torch.float32)).loss.item() for _ in range(2)]
    assert losses[0] != losses[1]


def test_dropblock_drops_while_training_only_and_keeps_no_count():
    """learn2learn counts forward passes, tests included, outside of the state dict: a resumed run would differ."""
    net, resumed = (ResNet12((1, 80, 80), wider=False, dropblock=0.3) for _ in range(2))
    resumed.load_state_dict(net.state_dict())
    for block in net.modules():
        if hasattr(block, "num_batches_tracked"):
            block.num_batches_tracked = 20_000  # as after a long training
    x = images(1, 1, 80, 80)
    with torch.no_grad():
        dropped = []
        for each in (net, resumed):
            torch.manual_seed(0)
            dropped.append(each.train()(x))
        assert torch.equal(*dropped)
        assert not torch.allclose(dropped[0], net.eval()(x))
        assert torch.equal(net(x), resumed.eval()(x))


# --- r2d2net


def test_r2d2net_matches_a_plain_torch_network():
    layers, sizes = [], [1, 96, 192, 384, 512]
    for inputs, outputs, stride in zip(sizes, sizes[1:], (2, 2, 2, 1), strict=False):
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
        layers.append(nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.MaxPool2d(2, stride), nn.LeakyReLU(0.1)))
    plain = nn.Sequential(*layers)
    randomise_batch_norm(plain)
    mine, x = R2D2Net((1, 28, 28)), images(3, 1, 28, 28)
    copy_into(mine, plain)
    plain.eval()
    third = plain[:3](x)
    with statistics_from(mine, "running"):
        features = mine(x)
    torch.testing.assert_close(features[:, :1536], nn.functional.max_pool2d(third, 2, 1).flatten(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(features[:, 1536:], plain[3](third).flatten(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "wider", "smaller"),
    [((1, 28, 28), 1536 + 2048, 2 * 256), ((3, 84, 84), 31104 + 41472, 2 * 5184), ((3, 32, 32), 3456 + 4608, 2 * 576)],
    ids=str,
)
def test_r2d2net_has_the_widths_of_the_authors_code(shape, wider, smaller):
    assert R2D2Net(shape)(images(1, *shape)).shape == (1, wider)
    assert feature_width(R2D2Net(shape, wider=False), shape) == smaller


def test_r2d2net_drops_only_while_training_and_needs_sixteen_pixels():
    net, x = R2D2Net((1, 16, 16), wider=False, dropout=0.5), images(2, 1, 16, 16)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))
    with pytest.raises(FslError, match="15x16, r2d2net needs at least 16x16"):
        R2D2Net((1, 15, 16))


@pytest.mark.slow
def test_wrn28_is_learn2learns():
    reference = theirs("wrn28")
    mine = WRN28((3, 84, 84))
    copy_into(mine, reference)
    assert parameters(mine) == parameters(reference)
    x = images(1, 3, 84, 84)
    with torch.no_grad(), statistics_from(mine, "running"):
        out = mine(x)
        torch.testing.assert_close(out, reference.eval()(x), rtol=1e-4, atol=1e-5)
    assert out.shape == (1, 640)
    assert out.std() > 0.01


def test_wrn28_takes_the_channels_and_the_size_of_the_images():
    net = WRN28((1, 8, 8), dropout=0.3)
    assert feature_width(net, (1, 8, 8)) == 640
    assert parameters(net) == 36_482_880 - 2 * 16 * 9  # two channels fewer than the 36.5 million of three
    assert {layer.p for layer in net.modules() if isinstance(layer, nn.Dropout)} == {0.3}


def test_no_layer_of_torch_keeps_its_own_statistics():
    nets = [Conv4((1, 28, 28)), MLP((1, 28, 28)), ResNet12((1, 28, 28), wider=False), WRN28((1, 8, 8))]
    for net in nets:
        assert not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in net.modules())
        assert any(isinstance(layer, BatchNorm) for layer in net.modules())


@pytest.mark.parametrize("net", [ResNet12, WRN28])
def test_missing_learn2learn_is_one_line_that_says_how_to_get_it(net, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "learn2learn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "learn2learn", None)  # importing it raises ImportError
    with pytest.raises(FslError) as error:
        net((3, 84, 84))
    message = str(error.value)
    assert message.startswith(f"backbone={net.__name__.lower()}: needs learn2learn, which cannot be imported")
    assert "make setup" in message
    assert "\n" not in message


def test_learn2learn_is_found_again():
    """The test above must not leave a broken module behind."""
    assert learn2learn("algorithms.maml", needed_for="this test").MAML


@pytest.mark.slow
def test_learn2learn_is_imported_without_output():
    script = "from fsl_cli.optional import learn2learn; learn2learn('algorithms.maml', needed_for='x')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


# --- feature_width


class Wrong(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_feature_width_refuses_modules_that_are_not_backbones():
    with pytest.raises(FslError, match=r"backbone: gives \[2, 1, 4, 4\] for two examples, not \[2, features\]"):
        feature_width(Wrong(), (1, 4, 4))
    with pytest.raises(FslError, match=r"backbone: does not accept \[3, 28, 28\] examples: "):
        feature_width(Conv4((1, 28, 28)), (3, 28, 28))


@pytest.mark.parametrize("training", [True, False])
def test_feature_width_leaves_the_backbone_unchanged(training):
    net = Conv4((1, 28, 28)).train(training)
    before, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    feature_width(net, (1, 28, 28))
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert net.training is training
