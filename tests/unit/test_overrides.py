"""Overrides: flags in any position, close matches of unknown words, sweeps expanded as by Hydra."""

from __future__ import annotations

import itertools
import json

import pytest
from command_line import composed
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from fsl_cli.errors import FslError, Problems
from fsl_cli.run.plan import check
from fsl_cli.settings import overrides
from fsl_cli.settings.compose import Composer, run_folder, sweep_folder, without_hydra
from fsl_cli.settings.resolve import validate
from fsl_cli.settings.saved import changed


def jobs(*words: str) -> list[list[str]]:
    return overrides.jobs(overrides.parse(words))


def problems(*words: str) -> list[str]:
    with pytest.raises(Problems) as error:
        check(words)
    return [str(problem) for problem in error.value.problems]


# --- flags


@pytest.mark.parametrize(
    "flag", [["-m"], ["--multirun"], ["--cfg", "job"], ["--cfg=job"], ["-c", "job"], ["--info=all"]], ids=str
)
def test_a_flag_may_be_anywhere(flag):
    words = ["algo=maml", "seed=1,2", "train.iterations=3"]
    for position in range(len(words) + 1):
        flags, rest = overrides.split_flags([*words[:position], *flag, *words[position:]])
        assert (flags, rest) == (flag, words)


def test_several_flags_keep_their_order_and_values():
    flags, words = overrides.split_flags(["a=1", "--cfg", "job", "b=2", "-m", "--package", "algo", "c=-3"])
    assert flags == ["--cfg", "job", "-m", "--package", "algo"]
    assert words == ["a=1", "b=2", "c=-3"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--multrun"], "--multrun: unknown flag (did you mean --multirun?"),
        (["a=1", "-x"], "-x: unknown flag"),
        (["--config-name=x"], "--config-name=x: unknown flag"),
        (["--seed", "3", "a=1"], "--seed: unknown flag (write seed=3)"),
        (["a=1", "--cfg"], "--cfg: needs a value"),
    ],
    ids=str,
)
def test_unknown_flags(words, message):
    with pytest.raises(FslError) as error:
        overrides.split_flags(words)
    assert str(error.value).startswith(message)


# --- grammar


def test_all_invalid_overrides_are_reported_together():
    found = problems("algo", "seed=1", "train.schedule=a=b", "=3")
    assert found[0] == "algo: is no override (write key=value)"
    assert found[1].startswith("""train.schedule=a=b: is no override (quote the value: "train.schedule='a=b'")""")
    assert found[2].startswith("=3: is no override")
    assert len(found) == 3


@pytest.mark.parametrize(
    "word",
    [
        "seed=3",
        "seed=1,2,3",
        "seed=range(3)",
        "algo=maml,protonet",
        "algo.inner_lr=0.1",
        "backbone.filters=32",
        "train.optimizer.lr=choice(0.1,0.01)",
        "train.optimizer._target_=torch.optim.SGD",
        "+train.optimizer.momentum=0.9",
        "train.patience=null",
        "wandb.tags=[a,b]",
        "data_dir='/a folder'",
        "experiment=demo",
        "hydra.run.dir=/tmp/x",
        "hydra/job_logging=none",
    ],
)
def test_valid_words(word):
    check([word])


# --- unknown groups, members and keys


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("algo=protnet", "algo=protnet: there is no algo protnet (did you mean protonet?"),
        ("dataset=omniglott", "dataset=omniglott: there is no dataset omniglott (did you mean omniglot?"),
        ("algoo=maml", "algoo=maml: there is no such key (did you mean algo?"),
        ("sed=3", "sed=3: there is no such key (did you mean seed?"),
        ("train.iteration=3", "train.iteration=3: there is no such key (did you mean train.iterations?"),
        ("algo.inner_step=3", "algo.inner_step=3: there is no such key (did you mean algo.inner_steps?"),
        ("task.wys=3", "task.wys=3: there is no such key (did you mean task.ways?"),
        ("train.optimizer.lrr=3", "train.optimizer.lrr=3: there is no such key (did you mean train.optimizer.lr?"),
        ("wandb.nam=x", "wandb.nam=x: there is no such key (did you mean wandb.name?"),
        ("wandb.projct=x", "wandb.projct=x: there is no such key (did you mean wandb.project?"),
        ("hardware.devise=cpu", "hardware.devise=cpu: there is no such key (did you mean hardware.device?"),
        ("iterations=3", "iterations=3: there is no such key"),
        ("dataset/omniglot=x", "dataset/omniglot=x: there is no such group (did you mean dataset?"),
        ("+algo=maml", "+algo=maml: a group cannot be added or deleted"),
        ("~algo", "~algo"),
        ("experiment=null", "experiment=null: there is no experiment None"),
        ("+extra=1", "+extra=1: there is no such key"),
        ("algo=", "algo=: there is no algo"),
        ("experiment=dem", "experiment=dem: there is no experiment dem (did you mean demo?"),
    ],
)
def test_unknown_words(word, message):
    (line,) = problems(word)
    assert line.startswith(message)
    assert "\n" not in line


