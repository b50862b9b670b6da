"""Engines agree with each other, with learn2learn and with finite differences, in float64."""

from __future__ import annotations

import copy
import itertools
from functools import partial

import pytest
import torch
from problems import TinyNet, random_episodes

from fsl_cli.algos.maml import MAML
from fsl_cli.algos.mamlpp import MAMLPlusPlus
from fsl_cli.algos.proto_maml import ProtoMAML
from fsl_cli.errors import FslError
from fsl_cli.inner.tasks import loop_tasks, vmap_tasks

EPISODES = random_episodes()
TASKS = {"loop": loop_tasks, "vmap": vmap_tasks}


def maml(engine: str, **options) -> MAML:
    torch.manual_seed(0)
    algorithm = MAML(TinyNet(), 4, EPISODES.ways, engine, inner_lr=0.3, **options).double()
    torch.nn.init.normal_(algorithm.net.head.weight)  # a zero head would hide errors in the body's gradient
    return algorithm


def loss_and_gradients(algorithm: MAML, missing_ok: bool = False) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    algorithm.zero_grad()
    loss = algorithm.loss(EPISODES).loss
    loss.backward()
    gradients = {name: p.grad for name, p in algorithm.named_parameters() if not (missing_ok and p.grad is None)}
    return loss.detach(), {name: gradient.clone() for name, gradient in gradients.items()}


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


@pytest.mark.parametrize("make", [MAML, ProtoMAML, partial(MAMLPlusPlus, per_step_batch_norm=False)], ids=str)
def test_scale_and_shift_of_batch_norm_stay_and_are_meta_learned_where_they_are_not_adapted(make):
    """The engines agree, their adapted weights have no scale or shift, and it is the same equation in plain PyTorch."""
    found = []
    for engine in ("loop", "vmap"):
        torch.manual_seed(0)
        algorithm = make(TinyNet(), 4, 3, engine, inner_steps=2, inner_lr=0.3, adapt_batch_norm=False).double()
        torch.nn.init.normal_(algorithm.net.head.weight)
        loss, gradients = loss_and_gradients(algorithm, missing_ok=True)
        for name in ("weight", "bias"):
            assert gradients[f"net.body.norm.{name}"].abs().max() > 1e-4
        tasks = algorithm.tasks(EPISODES) if make is ProtoMAML else TASKS[engine](algorithm.inner_loop(3), EPISODES)
        assert not [name for name in tasks.start if "norm" in name]
        assert "body.conv.weight" in tasks.start
        found.append({"loss": loss, **gradients})
    torch.testing.assert_close(found[1], found[0], rtol=1e-8, atol=1e-11)
    adapted = make(TinyNet(), 4, 3, "loop", inner_steps=2, inner_lr=0.3).double()
    adapted.load_state_dict(algorithm.state_dict(), strict=False)
    assert not torch.isclose(adapted.loss(EPISODES).loss, found[0]["loss"], rtol=1e-4)


def test_adaptation_without_scale_and_shift_is_torchs_sgd_of_the_other_weights():
    algorithm = maml("vmap", inner_steps=3, adapt_batch_norm=False)
    predicted = algorithm.predict(EPISODES)
    for task in range(len(EPISODES)):
        net = copy.deepcopy(algorithm.net)
        optimizer = torch.optim.SGD([theta for name, theta in net.named_parameters() if "norm" not in name], lr=0.3)
        for _ in range(3):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(EPISODES.support.x[task]), EPISODES.support.y[task]).backward()
            optimizer.step()
        torch.testing.assert_close(predicted[task], net(EPISODES.query.x[task]).detach(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    "options", [{"adapt": "body"}, {"inner_lr_learning": "per_layer"}, {"adapt_batch_norm": False}], ids=str
)
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
