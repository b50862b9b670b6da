"""Feature maps are the input of a backbone's pooling layer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fsl_cli.backbones.batch_norm import statistics_from
from fsl_cli.backbones.conv4 import Conv4
from fsl_cli.backbones.feature_maps import FeatureMaps
from fsl_cli.backbones.mlp import MLP


@pytest.mark.parametrize(
    ("downsample", "image_shape", "shape"),
    [("stride", (1, 28, 28), (6, 2, 2)), ("max_pool", (1, 28, 28), (6, 1, 1)), ("max_pool", (3, 84, 40), (6, 5, 2))],
    ids=str,
)
def test_the_maps_of_conv4_are_the_output_of_its_blocks(downsample, image_shape, shape):
    net = Conv4(image_shape, filters=6, downsample=downsample)
    before = copy.deepcopy(net)
    maps = FeatureMaps(net, image_shape)
    assert maps.shape == shape
    images = torch.rand(3, *image_shape)
    torch.testing.assert_close(maps(images), before.blocks(images))
    pooled = maps(images).mean((-2, -1)) if downsample == "stride" else maps(images).flatten(1)
    torch.testing.assert_close(pooled, before(images))


def test_flat_features_are_maps_of_one_position():
    net = MLP((1, 4, 4), widths=[7])
    maps = FeatureMaps(net, (1, 4, 4))
    assert maps.shape == (7, 1, 1)
    images = torch.rand(3, 1, 4, 4)
    torch.testing.assert_close(maps(images)[..., 0, 0], net(images))


def test_a_network_with_layers_after_pooling_is_unchanged():
    class Middle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool, self.head = nn.AvgPool2d(1), nn.Linear(2 * 4 * 4, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.pool(x).flatten(1))

    net = Middle()
    maps = FeatureMaps(net, (2, 4, 4))
    assert maps.shape == (5, 1, 1)
    assert isinstance(net.pool, nn.AvgPool2d)


def test_determining_the_shape_leaves_the_backbone_unchanged():
    net = Conv4((1, 16, 16), filters=3).train()
    before = copy.deepcopy(net.state_dict())
    maps = FeatureMaps(net, (1, 16, 16))
    assert net.training
    assert not any(layer._forward_hooks for layer in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    with statistics_from(maps, "running"):
        assert maps(torch.rand(2, 1, 16, 16)).shape == (2, *maps.shape)
