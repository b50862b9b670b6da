"""What people type: folders with any characters, texts that look like numbers, options of sweep agents, repeated keys."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import pytest
import yaml
from command_line import merged, results, shell

from fsl_cli.settings.words import as_typed

SCRIPTS = Path(__file__).parents[2] / "scripts"
FOLDERS = ("lr=0.1, it's", "实验 ${b}", 'say "x"', "back\\slash[0](a)&{b}:c", "1e3")


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_are_taken_literally(fsl, tmp_path, name):
    run = Path("out") / name
    made = run if "${" not in name else Path("out") / name.replace("${", r"\${")  # in a new folder's name ${...} is filled in
    outcome = fsl("train", *merged(("algo=protonet", "algo.train_ways=5", "train.iterations=2", f"hydra.run.dir={made}")))
    assert outcome.code == 0, outcome.err
    assert results(tmp_path / run)["algo"] == "protonet"
    tested = fsl("eval", f"run={run}", f"hydra.run.dir={run}/tested", f"data_dir={name}", f"cache_dir=cache/{name}")
    assert tested.code == 0, tested.err
    assert results(tmp_path / run / "tested")["algo"] == "protonet"
    saved = yaml.safe_load((tmp_path / run / "tested" / "config.yaml").read_text(encoding="utf-8"))
    assert (saved["data_dir"], saved["cache_dir"]) == (str(tmp_path / name), str(tmp_path / "cache" / name))
    words = ("algo=protonet", "algo.train_ways=5", "train.iterations=3")
    further = fsl("train", *merged((*words, f"hydra.run.dir={run}", "resume=auto")))
    assert further.code == 0, further.err
    assert "resume  " in further.out
    other = fsl("train", *merged((*words, f"resume={run}", "hydra.run.dir=other")))
    assert other.code == 0, other.err
    assert results(tmp_path / "other")["iteration"] >= 2
    assert {path.name for path in (tmp_path / "out").iterdir()} == {name}


@pytest.mark.parametrize("name", ["it's =1, ${b} 实验", "plain"])
def test_a_working_folder_may_have_any_name(fsl, tmp_path, monkeypatch, name):
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    words = merged(("algo=protonet", "algo.train_ways=5", "train.iterations=2"))
    for more in ((), ("-m", "seed=0,1"), ("-m", "seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")):
        outcome = fsl("train", *words, *more)
        assert outcome.code == 0, outcome.err
    assert len(list((tmp_path / name).glob("outputs/sweep/*/[01]/results.json"))) == 4
    (run,) = (tmp_path / name).glob("outputs/train/*")
    for where in ((), ("hydra.run.dir=${run}/eval",)):
        tested = fsl("eval", f"run={run}", *where)
        assert tested.code == 0, tested.err
    assert (run / "eval" / "results.json").is_file()


def test_the_home_folder_is_expanded(fsl, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    words = merged(("algo=protonet", "algo.train_ways=5", "train.iterations=2", "hydra.run.dir=~/my run", "data_dir=~/d"))
    assert fsl("train", *words).code == 0
    assert fsl("eval", "run=~/my run", "hydra.run.dir=~/tested").code == 0
    assert results(tmp_path / "home" / "tested")["algo"] == "protonet"
    saved = yaml.safe_load((tmp_path / "home" / "my run" / "config.yaml").read_text())
    assert saved["data_dir"] == str(tmp_path / "home" / "d")


def test_names_of_new_folders_are_filled_in_and_hydras_quotes_stay_quotes(fsl, tmp_path):
    words = merged(("algo=protonet", "algo.train_ways=5", "train.iterations=2"))
    assert fsl("train", *words, "hydra.run.dir=out/a=${algo.name},seed ${seed}").code == 0
    assert fsl("train", *words, "hydra.run.dir='out/lr=0.1'").code == 0
    swept = fsl("train", "-m", *words, "seed=0,1", "hydra.sweep.dir=out/my, sweep", "hydra.sweep.subdir=s=${seed}")
    assert swept.code == 0, swept.err
    found = {str(path.parent.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("results.json")}
    assert found == {"a=protonet,seed 0", "lr=0.1", "my, sweep/s=0", "my, sweep/s=1"}


def test_texts_that_look_like_numbers_are_texts(fsl, tmp_path):
    texts = ("wandb.group=20241124", "wandb.tags=[a,2024,1e3]", "wandb.project=007", "wandb.entity=true", "data_dir=2024")
    outcome = fsl("train", *merged(("algo=protonet", "train.iterations=2", "algo.train_ways=5", *texts, "hydra.run.dir=1e3")))
    assert outcome.code == 0, outcome.err
    saved = yaml.safe_load((tmp_path / "1e3" / "config.yaml").read_text())
    wandb = saved["wandb"]
    assert (wandb["group"], wandb["project"], wandb["entity"]) == ("20241124", "007", "true")
    assert wandb["tags"] == ["a", "2024", "1e3"]
    assert saved["data_dir"] == str(tmp_path / "2024")
    assert fsl("eval", "run=1e3").code == 0
    more = ("algo=protonet", "train.iterations=3", "algo.train_ways=5", "resume=1e3", "hydra.run.dir=20241124")
    assert fsl("train", *merged(more)).code == 0
    again = ("algo=protonet", "train.iterations=4", "algo.train_ways=5", "resume=20241124", "hydra.run.dir=third")
    assert fsl("train", *merged(again)).code == 0


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("wandb.group=null", "wandb.group=null"),
        ("resume=false", "resume=false"),
        ("data_dir=null", "data_dir=null"),
        ("wandb.group=a,2024", "wandb.group=a,'2024'"),
        ("wandb.name=lr=0.1, it's", r"wandb.name='lr=0.1, it\'s'"),
        ("wandb.name=${algo.name}", "wandb.name=${algo.name}"),
        ("wandb.tags=['a, b',3]", "wandb.tags=['a, b',3]"),
        ("seed=1", "seed=1"),
        ("train.max_minutes=2", "train.max_minutes=2"),
        ("data_dir='a','b'", "data_dir='a','b'"),
        ("resume=a,b", "resume='a,b'"),
        ("algo.scale=1e3", "algo.scale=1e3"),
        ("dataset.root=2024", "dataset.root='2024'"),
        ("dataset.root=lr=0.1, it's", r"dataset.root='lr=0.1, it\'s'"),
        ("dataset.root=a/b", "dataset.root=a/b"),
        ("dataset.split_file=null", "dataset.split_file=null"),
        ("dataset.label=2024,name", "dataset.label='2024',name"),
        ("dataset.fractions=[0.6,0.2,0.2]", "dataset.fractions=[0.6,0.2,0.2]"),
        ("dataset.size=84", "dataset.size=84"),
    ],
)
def test_only_texts_and_folders_are_quoted(word, meant):
    assert as_typed([word]) == [meant]
    assert as_typed([meant]) == [meant]


@pytest.mark.parametrize("value", ["a=b", "it's", "a'b\"c", "$HOME=1", "x y=z"])
def test_the_hint_for_a_value_that_needs_quotes_can_be_pasted(fsl, value):
    outcome = fsl("train", f"train.schedule={value}")
    assert outcome.code == 2
    (line,) = outcome.err.splitlines()
    pasted = line.removesuffix(")").split("quote the value: ")[1]
    (word,) = shlex.split(pasted)
    assert f"train.schedule: {value!r} is not valid" in fsl("train", word).err


def test_a_list_that_the_shell_has_cut_says_so(fsl):
    outcome = fsl("train", "algo.test_inner_steps=[0,", "1]")
    assert outcome.code == 2
    assert 'close the bracket, and quote a word with blanks: "algo.test_inner_steps=[0, 1]"' in outcome.err


@pytest.mark.parametrize("words", [("train", "algo=maml\r"), ("train\r",), ("train", "\r"), ("eval", "run=x\r")])
def test_a_carriage_return_is_named(fsl, words):
    outcome = fsl(*words)
    assert outcome.code == 2
    assert "\\r': has a carriage return in it (a script that was edited on Windows" in outcome.err
    assert "\r" not in outcome.err


def test_a_carriage_return_in_the_environment_is_named(fsl, monkeypatch):
    monkeypatch.setenv("FSL_DATA_DIR", "/data\r")
    outcome = fsl("train", *merged(()))
    assert outcome.code == 2
    assert "data_dir='/data\\r': has a carriage return in it (set by a script that was edited on Windows? check FSL_DATA" in (
        outcome.err
    )


def test_options_as_agents_of_sweeps_write_them(fsl, tmp_path):
    words = [f"--{word}" for word in merged(("algo=protonet", "algo.train_ways=5", "seed=3", "hydra.run.dir=run"))]
    outcome = fsl("train", *words)
    assert outcome.code == 0, outcome.err
    assert (results(tmp_path / "run")["algo"], results(tmp_path / "run")["seed"]) == ("protonet", 3)
    assert fsl("eval", "--run=run", "--task.ways=3", "--hydra.run.dir=tested").code == 0
    swept = fsl("train", "--multirun", *words[:-1], "--eval.seed=0,1", "--hydra.sweep.dir=sweep")
    assert swept.code == 0, swept.err
    assert len(list(tmp_path.glob("sweep/*/results.json"))) == 2
    shown = fsl("train", "--algo=protonet", "--cfg=job", "--resolve", "--package=algo")
    assert shown.code == 0
    assert "_target_: fsl_cli.algos.protonet.ProtoNet" in shown.out
    assert "usage: fsl train" in fsl("train", "--seed=1", "--help").out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--sede=1",), "sede=1: there is no such key (did you mean seed?"),
        (("--mutirun",), "--mutirun: unknown flag (did you mean --multirun?"),
        (("--seed", "1"), "--seed: unknown flag (write seed=1)"),
        (("--config-name=x",), "--config-name=x: unknown flag"),
    ],
)
def test_a_misspelt_option_is_an_error(fsl, words, message):
    outcome = fsl("train", *words)
    assert outcome.code == 2
    assert message in outcome.err


@pytest.mark.parametrize("flags", [(), ("-m",)])
def test_a_repeated_key_is_an_error_that_shows_the_sweep(fsl, tmp_path, flags):
    outcome = fsl("train", *flags, "seed=0", "seed=1", "seed=2", "algo=maml")
    assert outcome.code == 2
    assert outcome.err == (
        "error: seed=0 seed=1 seed=2: seed is given 3 times "
        "(write it once; a sweep is seed=0,1,2, since bash turns {0,1,2} into 3 words)\n"
    )
    assert not list(tmp_path.iterdir())


def test_a_repeated_key_of_eval_is_an_error(small, fsl):
    run = small("run")
    assert "task.ways is given 2 times" in fsl("eval", f"run={run}", "task.ways=2", "task.ways=3").err
    assert "names several runs" in fsl("eval", f"run={run}", f"run={run}").err


def test_the_script_of_many_tests_takes_any_folder(small, warm, tmp_path, monkeypatch):
    monkeypatch.setenv("FSL", str(warm.fsl))
    name = "it's lr=0.1, ${b}"
    small("plain").rename(tmp_path / name)
    words = (name, "task.shots=1,2", "eval.episodes=4", f"out=a=b {name}")
    done = shell(SCRIPTS / "meta_test.sh", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    tested = [json.loads(path.read_text()) for path in sorted((tmp_path / f"a=b {name}").glob("*/results.json"))]
    assert [(each["task"]["shots"], each["accuracy"]["n"]) for each in tested] == [(1, 4), (2, 4)]
    assert (tmp_path / f"a=b {name}" / "results.md").read_text().count(name) == 2


def test_the_leaderboard_takes_any_folder_and_overrides_of_its_own_settings(warm, tmp_path, monkeypatch):
    monkeypatch.setenv("FSL", str(warm.fsl))
    out = "it's lr=0.1, ${b}"
    settings = [word for word in merged(("train.max_minutes=9", "train.schedule_by=iterations")) if "eval.episodes" not in word]
    words = ("methods=protonet+algo.train_ways=5+train.iterations=3", f"out={out}", "dataset=glyphs", "episodes=8", *settings)
    done = shell(SCRIPTS / "leaderboard.sh", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    (found,) = (tmp_path / out).glob("*/results.json")
    assert json.loads(found.read_text())["iteration"] <= 3


def test_without_a_home_folder_both_folders_are_enough(fsl, tmp_path, monkeypatch):
    import pwd

    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "FSL_DATA_DIR", "FSL_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, "")  # what is set in its place is forgotten after the test
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    words = merged(("algo=protonet", "algo.train_ways=5", "train.iterations=2", "wandb.mode=offline", "hydra.run.dir=run"))
    message = "is not set, and there is no home folder for a default (set FSL_DATA_DIR and FSL_CACHE_DIR, or HOME)"
    refused = fsl("train", *words)
    assert (refused.code, refused.err) == (2, f"error: data_dir: {message}\n")
    examined = fsl("doctor")
    assert examined.code == 1
    assert f"data_dir: {message}" in examined.err + examined.out
    monkeypatch.setenv("FSL_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("FSL_CACHE_DIR", str(tmp_path / "cache"))
    trained = fsl("train", *words)
    assert trained.code == 0, trained.err
    assert list(tmp_path.glob("run/wandb/offline-run-*/*.wandb"))
    assert fsl("eval", "run=run").code == 0
    assert fsl("doctor").code == 0
    assert os.path.expanduser("~") == "~"
