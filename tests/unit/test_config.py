"""Configuration: the files in conf/, options, settings, resolution; all problems are reported together."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import itertools
import os
from pathlib import Path
from typing import Any

import command_line
import pytest
import torch
from omegaconf import OmegaConf

from fsl_cli.backbones.conv4 import Conv4
from fsl_cli.backbones.mlp import MLP
from fsl_cli.backbones.text_cnn import TextCNN
from fsl_cli.compute import hardware
from fsl_cli.errors import FslError, Problems
from fsl_cli.results.run_folder import RunFolder
from fsl_cli.run.parts import feature_width
from fsl_cli.settings import build, schema
from fsl_cli.settings import resolve as config
from fsl_cli.settings.conf_files import GROUPS, RESERVED, TUNED, choices, conf_dir

BUILT = ("algo", "dataset", "backbone")
MEMBERS = [(group, name) for group in GROUPS for name in choices(group)]


def composed(*words: str) -> dict[str, Any]:
    return command_line.composed(*words)


WITHOUT_DEFAULT = {
    "dataset=folder": ("dataset.root=photos",),
    "dataset=features": ("dataset.file=embeddings.npz",),
    "dataset=text": ("dataset.file=intents.csv",),
    "dataset=mixture": ("dataset.sets=[omniglot,glyphs]",),
}


@functools.cache
def member(group: str, name: str) -> dict[str, Any]:
    """The configuration with a member of a group; must not be modified."""
    return composed(f"{group}={name}", *WITHOUT_DEFAULT.get(f"{group}={name}", ()))


@pytest.fixture(scope="module")
def default() -> dict[str, Any]:
    return composed()


def changed(values: dict[str, Any], **by_path: Any) -> dict[str, Any]:
    """A copy with ``a__b=value`` set as ``values["a"]["b"]``."""
    values = copy.deepcopy(values)
    for path, value in by_path.items():
        *sections, last = path.split("__")
        node = values
        for section in sections:
            node = node[section]
        node[last] = value
    return values


def problems(values: dict[str, Any]) -> list[str]:
    with pytest.raises(Problems) as error:
        config.validate(values)
    return [str(problem) for problem in error.value.problems]


# --- the files below conf/


def test_every_group_has_its_members():
    count = {group: len(choices(group)) for group in GROUPS}
    assert count["algo"] == 27
    assert count["dataset"] == 13
    assert count["backbone"] == 7
    assert count["hardware"] == 3
    assert count["experiment"] == 66
    everywhere = {
        "maml",
        "fomaml",
        "anil",
        "metasgd",
        "mamlpp",
        "reptile",
        "imaml",
        "protonet",
        "relationnet",
        "imp",
        "r2d2",
        "snail",
    }
    tasks = ("5w1s", "5w5s", "20w1s", "20w5s")
    others = {"demo", "mann_omniglot_5w1s", "maml_sinusoid_5shot", "maml_sinusoid_10shot"}
    others |= {"imp_omniglot_alphabets", "protonet_omniglot_alphabets"}
    others |= {f"{algo}_cifar_fs_{task}" for algo in ("protonet", "maml", "r2d2", "baseline") for task in ("5w1s", "5w5s")}
    others |= {f"{algo}_{dataset}" for algo in ("metaoptnet", "protonet_resnet12") for dataset in ("cifar_fs", "fc100")}
    assert others | {f"{algo}_omniglot_{task}" for algo in everywhere for task in tasks} == set(choices("experiment"))
    files = [path for path in conf_dir().rglob("*.yaml") if path.parent not in (conf_dir(), conf_dir() / TUNED)]
    assert len(files) == len(MEMBERS) == sum(count.values())


def test_an_experiment_whose_queries_help_each_other_says_how_many_there_are():
    """Transductive accuracy depends on their number, which is that of the paper: K or one per class, in training and tests."""
    found, authors = [], {"mamlpp": 1, "reptile": 1}
    for name in choices("experiment"):
        values = composed(f"experiment={name}")
        if values["algo"].get("batch_norm") != "transductive" or values["task"]["ways"] is None:
            continue
        own = OmegaConf.load(conf_dir() / "experiment" / f"{name}.yaml")
        assert own.task.get("queries") == authors.get(values["algo"]["name"], values["task"]["shots"]), name
        found.append(name)
    assert len(found) >= 32  # eight methods in four tasks


def test_an_experiment_has_the_network_of_its_papers_code():
    """The number of features: 64 where the last maps are averaged or 1x1, 256 of 2x2, 1,600 of 5x5."""
    widths = {"maml": 64, "fomaml": 64, "mamlpp": 64, "protonet": 64, "reptile": 256, "imaml": 256, "r2d2": 3584}
    widths |= {"imp": 64, "relationnet": 1600}
    for algo, width in widths.items():
        for task in ("5w1s", "5w5s", "20w1s", "20w5s"):
            values = composed(f"experiment={algo}_omniglot_{task}")
            shape = (1, 28, 28)
            net = build.build(values["backbone"], "backbone", {"image_shape": shape, "example_shape": shape})
            assert feature_width(net, shape) == width, (algo, task)
            assert any(isinstance(layer, torch.nn.LeakyReLU) for layer in net.modules()) == (algo in ("mamlpp", "r2d2"))


@pytest.mark.parametrize(("group", "name"), [each for each in MEMBERS if each[0] in BUILT], ids=str)
def test_a_member_has_exactly_the_options_of_its_constructor(group, name):
    node = member(group, name)[group]
    arguments = set(build.arguments_of(build.target_of(node, group)))
    assert set(node) - RESERVED - schema.common(group, node).keys() == arguments - config.RUNTIME[group]
    assert set(node) >= RESERVED
    assert node["name"] == name


@pytest.mark.parametrize("name", choices("hardware"))
def test_hardware_has_exactly_the_settings_that_are_used(name):
    used = set(inspect.signature(hardware.set_up).parameters) - {"warn"} | {"engine"}
    assert set(composed(f"hardware={name}")["hardware"]) == set(schema.HardwareSettings.model_fields) == used


@pytest.mark.parametrize("section", ["task", "train", "eval", "wandb"])
def test_train_yaml_has_exactly_the_settings_of_each_section(section, default):
    assert set(default[section]) == set(schema.Settings.model_fields[section].annotation.model_fields)
    assert set(default) == set(schema.Settings.model_fields)
    assert schema.AugmentSettings(**default["train"]["augment"]) == schema.AugmentSettings()
    assert set(default["train"]["augment"]) == set(schema.AugmentSettings.model_fields)


@pytest.mark.parametrize("path", sorted(conf_dir().rglob("*.yaml")), ids=lambda path: str(path.relative_to(conf_dir())))
def test_a_file_starts_with_what_it_is_and_a_command_that_makes_valid_settings_of_it(path):
    lines = [line for line in path.read_text().splitlines() if not line.startswith("# @")]
    head = list(itertools.takewhile(lambda line: line.startswith("# "), lines))
    command = head[-1].removeprefix("# ").split()
    assert len(head) >= 2
    assert command[0] == "fsl"
    if command[1] == "train":
        settings = config.validate(composed(*command[2:]))
        group, name = path.parent.name, path.stem
        named = [f"algo={name.rpartition('_')[0]}"] if group == TUNED else [f"{group}={name}"]
        assert path.parent == conf_dir() or set(named) <= set(command)
        if group in BUILT:
            assert getattr(settings, group)["name"] == name
    else:
        assert command[:3] == ["fsl", "eval", "run=outputs/train/FOLDER"]


def test_variants_of_maml_are_configurations_not_copies():
    maml, fomaml, anil = (composed(f"algo={name}")["algo"] for name in ("maml", "fomaml", "anil"))
    assert fomaml == {**maml, "name": "fomaml", "first_order": True}
    assert anil == {**maml, "name": "anil", "adapt": "head"}


def test_the_runtime_arguments_exist():
    """A renamed argument would silently become an option."""
    constructors = [build.target_of(member("algo", name)["algo"], "algo") for name in choices("algo")]
    assert config.RUNTIME["algo"] <= {name for cls in constructors for name in inspect.signature(cls).parameters}
    assert config.RUNTIME["backbone"] <= {name for cls in (MLP, Conv4, TextCNN) for name in inspect.signature(cls).parameters}
    assert config.RUNTIME["train.optimizer"] <= set(inspect.signature(torch.optim.Adam).parameters)


# --- options


def test_all_problems_are_reported_together_with_close_matches(default):
    found = problems(
        changed(
            default,
            algo__inner_step=3,
            algo__inner_lr=-0.1,
            algo__adapt="heads",
            algo__inner_steps="many",
            backbone__filters=0,
            backbone__downsampling="stride",
            dataset__rotation=True,
            task__ways=1,
            task__way=5,
            train__iterations=0,
            train__optimizer__learning_rate=0.1,
            hardware__device="gpx",
            hardware__task_chunk=0,
            wandb__mode="maybe",
            seed=-1,
            sed=2,
        )
    )
    expected = {
        "algo.inner_step: unknown option": "did you mean inner_steps?",
        "algo.inner_lr: -0.1 is not valid": "greater than 0",
        "algo.adapt: 'heads' is not valid": "'all', 'head' or 'body'",
        "algo.inner_steps: 'many' is not valid": "integer",
        "backbone.filters: 0 is not valid": "greater than or equal to 1",
        "backbone.downsampling: unknown option": "did you mean downsample?",
        "dataset.rotation: unknown option": "valid: ",
        "task.ways: 1 is not valid": "greater than or equal to 2",
        "task.way: unknown option": "did you mean ways?",
        "train.iterations: 0 is not valid": "greater than or equal to 1",
        "train.optimizer.learning_rate: unknown option": "valid: ",
        "hardware.device: 'gpx' is not valid": "auto, cpu, gpu, mps, cuda or cuda:N",
        "hardware.task_chunk: 0 is not valid": "'auto' or should be greater than or equal to 1",
        "wandb.mode: 'maybe' is not valid": "'auto', 'online', 'offline' or 'disabled'",
        "seed: -1 is not valid": "greater than or equal to 0",
        "sed: unknown option": "did you mean seed?",
    }
    for start, hint in expected.items():
        (line,) = [line for line in found if line.startswith(f"{start} ")]
        assert hint in line
    assert len(found) == len(expected)
    assert not any("\n" in line for line in found)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        *(("task__shots", value) for value in (0, -1, 1.5, "one", None, [1])),
        ("task__queries", 0),
        ("seed", 2**63),
        ("train__meta_batch", 0),
        ("train__max_minutes", 0),
        ("train__step_factor", 1.1),
        ("train__step_factor", 0),
        ("train__step_at", 4000),
        ("train__step_factor", [0.5]),  # without step_at
        ("train__augment__crop", 0),
        ("train__augment__jitter", 1.5),
        ("train__augment__resized_crop", 0),
        ("dataset__normalize", "date"),
        ("dataset__normalize", [[0.5], [0.0]]),
        ("dataset__normalize", [[0.5, 0.5], [0.2]]),
        ("dataset__normalize", [[129.4], [68.2]]),
        ("train__clip_grad_norm", 0),
        ("train__patience", 0),
        ("train__val_every", -5),
        ("train__val_episodes", 1),  # one value has no interval
        ("train__schedule", "exponential"),
        ("train__schedule_by", "minutes"),  # without max_minutes
        ("eval__episodes", 1),
        ("eval__checkpoint", "first"),
        ("hardware__threads", 0),
        ("hardware__precision", "fp16"),
        ("hardware__engine", "jax"),
        ("resume", ""),
        ("resume", True),
        ("algo__inner_steps", 0),
        ("algo__test_inner_steps", -1),
        ("algo__first_order", "perhaps"),
        ("algo__train_queries", 0),
        ("backbone__downsample", "pool"),
        ("dataset__size", 0),
        ("dataset__seed", -1),
    ],
    ids=str,
)
def test_a_value_out_of_range_is_one_problem_that_names_it(default, path, value):
    (line,) = problems(changed(default, **{path: value}))
    assert line.startswith(path.replace("__", ".") + ": ")
    assert "(should be" in line or "(valid" in line


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("train__max_minutes", None),
        ("train__max_minutes", 0.5),
        ("train__clip_grad_norm", 10),
        ("train__patience", None),
        ("hardware__device", "cuda:3"),
        ("hardware__task_chunk", 4),
        ("hardware__threads", None),
        ("resume", "auto"),
        ("resume", "some/folder"),
        ("algo__test_inner_steps", 0),
        ("algo__train_queries", None),
        ("wandb__tags", ["a", "b"]),
    ],
    ids=str,
)
def test_values_at_the_edge_are_valid(default, path, value):
    config.validate(changed(default, **{path: value}))


def test_a_missing_section_or_target_is_a_problem(default):
    without = {key: value for key, value in default.items() if key not in ("task", "algo")}
    found = problems(without)
    assert "algo: is missing" in found
    assert "task: is missing" in found
    without = changed(default)
    del without["backbone"]["_target_"], without["train"]["optimizer"]["_target_"]
    assert [line.split(":")[0] for line in problems(without)] == ["backbone._target_", "train.optimizer._target_"]


def test_a_section_that_is_not_a_mapping_is_a_problem(default):
    assert any(line.startswith("task: ") for line in problems(changed(default, task=5)))
    assert any(line.startswith("algo: ") for line in problems(changed(default, algo="maml")))


def test_settings_are_typed_and_cannot_be_changed(default):
    settings = config.validate(default)
    assert settings.task.ways == 5
    assert isinstance(settings.data_dir, Path)
    with pytest.raises(ValueError, match="frozen"):
        settings.task.ways = 20


@pytest.mark.parametrize("engine", ["loop", "vmap", "learn2learn"])
def test_an_engine_is_an_option_of_algorithms_with_an_inner_loop(default, engine):
    config.validate(changed(default, hardware__engine=engine))
    (line,) = problems(changed(composed("algo=protonet"), hardware__engine=engine))
    assert line == f"hardware.engine: {engine} is not valid: protonet has no inner loop to run (leave it at auto)"


# --- resolving


def test_resolve_fills_in_the_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("FSL_DATA_DIR", "~/mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("FSL_CACHE_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    values = composed("cache_dir=packs")
    assert values["data_dir"] == str(tmp_path / "mine")
    assert values["cache_dir"] == str(tmp_path / "packs")
    monkeypatch.delenv("FSL_DATA_DIR")
    values = composed()
    assert all(Path(values[key]).is_absolute() and "fsl" in values[key] for key in ("data_dir", "cache_dir"))


@pytest.mark.parametrize("value", ["???", "${nowhere.to.be.found}", "${oc.env:NOT_SET_ANYWHERE}"])
def test_what_does_not_resolve_is_one_line(value):
    with pytest.raises(FslError) as error:
        config.resolve(OmegaConf.create({"seed": value}))
    assert str(error.value).startswith("seed: is missing" if value == "???" else "configuration: ")
    assert "\n" not in str(error.value)


def test_a_saved_configuration_is_read_back_the_same(default, tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.write_config(default)
    assert folder.read_config() == default
    assert config.validate(folder.read_config()) == config.validate(default)


@pytest.mark.parametrize("text", [None, "- a\n- list\n", "{not yaml", "a: ${missing}\n", "just words\n", "", "\x00"], ids=str)
def test_a_folder_that_is_no_run_or_whose_configuration_is_broken(text, tmp_path):
    folder = RunFolder(tmp_path)
    if text is not None:
        folder.config.write_text(text)
    with pytest.raises(FslError) as error:
        config.validate(folder.read_config())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("section", ["algo", "dataset", "backbone", "train.optimizer"])
def test_a_saved_configuration_cannot_run_code_either(section, default, tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(os, "system", ran.append)
    saved = changed(default)
    node = saved
    for part in section.split("."):
        node = node[part]
    node.clear()
    node |= {"_target_": "os.system", "command": "touch hacked"}
    folder = RunFolder(tmp_path)
    folder.write_config(saved)
    (line,) = problems(config.resolve(OmegaConf.create(folder.read_config())))
    assert line.startswith(f"{section}._target_: 'os.system' may not be built")
    with pytest.raises(FslError):
        build.build(node, section, {})
    assert ran == []


# --- defaults that suit an algorithm on a data set


def test_tuned_defaults_of_an_algorithm_on_a_data_set_are_used():
    names = sorted(path.stem for path in (conf_dir() / TUNED).glob("*.yaml"))
    assert len(names) == 10
    for name in names:
        algo, _, dataset = name.rpartition("_")
        assert (algo in choices("algo"), dataset in choices("dataset")) == (True, True)
        own, elsewhere = composed(f"algo={algo}", f"dataset={dataset}"), composed(f"algo={algo}")
        assert own["algo"]["inner_lr"] < elsewhere["algo"]["inner_lr"]
        config.validate(own)
    assert composed("algo=maml", "dataset=sinusoid", "algo.inner_lr=0.3")["algo"]["inner_lr"] == 0.3


def test_the_data_set_chooses_a_backbone_unless_the_user_does():
    assert composed("dataset=sinusoid")["backbone"]["name"] == "mlp"
    assert composed("dataset=sinusoid", "backbone=resnet12")["backbone"]["name"] == "resnet12"
    assert composed("dataset=glyphs")["backbone"]["name"] == "conv4"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["algo=protonet", "dataset=sinusoid"], "algo: protonet does not do regression, which dataset=sinusoid asks for"),
        (["algo=proto_maml", "dataset=sinusoid"], "algo: proto_maml does not do regression"),
        (["dataset=sinusoid", "task.ways=5"], "task.ways: 5 is not valid: dataset=sinusoid has no classes"),
        (["task.ways=null"], "task.ways: is missing"),
        (["~task.shots"], "task.shots: is missing"),
        (["~algo.name"], "algo.name: is missing"),
    ],
    ids=str,
)
def test_incompatible_settings_are_one_line(words, line):
    (found,) = problems(composed(*words))
    assert found.startswith(line)


def test_exactly_the_methods_with_an_inner_loop_support_regression():
    solvers = set()
    for name in choices("algo"):
        with contextlib.suppress(Problems):
            config.validate(composed(f"algo={name}", "dataset=sinusoid"))
            solvers.add(name)
    expected = {"maml", "fomaml", "anil", "boil", "metasgd", "mamlpp", "reptile", "imaml", "meta_lstm", "finetune"}
    assert solvers == expected
