"""A backbone without its final pooling, for methods that compare images position by position."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FeatureMaps(nn.Module):
    """Maps images to the feature maps that a backbone pools and flattens into its features.

    The pooling layer is the backbone's attribute ``pool``; its input are the feature maps. If a backbone has no ``pool``,
    or if more than flattening follows it, its features are treated as maps of height and width 1.

    Args:
        backbone: maps images ``[B, C, H, W]`` to features ``[B, D]``; its ``pool`` is replaced by the identity.
        image_shape: ``(C, H, W)``.

    Attributes:
        shape: ``(channels, height, width)`` of the maps.
    """

    def __init__(self, backbone: nn.Module, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.backbone = backbone
        self.shape: tuple[int, ...] = (_seen(backbone, image_shape, backbone).shape[1], 1, 1)
        pool = getattr(backbone, "pool", None)
        if isinstance(pool, nn.Module):
            backbone.pool = nn.Identity()
            maps = _seen(backbone, image_shape, backbone.pool)
            width = _seen(backbone, image_shape, backbone).shape[1]
            if maps.ndim == 4 and maps[0].numel() == width:
                self.shape = tuple(maps.shape[1:])
            else:
                backbone.pool = pool

    def forward(self, images: Tensor) -> Tensor:
        """Feature maps ``[B, *shape]`` of images ``[B, C, H, W]``."""
        return self.backbone(images).unflatten(1, self.shape)


def _seen(backbone: nn.Module, image_shape: tuple[int, int, int], layer: nn.Module) -> Tensor:
    """The output of ``layer`` when the backbone runs on two images."""
    outputs: list[Tensor] = []
    training = backbone.training
    hook = layer.register_forward_hook(lambda layer, inputs, output: outputs.append(output))
    try:
        with torch.no_grad():
            device = next((each.device for each in backbone.parameters()), None)
            backbone.eval()(torch.zeros(2, *image_shape, device=device))
    finally:
        hook.remove()
        backbone.train(training)
    return outputs[-1]
