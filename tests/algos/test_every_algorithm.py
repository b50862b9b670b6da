"""What every algorithm of ``conf/algo`` must do, built from its YAML file."""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import io
import pkgutil
import re
import typing
from typing import Any

import command_line
import pytest
import torch
import yaml
from problems import changed, of_embeddings, striped_classes
from small_training import CPU, everything, is_same, train_settings
from typing_extensions import is_typeddict

from fsl_cli.algos import common
from fsl_cli.algos.common.algorithm import Algorithm
from fsl_cli.episodes import Classification, Episodes, EpisodeSampler, Task
from fsl_cli.evaluation import evaluate
from fsl_cli.inner import adaptation
from fsl_cli.run.parts import feature_width
from fsl_cli.settings import build
from fsl_cli.settings.conf_files import RESERVED, choices, conf_dir
from fsl_cli.training import Training

NAMES = choices("algo")
COUNT = 27
CLASSES = striped_classes(classes=12, images=10, size=12)
SHAPE = CLASSES.example_shape
WAYS = 3
# Besides the defaults: options that bring a state of their own, or take another way through the code.
VARIANTS = [(name, "") for name in NAMES] + [
    ("matchingnet", "fce=true"),
    ("matchingnet", "fce=true batch_norm=transductive"),
    ("mamlpp", "batch_norm=running"),
    ("imp", "batch_norm=transductive"),
    ("protonet", "distance=cosine"),
    ("reptile", "inner_optimizer=adam"),
    ("relationnet", "combine=mean"),
    ("nearest", "space=network"),
    ("mamlpp", "first_order_iterations=3"),
    ("meta_lstm", "hidden_size=4"),
    ("simpleshot", "transform=l2n"),
    ("logistic", "transform=un"),
    ("mann", "training=sequence"),
]


def test_every_algorithm_is_here():
    assert len(NAMES) == COUNT


@functools.cache
def composed(name: str) -> dict[str, Any]:
    """The configuration with the YAML file of an algorithm; composed once, must not be modified."""
    return command_line.composed(f"algo={name}", "backbone=mlp", "backbone.widths=[8]")


def made(
    name: str, seed: int = 0, *options: str, engine: str = "auto", batch_norm: bool = True
) -> tuple[Algorithm, dict[str, Any]]:
    """The algorithm of a YAML file with some of its options changed and small training episodes; and its configuration."""
    config = composed(name)
    changes = {key: yaml.safe_load(value) for key, value in (word.split("=") for word in options)}
    assert set(changes) <= set(config["algo"])
    algo = {**config["algo"], **changes}
    algo |= {key: value for key, value in {"train_ways": 4, "train_shots": 3, "train_queries": 2}.items() if key in algo}
    torch.manual_seed(seed)
    backbone = build.build({**config["backbone"], "batch_norm": batch_norm}, "backbone", {"example_shape": SHAPE})
    runtime = {
        "backbone": backbone,
        "features": feature_width(backbone, SHAPE),
        "ways": WAYS,
        "engine": engine,
        "classes": len(CLASSES),
        "image_shape": SHAPE,
        "problem": Classification(WAYS),
    }
    return build.build(algo, "algo", runtime), config


def training(name: str, seed: int = 0, shots: int = 1, option: str = "") -> Training:
    """A training of a few steps with the optimizer of the YAML file."""
    algorithm, config = made(name, seed, *option.split())
    optimizer = build.build(dict(config["train"]["optimizer"]), "train.optimizer", {"params": algorithm.parameters()})
    sampler = EpisodeSampler(CLASSES, "train", algorithm.train_task(Task(WAYS, shots, 2)), 0)
    return Training(algorithm, optimizer, sampler, train_settings(meta_batch=3), CPU)


def is_refused(name: str, ways: int) -> bool:
    """BOIL's head and the sequence methods are limited to the trained number of ways; other methods are not."""
    return (name == "boil" and ways != WAYS) or (name in ("mann", "ntm", "dnc", "snail") and ways > WAYS)


def steps(run: Training, count: int) -> Training:
    for _ in range(count):
        run.step()
    return run


@pytest.mark.parametrize("shots", [1, 5])
@pytest.mark.parametrize(("name", "option"), VARIANTS)
def test_resumes_bit_identically_and_training_does_not_depend_on_the_random_state_it_finds(name, option, shots):
    whole = training(name, 0, shots, option)
    initial = copy.deepcopy(whole.algorithm.state_dict())
    steps(whole, 2)
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    steps(whole, 2)
    state = torch.load(file, weights_only=True)
    second = training(name, 1, shots, option)
    second.algorithm.load_state_dict(state["algo"])
    second.load_state_dict(state)
    steps(second, 2)
    assert is_same(second.algorithm.state_dict(), whole.algorithm.state_dict())
    assert is_same(second.optimizer.state_dict(), whole.optimizer.state_dict())
    if any(each.requires_grad for each in whole.algorithm.parameters()) and not name.startswith("nearest"):
        assert not is_same(whole.algorithm.state_dict(), initial)


