"""The commands of the README work, with smaller counts: in this process, or from a fork where a script starts them."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from command_line import SMALL, results, shell
from PIL import Image

from fsl_cli.cli import main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", README, flags=re.S)
COMMANDS = [line.split(" #")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]
SMALLER = [word for word in SMALL if not word.startswith("backbone")]


def runnable(start: str) -> list[str]:
    return [line for line in COMMANDS if line.startswith(start)]


def test_the_readme_has_commands():
    assert len(COMMANDS) >= 18
    assert "make demo" in COMMANDS
    assert "make test" in COMMANDS
    assert len(runnable("fsl train")) >= 6
    assert len(runnable("fsl eval")) == 10
    assert len(runnable("scripts/")) == 4


def needs_omniglot(line: str) -> bool:
    return "omniglot" in line and "--cfg" not in line


def reduced(line: str) -> list[str]:
    """The arguments of a command, with smaller counts added for keys that it does not set."""
    words = shlex.split(line)
    given = {word.split("=")[0] for word in words}
    smaller = SMALLER if {"dataset=features", "dataset=text"} & set(words) else [*SMALLER, "backbone.filters=4"]
    words = [re.sub(r"^(train\.iterations|eval\.episodes)=[1-9]\d*$", r"\1=6", word) for word in words]
    words = [re.sub(r"^(hydra\.sweeper\.n_trials)=\d+$", r"\1=2", word) for word in words]
    return words + [word for word in smaller if word.split("=")[0] not in given]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``photos``, ``photos.csv``, ``embeddings.npz`` and ``intents.csv`` in the current folder."""
    monkeypatch.chdir(tmp_path)
    rows = ["file,label,split"]
    for number in range(15):
        folder = tmp_path / "photos" / f"class {number}"
        folder.mkdir(parents=True)
        for k in range(16):
            Image.new("L", (9, 9), 16 * number + k).save(folder / f"{k}.png")
            rows.append(f"class {number}/{k}.png,{number},{('train', 'val', 'test')[number % 3]}")
    (tmp_path / "photos.csv").write_text("\n".join(rows))
    texts = [f"word{number} word{number % 7},intent {number % 30}" for number in range(600)]
    (tmp_path / "intents.csv").write_text("\n".join(["text,label", *texts]))
    np.savez(tmp_path / "embeddings.npz", x=np.random.default_rng(0).normal(size=(600, 8)), y=np.arange(600) % 30)


@pytest.mark.parametrize("line", [line for line in runnable("fsl train") if "mine" not in line])
def test_train(line, fsl, request):
    if "dataset=text" in line:
        pytest.importorskip("wordllama", reason="wordllama is not installed")
    if any(file in line for file in ("photos", "embeddings", "intents")):
        request.getfixturevalue("photos")
        line += " task.ways=3"
    if needs_omniglot(line):
        request.getfixturevalue("omniglot_dir")
    outcome = fsl(*reduced(line)[1:])
    assert outcome.code == 0, outcome.err
    if not any(part in line for part in ("--cfg", "eval.episodes=0", "hydra/launcher")):
        assert re.search(r"test  \d+ episodes  accuracy \d+\.\d\d ± \d+\.\d\d % \(95% CI, t\)", outcome.out)


