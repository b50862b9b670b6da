"""Batch normalisation with an explicit choice of statistics, against torch's layers and the plain equation."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fsl_cli.backbones.batch_norm import BatchNorm, convert_batch_norm, statistics_from

SHAPES = [(6, 3, 4, 5), (6, 3)]
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def layers(shape: tuple[int, ...], momentum: float = 0.1, eps: float = 1e-5) -> tuple[BatchNorm, nn.Module]:
    """The project's layer and torch's, with the same weights and averages that are not the initial ones."""
    kind = nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d
    theirs = kind(shape[1], eps, momentum).double()
    torch.manual_seed(0)
    for value in (theirs.weight.data, theirs.bias.data, theirs.running_mean):
        value.normal_()
    theirs.running_var.uniform_(0.5, 2)
    mine = BatchNorm(shape[1], eps, momentum).double()
    mine.load_state_dict({key: value for key, value in theirs.state_dict().items() if key != "num_batches_tracked"})
    return mine, theirs


def images(shape: tuple[int, ...], seed: int = 1) -> torch.Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 2


def gradients(layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    return list(torch.autograd.grad(layer(x).square().sin().sum(), [x, *layer.parameters()]))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("eps", [1e-5, 1e-3])
def test_batch_equals_torch_in_train_mode(shape, eps):
    mine, theirs = layers(shape, eps=eps)
    before, x = copy.deepcopy(mine.state_dict()), images(shape)
    torch.testing.assert_close(mine(x), theirs.train()(x), **EXACT)
    for one, other in zip(gradients(mine, x), gradients(theirs, x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    assert all(torch.equal(before[key], value) for key, value in mine.state_dict().items())  # averages stay


@pytest.mark.parametrize("mode", [True, False])
def test_train_and_eval_mode_do_not_matter(mode):
    mine, _ = layers(SHAPES[0])
    x = images(SHAPES[0])
    expected = mine(x)
    assert torch.equal(mine.train(mode)(x), expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_running_equals_torch_in_eval_mode(shape):
    mine, theirs = layers(shape)
    before, x = copy.deepcopy(mine.state_dict()), images(shape)
    with statistics_from(mine, "running"):
        torch.testing.assert_close(mine(x), theirs.eval()(x), **EXACT)
        torch.testing.assert_close(mine(x)[:1], mine(x[:1]), **EXACT)  # an image alone is normalised the same
    assert all(torch.equal(before[key], value) for key, value in mine.state_dict().items())
    assert not torch.allclose(mine(x), theirs(x))  # outside the block: the statistics of the batch


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("momentum", [0.1, 0.9])
def test_tracked_batch_moves_the_averages_as_torch_does(shape, momentum):
    mine, theirs = layers(shape, momentum)
    theirs.train()
    for seed in range(3):
        before, x = mine.running_var.clone(), images(shape, seed)
        with statistics_from(mine, "tracked_batch"):
            torch.testing.assert_close(mine(x), theirs(x), **EXACT)
        torch.testing.assert_close(mine.running_mean, theirs.running_mean, **EXACT)
        torch.testing.assert_close(mine.running_var, theirs.running_var, **EXACT)
        axes = [axis for axis in range(x.ndim) if axis != 1]
        by_hand = (1 - momentum) * before + momentum * x.var(axes, correction=1)
        torch.testing.assert_close(mine.running_var, by_hand, **EXACT)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rows", [2, 4, 6])
def test_first_rows_normalises_by_the_first_rows(shape, rows):
    mine, theirs = layers(shape)
    x = images(shape)
    with statistics_from(mine, "first_rows", rows=rows):
        out = mine(x)
    expected = torch.empty_like(x)
    for channel in range(shape[1]):  # the slow way
        reference = x[:rows, channel].flatten().tolist()
        mean = sum(reference) / len(reference)
        variance = sum((value - mean) ** 2 for value in reference) / len(reference)
        scaled = (x[:, channel] - mean) / (variance + mine.eps) ** 0.5
        expected[:, channel] = scaled * mine.weight[channel].detach() + mine.bias[channel].detach()
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(out[:rows], theirs.train()(x[:rows]), **EXACT)


def test_first_rows_does_not_look_at_later_rows():
    mine, _ = layers(SHAPES[0])
    x, other = images(SHAPES[0]), images(SHAPES[0])
    other[4:] = 100
    with statistics_from(mine, "first_rows", rows=4):
        assert torch.equal(mine(x)[:4], mine(other)[:4])
    assert not torch.allclose(mine(x)[:4], mine(other)[:4])


def nested() -> nn.Module:
    return nn.Sequential(BatchNorm(3), nn.Sequential(nn.Conv2d(3, 2, 1), BatchNorm(2)))


def sources(net: nn.Module) -> list[tuple[str, int]]:
    return [(layer.source, layer.rows) for layer in net.modules() if isinstance(layer, BatchNorm)]


def test_statistics_from_reaches_every_layer_nests_and_restores():
    net = nested()
    with statistics_from(net, "running"):
        assert sources(net) == [("running", 0)] * 2
        with statistics_from(net[1], "first_rows", rows=4):
            assert sources(net) == [("running", 0), ("first_rows", 4)]
        assert sources(net) == [("running", 0)] * 2
    assert sources(net) == [("batch", 0)] * 2


def test_statistics_from_restores_on_an_exception():
    net = nested()
    with pytest.raises(ZeroDivisionError), statistics_from(net, "first_rows", rows=2):
        raise ZeroDivisionError
    assert sources(net) == [("batch", 0)] * 2


def their_net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4, momentum=0.3, eps=1e-3),
        nn.ReLU(),
        nn.Sequential(nn.Flatten(), nn.Linear(4 * 36, 5), nn.BatchNorm1d(5)),
    ).double()
    for _ in range(3):
        net(images((6, 1, 8, 8)))  # averages that are not the initial ones
    return net.eval()


def test_convert_batch_norm_keeps_outputs_in_eval_and_train_mode():
    theirs = their_net()
    mine = convert_batch_norm(copy.deepcopy(theirs))
    assert not any(isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)) for layer in mine.modules())
    assert [type(layer) for layer in mine.modules()].count(BatchNorm) == 2
    x = images((6, 1, 8, 8), 5)
    with statistics_from(mine, "running"):
        torch.testing.assert_close(mine(x), theirs(x), **EXACT)
    theirs.train()
    with statistics_from(mine, "tracked_batch"):
        torch.testing.assert_close(mine(x), theirs(x), **EXACT)
    for key, value in mine.state_dict().items():  # momentum and epsilon came along
        torch.testing.assert_close(value, theirs.state_dict()[key], **EXACT)


def test_convert_batch_norm_keeps_the_type_of_the_numbers_and_converts_a_lone_layer():
    mine = convert_batch_norm(nn.BatchNorm2d(3).double())
    assert isinstance(mine, BatchNorm)
    assert {value.dtype for value in mine.state_dict().values()} == {torch.float64}


@pytest.mark.parametrize("options", [{"affine": False}, {"track_running_stats": False}], ids=str)
def test_layers_that_cannot_be_converted_are_refused(options):
    with pytest.raises(ValueError, match="cannot convert"):
        convert_batch_norm(nn.Sequential(nn.BatchNorm2d(3, **options)))