@pytest.mark.parametrize(
    ("name", "option", "ways", "shots"),
    [
        (*variant, ways, shots)
        for variant in VARIANTS
        for ways, shots in ((WAYS, 1), (WAYS, 5), (2, 5))
        if not is_refused(variant[0], ways)
    ],
)
def test_evaluates_the_same_twice_and_changes_nothing(name, option, ways, shots):
    algorithm = steps(training(name, 0, 1, option), 2).algorithm
    sampler = EpisodeSampler(CLASSES, "test", Task(ways, shots, 2), 0)
    before = everything(algorithm)
    one, other = (evaluate(algorithm, sampler, 10, CPU, curves=True) for _ in range(2))
    assert is_same(vars(one), vars(other))
    without = evaluate(algorithm, sampler, 10, CPU)
    assert is_same([one["accuracy"], one["loss"]], [without["accuracy"], without["loss"]])
    assert is_same(everything(algorithm), before)


@pytest.mark.parametrize("shots", [1, 5])
@pytest.mark.parametrize("ways", [2, 3, 6])
@pytest.mark.parametrize("name", NAMES)
def test_is_tested_with_other_ways_or_says_why_not(name, ways, shots):
    algorithm, _ = made(name)
    task = Task(ways, shots, 2)
    assert bool(algorithm.task_problems(task)) is is_refused(name, ways)
    if is_refused(name, ways):
        return
    episodes = EpisodeSampler(CLASSES, "test", task, 0).batch(0, 3)
    algorithm.eval()
    with torch.no_grad():
        logits = algorithm.predict(episodes)
    assert logits.shape == (3, 2 * ways, ways)
    assert logits.isfinite().all()


def test_options_of_the_training_episodes_are_used():
    for name in NAMES:
        algorithm, config = made(name)  # with train_ways 4, train_shots 3 and train_queries 2 where there is such an option
        has_ways, has_shots, has_queries = (f"train_{what}" in config["algo"] for what in ("ways", "shots", "queries"))
        expected = Task(4 if has_ways else 5, 3 if has_shots else 2, 2 if has_queries else 7)
        if name in ("baseline", "baselinepp", "finetune", "simpleshot", "logistic"):
            expected = Task(4, 1, 1)  # a mini-batch with two images of each class
        assert algorithm.train_task(Task(5, 2, 7)) == expected, name
        for what in ("ways", "shots", "queries"):  # null, except for mini-batches
            if f"train_{what}" in config["algo"] and expected != Task(4, 1, 1):
                setattr(algorithm, f"train_{what}", None)
        assert algorithm.train_task(Task(5, 2, 7)) == (expected if expected == Task(4, 1, 1) else Task(5, 2, 7)), name


PREDICTIONS = [
    (name, " ".join(word for word in (option, normalised) if word))
    for name, option in VARIANTS
    for normalised in (("batch_norm=inductive", "batch_norm=transductive") if "batch_norm" in composed(name)["algo"] else ("",))
    if not ("batch_norm" in option and normalised)
] + [("mamlpp", "batch_norm=running")]


@pytest.mark.parametrize(("name", "option"), PREDICTIONS)
def test_predictions_change_nothing_and_depend_on_other_queries_only_if_transductive(name, option):
    algorithm = steps(training(name, option=option), 1).algorithm.double()
    episodes = EpisodeSampler(CLASSES, "test", Task(WAYS, 2, 3), 0).batch(0, 4).to(dtype=torch.float64)
    before = everything(algorithm)
    logits = algorithm.predict(episodes)
    assert is_same(everything(algorithm), before)
    assert not logits.requires_grad
    assert torch.equal(algorithm.eval().predict(episodes), logits)

    exact = {"rtol": 1e-7, "atol": 1e-9}
    torch.testing.assert_close(torch.cat([algorithm.predict(part) for part in episodes.split(3)]), logits, **exact)
    for rows in ([3, 0, 5, 1, 8, 4, 2, 7, 6], [2, 3, 4, 5, 6]):
        some = changed(episodes, query_x=episodes.query.x[:, rows], query_y=episodes.query.y[:, rows])
        independent = len(rows) == 9 or not algorithm.transductive
        assert torch.allclose(algorithm.predict(some), logits[:, rows], **exact) is independent
    assert not (algorithm.embeds and algorithm.transductive)
    if "batch_norm=" in option:
        assert algorithm.transductive is ("batch_norm=transductive" in option)