def test_all_unknown_words_are_reported_together_once():
    found = problems("algo=protnet,maml", "seed=1,2", "train.iteration=3", "sed=2")
    assert [line.split(":")[0] for line in found] == ["algo=protnet", "train.iteration=3", "sed=2"]


def test_keys_are_those_of_the_chosen_member():
    check(["algo=protonet", "algo.train_ways=20"])
    check(["algo.train_ways=20", "algo=protonet"])
    (line,) = problems("algo=maml", "algo.train_ways=20")
    assert line.startswith("algo.train_ways=20: there is no such key")
    (line,) = problems("algo=maml,protonet", "algo.distance=cosine")  # right for one job of the two
    assert line.startswith("algo.distance=cosine: there is no such key")


def test_added_options_are_checked_by_the_constructor():
    """``+`` may add an option that the YAML file does not name; the signature decides, in `build.check`."""
    check(["+train.optimizer.amsgrad=true"])
    assert composed("+train.optimizer.amsgrad=true")["train"]["optimizer"]["amsgrad"] is True


# --- sweeps

SWEEPS = [
    ["seed=1"],
    ["seed=1,2,3"],
    ["algo=maml,protonet", "seed=0,1"],
    ["seed=range(1,4)", "train.optimizer.lr=choice(0.1,0.01)", "task.shots=1"],
    ["seed=3,1,2", "algo=protonet,maml", "task.ways=5,20"],
    ["wandb.tags=[a,b],[c]", "seed=sort(3,1)"],
]


def test_jobs_are_the_product_of_the_sweeps_the_last_one_fastest():
    assert jobs("algo=maml,protonet", "task.shots=1", "seed=0,1,2") == [
        [f"algo={algo}", "task.shots=1", f"seed={seed}"] for algo, seed in itertools.product(["maml", "protonet"], [0, 1, 2])
    ]
    assert jobs() == [[]]
    assert jobs("seed=1", "algo=maml") == [["seed=1", "algo=maml"]]


HYDRAS_OWN = """
import json, os, sys
import hydra
from hydra.core.hydra_config import HydraConfig
for words in json.loads(sys.argv[1]):
    jobs = []
    sys.argv = ["app", "-m", "hydra.sweep.dir=sweep", "hydra/job_logging=none", "hydra/hydra_logging=none", *words]
    hydra.main(version_base="1.3", config_path=os.getcwd(), config_name="app")(
        lambda config: jobs.append(list(HydraConfig.get().overrides.task))
    )()
    print(json.dumps(jobs))
"""

SMALL_APP = """
defaults: [_self_, algo: maml]
seed: 0
task: {shots: 1, ways: 5}
train: {optimizer: {lr: 0.1}}
wandb: {tags: []}
"""


def test_jobs_are_those_that_hydra_runs(warm, tmp_path):
    """A Hydra application with the same keys, which prints the overrides of every job."""
    (tmp_path / "algo").mkdir()
    for name in ("maml", "protonet"):
        (tmp_path / "algo" / f"{name}.yaml").write_text(f"name: {name}\n")
    (tmp_path / "app.yaml").write_text(SMALL_APP)
    assert warm.start(HYDRAS_OWN, json.dumps(SWEEPS), module="-c", cwd=tmp_path, log=tmp_path / "log").wait() == 0
    hydras = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert hydras == [jobs(*words) for words in SWEEPS]
    assert [len(jobs) for jobs in hydras] == [1, 3, 4, 6, 12, 4]


# --- composing


def test_compose_is_hydras_and_leaves_no_global_state():
    config = Composer("train").compose(["algo=anil", "seed=7"])
    assert config.algo.adapt == "head"
    assert config.seed == 7
    assert "hydra" not in without_hydra(config)
    assert not GlobalHydra.instance().is_initialized()


@pytest.mark.parametrize(
    "word", ["seed=${nope}x{", "algo@foo=maml", "hydra.run.dirr=x", "hydra/job_logging=nope", "hydra/job_logging=null"]
)
def test_what_hydra_refuses_is_one_line(word):
    with pytest.raises(FslError) as error:
        Composer("train").compose([word])
    assert "\n" not in str(error.value)
    assert not GlobalHydra.instance().is_initialized()
    Composer("train").compose([])  # and the next one works


def test_output_folder_is_where_hydra_writes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train = Composer("train")
    assert run_folder(train.compose(["hydra.run.dir=here"])) == tmp_path / "here"
    assert sweep_folder(train.compose(["hydra.sweep.dir=there"], multirun=True)) == tmp_path / "there"
    name = run_folder(train.compose(["algo=anil"]))
    assert name.parent == tmp_path / "outputs" / "train"
    assert name.name.endswith("_anil_glyphs")
    assert run_folder(Composer("eval").compose(["run=x"])).parent == tmp_path / "outputs" / "eval"


