"""What the shells complete."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import types
import typing
from pathlib import Path
from typing import Any

import pytest
from command_line import Run, composed, shell

from fsl_cli.cli import VERBS
from fsl_cli.settings import plain_yaml
from fsl_cli.settings.build import arguments_of
from fsl_cli.settings.conf_files import GROUPS, choices, members
from fsl_cli.settings.help_text import DATA
from fsl_cli.settings.literals import words_of, words_of_setting
from fsl_cli.settings.resolve import RUNTIME
from fsl_cli.settings.schema import EvalSettings, HardwareSettings, TrainSettings
from fsl_cli.settings.targets import target_of

# Completes the words that it is given as bash does when Tab is pressed behind them.
PRESS_TAB = r"""
fsl() { "$PYTHON" -m fsl_cli "$@"; }
eval "$(fsl completion bash)"
COMP_LINE=$1 COMP_POINT=${#1}
_fsl
printf '%s\n' "${COMPREPLY[@]}"
"""


def offered(fsl: Run, *words: str) -> list[str]:
    return fsl("completion", "for", *words).out.split()


def test_verbs_groups_members_options_and_values(fsl: Run):
    assert set(VERBS) <= set(offered(fsl, ""))
    assert offered(fsl, "tra") == ["train"]
    assert {f"{group}=" for group in GROUPS} <= set(offered(fsl, "train", ""))
    assert offered(fsl, "train", "algo=") == [f"algo={name}" for name in choices("algo")]
    assert offered(fsl, "train", "algo=maml,proto") == ["algo=maml,proto_maml", "algo=maml,protonet"]
    assert offered(fsl, "train", "algo=anil", "algo.first") == ["algo.first_order="]
    assert offered(fsl, "train", "algo.first_order=") == ["algo.first_order=true", "algo.first_order=false"]
    assert offered(fsl, "train", "train.schedule=") == [
        f"train.schedule={each}" for each in ("constant", "linear", "cosine", "step")
    ]
    assert offered(fsl, "train", "hardware.engine=v") == ["hardware.engine=vmap"]
    assert offered(fsl, "train", "algo=protonet", "algo.distance=") == ["algo.distance=sqeuclidean", "algo.distance=cosine"]
    assert offered(fsl, "train", "algo=anil", "algo.inner_optimizer=sgd,m") == ["algo.inner_optimizer=sgd,momentum"]
    assert offered(fsl, "train", "train.max_minutes=") == []
    assert offered(fsl, "train", "--h") == ["--help"]
    assert offered(fsl, "ls", "exp") == ["experiment"]
    assert offered(fsl, "eval", "train.iter") == []
    assert offered(fsl, "data", "") == [*DATA, "--help"]
    assert offered(fsl, "data", "show", "dataset=folder", "dataset.ro") == ["dataset.root="]
    assert {"class=", "episode=", "to=", "task.ways="} <= set(offered(fsl, "data", "show", ""))
    assert offered(fsl, "data", "show", "split=t") == ["split=train", "split=test"]
    assert offered(fsl, "data", "verify", "j") == ["json="]
    assert offered(fsl, "data", "ls", "algo") == []
    assert offered(fsl, "eval", "eval.epi") == ["eval.episodes="]


@pytest.mark.parametrize("algo", choices("algo"))
def test_every_option_of_a_method_is_offered(fsl: Run, algo: str):
    expected = {f"algo.{name}=" for name in composed(f"algo={algo}")["algo"].keys() - {"name", "_target_"}}
    assert set(offered(fsl, "train", f"algo={algo}", "algo.")) == expected


def limited_to(annotation: Any) -> set[str]:
    """The words of an annotation, found by importing it."""
    if typing.get_origin(annotation) is typing.Literal:
        return {str(each).lower() if isinstance(each, bool) else str(each) for each in typing.get_args(annotation)}
    if annotation is bool:
        return {"true", "false"}
    if annotation is type(None):
        return {"null"}
    inner = (
        typing.get_args(annotation)[:1] if typing.get_origin(annotation) is typing.Annotated else typing.get_args(annotation)
    )
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        return set().union(*map(limited_to, inner))
    return set()


def test_the_words_that_an_option_may_be_are_those_of_its_type():
    found = {}
    for group in ("algo", "dataset", "backbone"):
        for name in choices(group):
            node = plain_yaml.read(members(group)[name].path)
            target = node.get(group, node).get("_target_")
            cls = target and target_of({"_target_": target}, group)
            for option, (annotation, _) in (arguments_of(cls) if cls else {}).items():
                if option not in RUNTIME[group]:
                    expected = limited_to(annotation)
                    found[f"{target}.{option}"] = words_of(target, option)
                    assert set(found[f"{target}.{option}"]) == (expected if expected != {"null"} else set()), (target, option)
    for section, schema in (("train", TrainSettings), ("hardware", HardwareSettings), ("eval", EvalSettings)):
        for name, annotation in typing.get_type_hints(schema, include_extras=True).items():
            if name != "model_config":
                expected = limited_to(annotation)
                found[f"{section}.{name}"] = words_of_setting(f"{section}.{name}")
                assert set(found[f"{section}.{name}"]) == (expected if expected != {"null"} else set()), name
    assert sum(len(words) > 2 for words in found.values()) > 25


def test_run_folders_are_offered_the_newest_first(fsl: Run, tmp_path: Path):
    for time, name in enumerate(("one", "two words")):
        (tmp_path / "outputs/train" / name).mkdir(parents=True)
        (tmp_path / "outputs/train" / name / "config.yaml").touch()
        os.utime(tmp_path / "outputs/train" / name / "config.yaml", (time, time))
    listed = fsl("completion", "for", "eval", "run=").out.splitlines()
    assert listed == ["run=outputs/train/two words", "run=outputs/train/one"]
    assert offered(fsl, "train", "resume=outputs/train/o") == ["resume=outputs/train/one"]
    assert offered(fsl, "train", "hydra.run.dir=out") == ["hydra.run.dir=outputs/"]


@pytest.mark.parametrize(
    ("typed", "replies"),
    [
        ("fsl trai", ["train "]),
        ("fsl train algo=protonet backb", ["backbone=", "backbone.pool=", "backbone.filters="]),
        ("fsl train algo=meta", ["metaoptnet ", "metasgd ", "meta_lstm "]),
        ("fsl ls experim", ["experiment "]),
    ],
)
def test_bash(typed: str, replies: list[str], tmp_path: Path):
    done = shell("bash", "-c", PRESS_TAB, "bash", typed, cwd=tmp_path, PYTHON=sys.executable)
    assert done.stderr == ""
    found = done.stdout.splitlines()
    assert set(replies) <= set(found)
    assert len(found) == len(replies) or "backb" in typed


@pytest.mark.parametrize("name", ["zsh", "fish"])
def test_the_scripts_of_other_shells_are_valid(name: str, fsl: Run):
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"there is no {name}")
    script = fsl("completion", name).out
    subprocess.run([program, "-n"], input=script, text=True, check=True)


def test_fish_completes(tmp_path: Path):
    if shutil.which("fish") is None:
        pytest.skip("there is no fish")
    function = f"function fsl; {sys.executable} -m fsl_cli $argv; end"
    done = shell("fish", "-c", f"{function}; fsl completion fish | source; complete -C 'fsl train algo=proto'", cwd=tmp_path)
    assert sorted(done.stdout.split()) == ["algo=proto_maml", "algo=protonet"]


def test_zsh_completes(tmp_path: Path):
    if shutil.which("zsh") is None:
        pytest.skip("there is no zsh")
    stubs = f'fsl() {{ {sys.executable} -m fsl_cli "$@" }}; compdef() {{ }}; compadd() {{ print -r -- "$@" }}'
    press_tab = "words=(fsl train algo=protonet algo); CURRENT=4; _fsl"
    done = shell("zsh", "-fc", f'{stubs}; eval "$(fsl completion zsh)"; {press_tab}', cwd=tmp_path)
    assert done.stdout.startswith("-S  -- algo= algo.")
    assert "algo.distance=" in done.stdout.split()


def test_it_answers_without_hydra_and_torch(tmp_path: Path):
    code = (
        "import json, sys, fsl_cli.cli\n"
        "fsl_cli.cli.main(['completion', 'for', 'train', 'algo=mann', 'algo.'])\n"
        "print(json.dumps(sorted({'torch', 'hydra', 'omegaconf', 'pydantic', 'rich'} & set(sys.modules))))"
    )
    done = shell(sys.executable, "-c", code, cwd=tmp_path)
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_an_unknown_shell_is_one_line(fsl: Run):
    for words in ((), ("tcsh",)):
        outcome = fsl("completion", *words)
        assert outcome.code == 2
        assert "fsl completion: " in outcome.err
        assert "bash" in outcome.err