@pytest.mark.parametrize(("name", "option"), VARIANTS)
def test_the_loss_and_its_gradient_do_not_depend_on_the_chunk(name, option):
    whole, parts = (training(name, option=option).algorithm.double() for _ in range(2))
    task = whole.train_task(Task(WAYS, 1, 2))
    episodes = EpisodeSampler(CLASSES, "train", task, 0).batch(0, 4).to(dtype=torch.float64)
    step = whole.loss(episodes)
    assert not step.outputs.requires_grad
    losses = [parts.loss(part).loss * len(part) / 4 for part in episodes.split(3)]
    exact = {"rtol": 1e-7, "atol": 1e-9}
    torch.testing.assert_close(sum(losses), step.loss, **exact)
    for one, other in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, **exact)  # running averages
    if step.loss.requires_grad:
        step.loss.backward()
        sum(losses).backward()
        for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
            assert (one.grad is None) is (other.grad is None)
            if one.grad is not None:
                torch.testing.assert_close(one.grad, other.grad, **exact)


@pytest.mark.parametrize(("name", "option"), VARIANTS)
def test_trains_and_predicts_in_mixed_precision(name, option):
    algorithm, _ = made(name, 0, *option.split())
    task = Task(WAYS, 2, 2)
    episodes = EpisodeSampler(CLASSES, "train", algorithm.train_task(task), 0).batch(0, 2)
    with torch.autocast("cpu", torch.bfloat16):
        step = algorithm.loss(episodes)
    assert step.loss.isfinite()
    if step.loss.requires_grad:
        step.loss.backward()
        gradients = [each.grad for each in algorithm.parameters() if each.grad is not None]
        assert all(each.dtype == torch.float32 and each.isfinite().all() for each in gradients)
        assert any(each.abs().max() > 0 for each in gradients)
    algorithm.eval()
    tested = EpisodeSampler(CLASSES, "test", task, 0).batch(0, 8)
    exact = algorithm.predict(tested).softmax(-1)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = algorithm.predict(tested).float().softmax(-1)
    assert (mixed - exact).abs().mean() < 0.03


ON_EMBEDDINGS = [
    *(("protonet", f"distance={distance}") for distance in ("sqeuclidean", "cosine")),
    *(("nearest", f"compare={compare}") for compare in ("mean", "image")),
    *(("simpleshot", f"transform={transform}") for transform in ("un", "cl2n")),
    *(("matchingnet", "scale=10"), ("siamese", "train_ways=4"), ("imp", "sigma=0.5"), ("r2d2", "init_lambda=1")),
    *(("metaoptnet", "ridge=1"), ("baseline", "test_steps=20"), ("baselinepp", "test_steps=20")),
]


@pytest.mark.parametrize(("name", "option"), ON_EMBEDDINGS)
def test_what_is_computed_from_embeddings_is_computed_in_full_precision(name, option):
    """With embeddings that bfloat16 represents exactly, no rounding remains."""
    algorithm, _ = made(name, 0, option)
    generator = torch.Generator().manual_seed(0)
    support, query = (torch.randn(2, rows, 8, generator=generator).bfloat16() for rows in (2 * WAYS, 5))
    labels = torch.arange(WAYS).repeat(2, 2)
    exact = algorithm.classify(of_embeddings(support.float(), labels, query.float(), WAYS))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = algorithm.classify(of_embeddings(support, labels, query, WAYS))
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, exact)


OPTIONS_OF = {name: set(composed(name)["algo"]) for name in NAMES}


@pytest.mark.parametrize("name", [name for name in NAMES if "test_inner_steps" in OPTIONS_OF[name]])
def test_the_accuracy_is_that_of_the_last_of_a_list_of_step_counts(name):
    algorithm, _ = made(name, 0, "test_inner_steps=[0,3]")
    for parameter in algorithm.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    sampler = EpisodeSampler(CLASSES, "test", Task(WAYS, 2, 4), 0)
    along, alone = (evaluate(algorithm, sampler, 20, CPU, curves=curves) for curves in (True, False))
    (curve,) = along.curves.values()
    assert is_same(along["loss"], alone["loss"])
    assert is_same(along["accuracy"], curve[:, -1].copy())
    assert not is_same(along["accuracy"], curve[:, 0].copy())


# An option, and what else is set, with it and without: further steps of Adam magnify rounding errors of zeros.
EFFECTS = {
    "inner_optimizer=adam": ["inner_lr=0.05", "test_inner_steps=1"],
    "inner_optimizer=momentum": ["test_inner_steps=3"],
    "inner_weight_decay=0.1": ["test_inner_steps=3"],
    "augment_support=affine": ["augment_copies=2"],
    "augment_copies=3": ["augment_support=affine"],
}
STEPPING = [name for name in NAMES if "augment_support" in OPTIONS_OF[name]]