def test_a_package_of_ones_own(fsl, monkeypatch, omniglot_dir):
    assert fsl(*runnable("fsl new algo")[0].split()[1:]).code == 0
    (line,) = runnable("export FSL_PLUGINS=")
    monkeypatch.setenv(*line.removeprefix("export ").split("="))
    (train,) = [line for line in runnable("fsl train") if "mine" in line]
    outcome = fsl(*reduced(train)[1:])
    assert outcome.code == 0, outcome.err


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which ``outputs/train/FOLDER`` is a run."""
    folder = tmp_path_factory.mktemp("readme")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", *SMALLER, "backbone.filters=4", "hydra.run.dir=outputs/train/FOLDER"]) == 0
    return folder


@pytest.mark.parametrize("line", runnable("fsl eval"))
def test_eval(line, trained, fsl, monkeypatch, tmp_path, request):
    words = [re.sub(r"^eval\.episodes=\d+$", "eval.episodes=6", word) for word in shlex.split(line)[1:]]
    if "photos" in line:
        request.getfixturevalue("photos")
        words = [word.replace("=photos", f"={tmp_path / 'photos'}") for word in words] + ["task.ways=3"]
    monkeypatch.chdir(trained)
    if needs_omniglot(line):
        words.append(f"data_dir={request.getfixturevalue('omniglot_dir')}")
    outcome = fsl(*words, f"hydra.run.dir={tmp_path / 'eval'}")
    assert outcome.code == 0, outcome.err


def test_meta_test(trained, warm):
    (line,) = runnable("scripts/meta_test.sh")
    done = shell("bash", "-c", f"{ROOT}/{line} episodes=6 out=table", cwd=trained, FSL=str(warm.fsl))
    assert done.returncode == 0, done.stderr
    assert results(trained / "table" / "3")["task"] == {"ways": 20, "shots": 5, "queries": 2}
    assert results(trained / "table" / "3")["accuracy"]["n"] == 6


@pytest.mark.parametrize("line", runnable("scripts/leaderboard.sh"))
def test_leaderboard(line, warm, tmp_path, request):
    methods = [] if "methods=" in line else ["methods=protonet"]  # all of them are in tests/algos/test_every_algorithm.py
    if "dataset=" not in line:
        request.getfixturevalue("omniglot_dir")
    words = [word for word in SMALLER if not word.startswith(("eval.episodes", "train.iterations"))]
    words = [*line.split()[1:], *methods, *words, "minutes=0.001", "episodes=6"]
    done = shell(ROOT / line.split()[0], *words, cwd=tmp_path, FSL=str(warm.fsl))
    assert done.returncode == 0, done.stderr


def test_doctor(fsl):
    (line,) = runnable("fsl doctor")
    outcome = fsl(*line.split()[1:])
    assert outcome.code == 0, outcome.err
    assert outcome.out.strip()


@pytest.mark.parametrize("line", [*runnable("fsl ls"), "make help"])
def test_as_the_shell_starts_it(line, tmp_path):
    done = shell(*shlex.split(line), cwd=ROOT if line.startswith("make") else tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_notebook(monkeypatch, tmp_path):
    """Its code runs in order, with smaller counts; what it was executed with is in the file."""
    import matplotlib

    cells = json.loads((ROOT / "docs/fsl_in_python.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 6
    assert all(cell["outputs"] for cell in cells if cell["cell_type"] == "code")
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    namespace: dict = {}
    for text in code:
        text = text.replace('"train.iterations=200"', '"train.iterations=6", "train.val_episodes=4"')
        exec(re.sub(r'"(train\.val_every|eval\.episodes)=\d+"', r'"\1=6"', text), namespace)
    assert namespace["right"] > 15  # of 75; 15 is chance
    assert len(namespace["table"]) == 2
    assert {"results", "harder", "answer"} <= set(namespace)


def test_the_python_of_the_readme(monkeypatch, tmp_path):
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", README, flags=re.S) if "import fsl_cli" in block]
    monkeypatch.chdir(tmp_path)
    words = [*SMALLER, "backbone.filters=4", "algo.train_ways=5"]
    code = code.replace('"train.iterations=200"]', f"{', '.join(map(repr, words))}]")
    model_shape, ways = (1, 28, 28), 3
    random = np.random.default_rng(0)
    namespace = {
        "support_x": random.random((ways, *model_shape)),
        "support_y": ["a", "b", "c"],
        "query_x": random.random((2, *model_shape)),
    }
    exec(code, namespace)
    assert namespace["harder"].task["ways"] == 10
    assert len(namespace["answer"].labels) == 2
    assert len(namespace["table"]) == 2