def test_a_key_whose_default_is_null_is_known_beside_an_unknown_one():
    config = composed()
    unset = [
        key for key in overrides.all_keys(OmegaConf.create(config)) if OmegaConf.select(OmegaConf.create(config), key) is None
    ]
    assert {"wandb.name", "wandb.project", "wandb.tags", "train.patience", "hardware.threads"} <= set(unset)
    (line,) = problems("nonsense=1", *(f"{key}=1" for key in unset))
    assert line.startswith("nonsense=1: there is no such key")


def test_all_keys_names_what_may_be_set():
    keys = overrides.all_keys(OmegaConf.create(composed()))
    assert {"seed", "task.ways", "train.optimizer.lr", "algo.inner_lr", "wandb.name", "train.optimizer._target_"} <= set(keys)
    assert not {"algo._target_", "algo.name", "backbone.name"} & set(keys)


# --- overrides on a saved configuration (fsl eval)


@pytest.fixture(scope="module")
def saved() -> dict:
    return composed("algo=protonet", "dataset=omniglot", "seed=5", "task.shots=2")


def applied(saved: dict, *words: str) -> dict:
    return changed(saved, overrides.parse(words))


def refusals(saved: dict, *words: str) -> list[str]:
    with pytest.raises(Problems) as error:
        applied(saved, *words)
    return [str(problem) for problem in error.value.problems]


def test_a_saved_configuration_stays_but_for_the_overrides(saved):
    assert applied(saved) == saved
    new = applied(saved, "task.ways=20", "eval.episodes=50", "algo.batch_norm=transductive", "hardware.threads=1")
    assert new["task"] == {**saved["task"], "ways": 20}
    assert new["eval"] == {**saved["eval"], "episodes": 50}
    assert new["algo"] == {**saved["algo"], "batch_norm": "transductive"}
    assert {key for key in new if new[key] != saved[key]} == {"task", "eval", "algo", "hardware"}


def test_a_data_set_is_swapped_as_a_whole_and_its_options_follow(saved):
    new = applied(saved, "dataset.drawings=10", "dataset=glyphs")
    assert new["dataset"]["name"] == "glyphs"
    assert new["dataset"]["drawings"] == 10
    assert "rotations" not in new["dataset"]
    with pytest.raises(Problems, match=r"dataset.rotations: unknown option"):
        validate(applied(saved, "dataset=glyphs", "dataset.rotations=false"))


def test_what_a_trained_model_cannot_change(saved):
    found = refusals(
        saved,
        "algo=maml",
        "train.iterations=5",
        "seed=1",
        "task.shot=3",
        "task.ways=5,20",
        "+task.extra=1",
        "~task.shots",
        "dataset=omnigl",
    )
    starts = {
        "algo=maml: a trained model cannot change it",
        "train.iterations=5: belongs to training",
        "seed=1: belongs to training",
        "task.shot=3: there is no such key (did you mean task.shots?",
        "task.ways=5,20: one value at a time",
        "+task.extra=1: there is no such key",
        "~task.shots: there is no such key",
        "dataset=omnigl: there is no dataset omnigl (did you mean omniglot?",
    }
    assert len(found) == len(starts)
    assert all(any(line.startswith(start) for line in found) for start in starts)


def test_info_does_not_take_the_next_word_for_what_to_show():
    assert overrides.split_flags(["--info", "algo=maml"]) == (["--info=all"], ["algo=maml"])


@pytest.mark.parametrize("flag", ["--run", "--config-dir=x", "--config-name=x", "-cp"])
def test_flags_that_would_train_something_else_are_refused(flag):
    with pytest.raises(FslError, match="unknown flag"):
        overrides.split_flags([flag, "seed=1"])


def test_a_grid_sweep_does_not_accept_intervals():
    with pytest.raises(FslError, match=r"a grid cannot sweep this \(name the values: "):
        jobs("seed=1", "algo.inner_lr=interval(0.1,0.4)")


def test_a_glob_names_members_of_a_group():
    found = overrides.jobs(Composer("train").parse(["algo=glob(ma*)", "seed=1"]))
    assert found == [[f"algo={name}", "seed=1"] for name in ("maml", "mamlpp", "mann", "matchingnet")]


def test_swept_keys_are_those_with_several_values():
    every_job = jobs("algo=maml,anil", "+x.y=1,2", "seed=3", "algo.inner_lr=0.1")
    assert overrides.swept(every_job) == [{"algo": a, "x.y": y} for a in ("maml", "anil") for y in ("1", "2")]
    assert overrides.swept([["seed=1"]]) == [{}]
