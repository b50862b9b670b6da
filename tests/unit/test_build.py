"""Building objects from configuration: the allowed targets and options, as defined by constructors."""

from __future__ import annotations

from typing import Annotated, Any, TypedDict

import pytest
import torch
from annotated_types import Ge
from torch import nn
from typing_extensions import Required, Unpack

from fsl_cli.algos.maml import MAML
from fsl_cli.algos.protonet import ProtoNet
from fsl_cli.backbones import mlp as some_module
from fsl_cli.backbones.conv4 import Conv4
from fsl_cli.backbones.mlp import MLP
from fsl_cli.errors import FslError, Problems
from fsl_cli.run.parts import build_optimizer
from fsl_cli.settings import build

RUNTIME = {"backbone": MLP((1, 4, 4), widths=[4]), "features": 4, "ways": 5, "engine": "auto"}


# --- building


def protonet(**options: Any) -> ProtoNet:
    return build.build({"_target_": "fsl_cli.algos.protonet.ProtoNet", "name": "x", **options}, "algo", RUNTIME)


def maml(**options: Any) -> MAML:
    return build.build({"_target_": "fsl_cli.algos.maml.MAML", **options}, "algo", RUNTIME)


def test_build_binds_options_and_runtime_arguments():
    built = protonet(train_ways=7, distance="cosine")
    assert isinstance(built, ProtoNet)
    assert built.backbone is RUNTIME["backbone"]
    assert (built.train_ways, built.distance, built.scale) == (7, "cosine", 1.0)
    assert maml().net.head.out_features == 5