def test_every_method_of_gradient_steps_has_the_options_of_the_inner_loop():
    assert len(STEPPING) == 11  # ten gradient methods, and fine-tuning
    for option in ("inner_optimizer", "inner_weight_decay"):
        assert [name for name in STEPPING if option not in OPTIONS_OF[name]] == ["meta_lstm"]  # it learns its optimizer
    # Nothing is kept of the steps of the others, or nothing is differentiated through them.
    kept = {"maml", "fomaml", "anil", "boil", "metasgd", "mamlpp", "proto_maml"}
    assert {name for name in NAMES if "checkpoint_inner" in OPTIONS_OF[name]} == kept


def shaken(name: str, words: list[str], engine: str = "auto") -> tuple[Algorithm, Episodes]:
    """In float64, with generic weights, and episodes of two shots."""
    algorithm, _ = made(name, 0, *words, engine=engine)
    torch.manual_seed(1)
    for parameter in algorithm.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape)
    episodes = EpisodeSampler(CLASSES, "test", Task(WAYS, 2, 3), 0).batch(0, 3)
    return algorithm.double(), episodes.to(dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "option"), [(name, option) for name in STEPPING for option in EFFECTS if option.split("=")[0] in OPTIONS_OF[name]]
)
def test_an_option_of_the_inner_loop_has_its_effect_which_does_not_depend_on_the_engine(name, option):
    found = []
    for engine, words in (("auto", [option]), ("loop", [option]), ("auto", [])):
        algorithm, episodes = shaken(name, [*EFFECTS[option], *words], engine)
        found.append(algorithm.eval().predict(episodes))
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-8)
    assert not torch.allclose(found[0], found[2], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", [name for name in NAMES if "checkpoint_inner" in OPTIONS_OF[name]])
def test_inner_steps_from_checkpoints_have_the_same_gradients(name, monkeypatch):
    runs, gradients = [], []
    checkpointed = adaptation.checkpointed
    monkeypatch.setattr(adaptation, "checkpointed", lambda *args, **how: runs.append(1) or checkpointed(*args, **how))
    for value in ("false", "true"):
        algorithm, episodes = shaken(name, ["inner_steps=3", f"checkpoint_inner={value}"])
        assert not runs
        algorithm.loss(episodes).loss.backward()
        gradients.append([each.grad for each in algorithm.parameters() if each.grad is not None])
    assert runs
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_the_page_of_a_method_has_its_metrics_its_measurement_and_its_command(name):
    algorithm, _ = made(name)
    page = inspect.getdoc(inspect.getmodule(type(algorithm)))
    for part in ("Batch normalisation", "Logged: ", "Measured on Omniglot, 5-way 1-shot", "scripts/leaderboard.sh"):
        assert part in page
    assert any(word in page for word in ("Deviations", "no paper to deviate from"))
    assert "    fsl train algo=" in page
    assert name in page


def documented(algorithm: Algorithm) -> set[str]:
    """The names that the docstring of a class, and those of the groups of options that it takes, have an entry for."""
    cls = type(algorithm)
    options = typing.get_type_hints(cls.__init__, include_extras=True).get("options")
    keys = set(typing.get_args(options)[0].__annotations__) if options else set()
    groups = [group for group in option_groups() if keys >= set(group.__annotations__)]
    docs = [inspect.getdoc(each) for each in (cls, *groups)]
    return {match for doc in docs for match in re.findall(r"^    (\w+): ", doc, re.MULTILINE)}


def option_groups() -> list[type]:
    """The groups of options in ``fsl_cli.algos.common``."""
    found = [importlib.import_module(f"{common.__name__}.{each.name}") for each in pkgutil.iter_modules(common.__path__)]
    return [value for module in found for value in vars(module).values() if is_typeddict(value)]


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_in_the_docstring_of_its_class(name):
    algorithm, config = made(name)
    assert len(option_groups()) >= 8
    assert set(config["algo"]) - RESERVED - documented(algorithm) == set()


@pytest.mark.parametrize("name", NAMES)
def test_every_option_has_a_comment_in_its_yaml_file(name):
    lines = (conf_dir() / "algo" / f"{name}.yaml").read_text().split("\nalgo:\n")[1].split("\n\n")[0].splitlines()
    options = {line.split(":")[0].strip(): line for line in lines}
    assert options
    assert [key for key, line in options.items() if key not in RESERVED and " # " not in line] == []
