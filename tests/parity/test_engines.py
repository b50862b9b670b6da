"""Engines agree with each other, with learn2learn and with finite differences, in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from problems import TinyNet, random_episodes

from fsl_cli.algos.maml import MAML
from fsl_cli.algos.mamlpp import MAMLPlusPlus
from fsl_cli.errors import FslError

EPISODES = random_episodes()


def maml(engine: str, **options) -> MAML:
    torch.manual_seed(0)
    algorithm = MAML(TinyNet(), 4, EPISODES.ways, engine, inner_lr=0.3, **options).double()
    torch.nn.init.normal_(algorithm.net.head.weight)  # a zero head would hide errors in the body's gradient
    return algorithm


def loss_and_gradients(algorithm: MAML) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    algorithm.zero_grad()
    loss = algorithm.loss(EPISODES).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in algorithm.named_parameters()}


ORDERS = [{"first_order": False}, {"first_order": True}]
VARIANTS = [
    {"inner_steps": steps, **order, **adapt, **learning, "batch_norm": mode}
    for steps, order, adapt, learning, mode in itertools.product(
        (1, 3),
        ORDERS,
        ({"adapt": "all"}, {"adapt": "head"}, {"adapt": "body"}),
        ({}, {"inner_lr_learning": "per_layer"}, {"inner_lr_learning": "per_parameter"}),
        ("transductive", "inductive"),
    )
]


def supported_by_learn2learn(variant: dict) -> bool:
    return variant["adapt"] != "body" and variant.get("inner_lr_learning") != "per_layer"


def name(variant: dict) -> str:
    return "-".join(f"{value}" for value in variant.values())


def test_every_variant_is_tested():
    assert len(VARIANTS) == 72
    assert sum(map(supported_by_learn2learn, VARIANTS)) == 32


@pytest.mark.parametrize("variant", VARIANTS, ids=name)
def test_vmap_and_learn2learn_agree_with_the_loop(variant):
    reference_loss, reference = loss_and_gradients(maml("loop", **variant))
    assert all(reference[key].abs().max() > 1e-6 for key in reference if key.endswith(("weight", "values.0")))
    for engine in ["vmap", *(["learn2learn"] if supported_by_learn2learn(variant) else [])]:
        loss, gradients = loss_and_gradients(maml(engine, **variant))
        torch.testing.assert_close(loss, reference_loss, rtol=1e-10, atol=1e-12)
        for key in reference:
            torch.testing.assert_close(gradients[key], reference[key], rtol=1e-8, atol=1e-11, msg=f"{engine} {key}")


@pytest.mark.parametrize("engine", ["loop", "vmap", "learn2learn"])
@pytest.mark.parametrize("options", [{}, {"inner_lr_learning": "per_parameter"}, {"adapt": "head"}], ids=str)
def test_second_order_gradient_agrees_with_finite_differences(engine, options):
    algorithm = maml(engine, inner_steps=3, **options)
    _, gradients = loss_and_gradients(algorithm)
    step = 1e-5
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
            assert gradients[key].view(-1)[position].item() == pytest.approx(numeric, rel=1e-5, abs=1e-8), key


def test_first_order_differs_from_second_order_and_only_in_the_gradient():
    second_loss, second = loss_and_gradients(maml("vmap", inner_steps=3))
    first_loss, first = loss_and_gradients(maml("vmap", inner_steps=3, first_order=True))
    assert first_loss == second_loss
    assert not torch.allclose(first["net.body.conv.weight"], second["net.body.conv.weight"], rtol=1e-2)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_predict_matches_the_equation_in_plain_pytorch(steps):
    """theta' = theta - alpha * grad, section 2.2 of the paper, by `torch.optim.SGD` on a copy of the module."""
    import copy

    algorithm = maml("vmap", inner_steps=1, test_inner_steps=steps)
    predicted = algorithm.predict(EPISODES)
    for task in range(len(EPISODES)):
        net = copy.deepcopy(algorithm.net)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.3)
        for _ in range(steps):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(EPISODES.support.x[task]), EPISODES.support.y[task]).backward()
            optimizer.step()
        torch.testing.assert_close(predicted[task], net(EPISODES.query.x[task]).detach(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("options", [{"adapt": "body"}, {"inner_lr_learning": "per_layer"}], ids=str)
def test_unsupported_options_of_learn2learn_are_errors(options):
    with pytest.raises(FslError, match="learn2learn has no"):
        maml("learn2learn", **options)


def test_learn2learn_runs_maml_plus_plus_without_per_step_weights():
    pytest.importorskip("learn2learn")
    options = {"inner_steps": 2, "inner_lr_learning": "none"}
    with pytest.raises(FslError, match=r"learn2learn has no algo\.per_step_batch_norm=true"):
        MAMLPlusPlus(TinyNet(), 4, 3, "learn2learn", **options)
    losses = []
    for engine in ("loop", "learn2learn"):
        torch.manual_seed(0)
        losses.append(MAMLPlusPlus(TinyNet(), 4, 3, engine, per_step_batch_norm=False, **options).double().loss(EPISODES).loss)
    torch.testing.assert_close(*losses, rtol=1e-10, atol=1e-12)