def test_what_is_valid_is_converted_to_its_type_before_it_is_built():
    """``no`` and a quoted number are strings on the command line, and any non-empty string is true."""
    assert maml(first_order="no").first_order is False
    assert maml(first_order="yes").first_order is True
    built = maml(inner_steps="3", inner_lr="0.25", test_inner_steps=2.0)
    assert (built.inner_steps, built.step_sizes.initial, built.test_steps) == (3, 0.25, [2])
    assert type(built.test_steps[0]) is int
    optimizer = build.build(
        {"_target_": "torch.optim.SGD", "lr": "0.5"}, "train.optimizer", {"params": list(MLP((1, 2, 2)).parameters())}
    )
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_build_refuses_what_check_finds():
    with pytest.raises(Problems) as error:
        protonet(train_way=7, scale=0)
    assert len(error.value.problems) == 2


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD", "RMSprop", "NAdam"])
def test_any_optimizer_of_torch_with_its_own_options(name):
    parameters = list(MLP((1, 2, 2)).parameters())
    node = {"_target_": f"torch.optim.{name}", "lr": 0.05, "weight_decay": 0.1}
    assert build.check(node, "train.optimizer", {"params"}) == []
    optimizer = build.build(node, "train.optimizer", {"params": parameters})
    assert type(optimizer).__name__ == name
    assert optimizer.param_groups[0]["weight_decay"] == 0.1
    assert build.check({**node, "rho": None}, "train.optimizer", {"params"}) == []  # an option of Adadelta, taken back
    (problem,) = build.check({**node, "lrr": 1}, "train.optimizer", {"params"})
    assert str(problem).startswith("train.optimizer.lrr: unknown option (did you mean lr?")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"_target_": "torch.optim.Adam", "lr": -1}, "train.optimizer: Invalid learning rate: -1"),
        ({"_target_": "torch.optim.SGD", "lr": 1, "nesterov": True}, "train.optimizer: Nesterov momentum requires"),
    ],
    ids=str,
)
def test_what_an_optimizer_itself_refuses_is_one_line(options, message):
    with pytest.raises(FslError) as error:
        build.build(options, "train.optimizer", {"params": list(MLP((1, 2, 2)).parameters())})
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("target", "options", "reason"),
    [
        ("torch.optim.LBFGS", {}, "LBFGS cannot be used here: "),
        ("torch.optim.SparseAdam", {}, "SparseAdam cannot be used here: SparseAdam does not support dense gradients"),
        ("torch.optim.Adam", {"capturable": True}, "Adam cannot be used here: "),  # on a processor
        ("fsl_cli.backbones.mlp.MLP", {}, ""),
    ],
)
def test_an_optimizer_that_cannot_train_these_parameters_is_one_line(target, options, reason):
    parameters = list(Conv4((1, 8, 8), filters=2).parameters())
    with pytest.raises(FslError) as error:
        build_optimizer({"_target_": target, **options}, parameters)
    assert str(error.value).startswith("train.optimizer")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_the_trial_step_of_an_optimizer_leaves_the_parameters_alone():
    net = Conv4((1, 8, 8), filters=2)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    optimizer = build_optimizer({"_target_": "torch.optim.Adam", "lr": 0.1, "weight_decay": 0.5}, list(net.parameters()))
    assert isinstance(optimizer, torch.optim.Adam)
    assert optimizer.param_groups[0]["params"] == list(net.parameters())
    assert not optimizer.state
    assert all(each.grad is None for each in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


class SharedOptions(TypedDict, total=False):
    size: Annotated[int, Ge(1)]
    needed: Required[float]


class Plain(nn.Module):
    """Arguments one by one, one of them with a default."""

    def __init__(self, backbone: Any, size: Annotated[int, Ge(1)], needed: float = 1.0) -> None:
        super().__init__()
        self.found = backbone, {"size": size, "needed": needed}


class Sharing(nn.Module):
    """Options of a `TypedDict` besides one of its own."""

    def __init__(self, backbone: Any, own: int = 0, **options: Unpack[SharedOptions]) -> None:
        super().__init__()
        self.found = backbone, {"own": own, **options}


@pytest.fixture
def node(monkeypatch):
    """Makes the node of a class that stands in the package."""

    def of(cls: type, **options: Any) -> dict[str, Any]:
        monkeypatch.setattr(cls, "__module__", some_module.__name__)
        monkeypatch.setattr(some_module, cls.__name__, cls, raising=False)
        return {"_target_": f"{some_module.__name__}.{cls.__name__}", **options}

    return of


def test_shared_options_are_options_like_any_other(node):
    built = build.build(node(Sharing, needed="2", size="3"), "backbone", {"backbone": "net", "ways": 5})
    assert built.found == ("net", {"own": 0, "needed": 2.0, "size": 3})
    assert build.build(node(Sharing, needed=1), "backbone", {"backbone": "net"}).found == ("net", {"own": 0, "needed": 1.0})
    assert build.takes(node(Sharing), "backbone", "size")
    assert not build.takes(node(Sharing), "backbone", "options")
    found = {str(each) for each in build.check(node(Sharing, sise=3, size=0), "backbone", {"backbone"})}
    assert found == {
        "backbone.sise: unknown option (did you mean size? valid: needed, own, size)",
        "backbone.size: 0 is not valid (should be greater than or equal to 1)",
        "backbone.needed: is missing",
    }


def test_a_plain_constructor_has_its_arguments(node):
    assert build.build(node(Plain, size="3"), "backbone", {"backbone": "net"}).found == ("net", {"size": 3, "needed": 1.0})
    found = {str(each) for each in build.check(node(Plain, options=3), "backbone", {"backbone"})}
    assert found == {"backbone.options: unknown option (valid: needed, size)", "backbone.size: is missing"}


def test_takes_checks_for_an_argument():
    node = {"_target_": "fsl_cli.algos.maml.MAML"}
    assert build.takes(node, "algo", "engine")
    assert not build.takes({"_target_": "fsl_cli.algos.protonet.ProtoNet"}, "algo", "engine")


# --- targets


FORBIDDEN = [
    "os.system",
    "builtins.eval",
    "builtins.exec",
    "subprocess.run",
    "torch.load",
    "torch.hub.load",
    "fsl_client.Thing",
    "fsl_cli",
    "fsl_cli.algos",
    "torch.optim",
    "fsl_cli.results.run_folder.write_text",  # a function
    "fsl_cli.results.run_folder.Path",  # a class of somebody else
    "fsl_cli.results.environment.subprocess",  # a module
    "fsl_cli.algos.common.algorithm.Algorithm",  # abstract
    "fsl_cli.results.tracking.JsonLines",  # of another section: it would empty a file
    "fsl_cli.algos.common.algorithm.Step",  # no algorithm
    "fsl_cli.algos.protonet.nn.Linear",
    "fsl_cli.backbones.mlp.MLP",
    "torch.optim.Adam",
    "",
    None,
    3,
    ["os.system"],
]


@pytest.mark.parametrize("target", FORBIDDEN, ids=str)
def test_forbidden_targets_are_refused(target):
    with pytest.raises(FslError) as error:
        build.target_of({"_target_": target}, "algo")
    assert str(error.value).startswith("algo._target_: ")
    assert len(build.check({"_target_": target}, "algo", set())) == 1


@pytest.mark.parametrize(
    "target", ["fsl_cli.algos.mamml.MAML", "fsl_cli.algos.maml.MAMMAL", "fsl_cli.algos..maml", "fsl_cli.algos."]
)
def test_targets_that_do_not_exist(target):
    with pytest.raises(FslError, match="there is no"):
        build.target_of({"_target_": target}, "algo")


@pytest.mark.parametrize(
    ("section", "own", "other"),
    [
        ("algo", "fsl_cli.algos.maml.MAML", "fsl_cli.algos.common.per_step_batch_norm.PerStepBatchNorm"),
        ("backbone", "fsl_cli.backbones.mlp.MLP", "fsl_cli.datasets.glyphs.Glyphs"),
        ("dataset", "fsl_cli.datasets.sinusoid.Sinusoid", "fsl_cli.datasets.image_files.FolderImages"),
        ("dataset", "fsl_cli.datasets.glyphs.Glyphs", "fsl_cli.datasets.sinusoid.SinusoidSampler"),
        ("train.optimizer", "torch.optim.Adam", "torch.optim.lr_scheduler.LambdaLR"),
    ],
)
def test_a_section_accepts_its_own_kind_of_class_only(section, own, other):
    assert build.target_of({"_target_": own}, section).__name__ == own.rpartition(".")[2]
    with pytest.raises(FslError, match="may not be built"):
        build.target_of({"_target_": other}, section)


def test_importing_the_main_module_does_not_run_the_command_line(monkeypatch):
    with pytest.raises(FslError, match="may not be built"):
        build.target_of({"_target_": "fsl_cli.__main__.main"}, "algo")
