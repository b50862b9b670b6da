"""Translates PyTorch modules into layers with hand-written derivatives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from fsl_cli.backbones.batch_norm import BatchNorm
from fsl_cli.inner.fast.layers import Layer, Product
from fsl_cli.inner.fast.network import Network, Packing
from fsl_cli.inner.fast.normalisation import BatchNormLayer
from fsl_cli.inner.fast.piecewise_linear import Flatten, MaxPool, MeanOverPositions, ReLU, Windows


def network_of(module: nn.Module) -> Network | None:
    """The layers of a module composed of `torch.nn.Sequential` and the types in ``_TRANSLATIONS``; None for any other module.

    A bias directly before batch normalisation is dropped, since subtracting the mean cancels it. A layer may occur more
    than once only if it has no parameters: a parameter has only one name.
    """
    found = list(_leaves(module, ""))
    parameters = [id(each) for _, leaf in found for each in leaf.parameters()]
    if len(parameters) != len(set(parameters)):
        return None
    layers: list[Layer] = []
    packing: dict[str, Packing] = {}
    for index, (prefix, leaf) in enumerate(found):
        before = type(found[index - 1][1]) if index else None
        after = type(found[index + 1][1]) if index + 1 < len(found) else None
        if _is_hooked(leaf):
            return None
        if type(leaf) is BatchNorm:
            layers.append(BatchNormLayer(leaf, prefix, relu=after is nn.ReLU))
        elif not (type(leaf) is nn.ReLU and before is BatchNorm):  # that ReLU is part of the BatchNormLayer
            translated = _TRANSLATIONS.get(type(leaf), _unknown)(leaf, prefix)
            if translated is None:
                return None
            layers += translated
        for name, value in leaf.named_parameters():
            if not (name == "bias" and after is BatchNorm):
                packing[f"{prefix}{name}"] = _pack_weight if value.ndim > 1 else _pack_row
    for layer in layers:
        if isinstance(layer, Product) and layer.bias not in packing:
            layer.bias = None
    return Network(layers, packing) if layers else None


def _leaves(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules in execution order, each with the prefix of its parameters' names."""
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward and not _is_hooked(module):
        for name, child in module._modules.items():  # named_children skips repeated modules
            yield from _leaves(child, f"{prefix}{name}.")
    else:
        yield prefix, module


def _is_hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _pack_weight(value: Tensor) -> Tensor:
    """``[F, C, k, k]`` to ``[k*k*C, F]``, ``[F, K]`` to ``[K, F]``."""
    return value.movedim(1, -1).flatten(1).T.contiguous()


def _pack_row(value: Tensor) -> Tensor:
    """``[C]`` to ``[1, C]``."""
    return value.unsqueeze(0)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _bias(layer: Any, prefix: str) -> str | None:
    return None if layer.bias is None else f"{prefix}bias"


def _convolution(layer: nn.Conv2d, prefix: str) -> list[Layer] | None:
    if layer.groups != 1 or _pair(layer.dilation) != (1, 1) or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return None
    windows = Windows(_pair(layer.kernel_size), _pair(layer.stride), _pair(layer.padding))
    return [windows, Product(f"{prefix}weight", _bias(layer, prefix))]


def _linear(layer: nn.Linear, prefix: str) -> list[Layer]:
    return [Product(f"{prefix}weight", _bias(layer, prefix))]


def _max_pool(layer: nn.MaxPool2d, prefix: str) -> list[Layer] | None:
    if layer.ceil_mode or _pair(layer.dilation) != (1, 1):
        return None
    return [MaxPool(_pair(layer.kernel_size), _pair(layer.stride), _pair(layer.padding))]


def _mean(layer: nn.AdaptiveAvgPool2d, prefix: str) -> list[Layer] | None:
    return [MeanOverPositions()] if layer.output_size in (1, (1, 1)) else None


def _flatten(layer: nn.Flatten, prefix: str) -> list[Layer] | None:
    return [Flatten()] if (layer.start_dim, layer.end_dim) == (1, -1) else None


def _relu(layer: nn.ReLU, prefix: str) -> list[Layer]:
    return [ReLU()]


def _leaky_relu(layer: nn.LeakyReLU, prefix: str) -> list[Layer]:
    return [ReLU(layer.negative_slope)]


def _nothing(layer: nn.Identity, prefix: str) -> list[Layer]:
    return []


def _unknown(layer: nn.Module, prefix: str) -> None:
    return None


_TRANSLATIONS: dict[type[nn.Module], Callable[[Any, str], list[Layer] | None]] = {
    nn.Conv2d: _convolution,
    nn.Linear: _linear,
    nn.MaxPool2d: _max_pool,
    nn.AdaptiveAvgPool2d: _mean,
    nn.Flatten: _flatten,
    nn.ReLU: _relu,
    nn.LeakyReLU: _leaky_relu,
    nn.Identity: _nothing,
}
