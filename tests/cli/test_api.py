"""The Python interface runs what the command line runs."""

from __future__ import annotations

import sys
import threading

import numpy as np
import pytest
import torch
from command_line import merged, metrics, results

import fsl_cli
from fsl_cli.episodes import Classification, Episodes, EpisodeSampler
from fsl_cli.episodes.episodes import Examples


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder and results of a run started from Python, in a thread, in a program with its own command line."""
    folder = tmp_path_factory.mktemp("api") / "run"
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["notebook", "-f", "kernel.json"])
        words = [*merged(("algo=protonet", "algo.train_ways=5")), f"hydra.run.dir={folder}"]
        thread = threading.Thread(target=lambda: found.append(fsl_cli.train(words)))
        thread.start()
        thread.join()
        assert sys.argv == ["notebook", "-f", "kernel.json"]
    return folder, *found


def test_train_is_the_run_of_the_command_line(run, small):
    folder, found = run
    alone = small("alone", "algo=protonet", "algo.train_ways=5")
    assert metrics(folder) == metrics(alone)
    assert results(folder) == results(alone)
    assert found.folder == folder
    assert found.score.mean == results(folder)["accuracy"]["mean"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in alone.iterdir())


def test_evaluate_is_the_test_of_the_command_line(run, fsl, tmp_path):
    folder, _ = run
    found = fsl_cli.evaluate(folder, ["task.ways=3", f"hydra.run.dir={tmp_path / 'here'}"])
    assert fsl("eval", f"run={folder}", "task.ways=3", f"hydra.run.dir={tmp_path / 'there'}").code == 0
    assert found.to_json() == results(tmp_path / "there") == results(tmp_path / "here")


def test_several_runs_of_a_second_get_folders_of_their_own(run, tmp_path):
    clock = f"hydra.run.dir='{tmp_path}/at_${{now:%Y}}'"  # a year is a long second
    words = merged(("algo=protonet", "train.iterations=1", clock))
    trained = [fsl_cli.train(words).folder.name for _ in range(2)]
    tested = [fsl_cli.evaluate(run[0], [clock]).folder.name for _ in range(2)]
    year, *others = [*trained, *tested]
    assert others == [f"{year}_{number}" for number in (2, 3, 4)]
    with pytest.raises(fsl_cli.FslError, match="already holds a run"):  # a name that somebody has chosen
        fsl_cli.evaluate(run[0], [f"hydra.run.dir={tmp_path / year}"])


def test_errors_are_raised(run, tmp_path):
    with pytest.raises(fsl_cli.FslError, match="algo=protnet: there is no algo protnet"):
        fsl_cli.train(["algo=protnet"])
    with pytest.raises(fsl_cli.FslError, match="these overrides make 2 jobs"):
        fsl_cli.train(["seed=0,1"])
    with pytest.raises(fsl_cli.FslError, match=r"eval.episodes: 0 leaves no results"):
        fsl_cli.train(["eval.episodes=0", f"hydra.run.dir={tmp_path / 'none'}"])
    with pytest.raises(fsl_cli.FslError, match="is not a run folder"):
        fsl_cli.load(tmp_path)
    assert not (tmp_path / "none").exists()


def test_a_model_predicts_what_the_test_predicts(run):
    model = fsl_cli.load(run[0])
    episodes = model.episodes("test", 3)
    names = np.array(["mug", "jar", "cup", "box", "can"])
    logits = model.algorithm.predict(episodes)
    for each in range(3):
        support, query = episodes.support, episodes.query
        answer = model.predict(support.x[each], names[support.y[each]], query.x[each])
        assert answer.classes == list(names)
        np.testing.assert_allclose(answer.outputs, logits[each], rtol=1e-4, atol=1e-5)
        assert answer.labels == [str(names[index]) for index in logits[each].argmax(-1)]
        np.testing.assert_allclose(answer.probabilities, logits[each].softmax(-1), rtol=1e-4, atol=1e-6)


def test_a_model_has_the_episodes_of_its_run_and_the_modes_of_a_test(run):
    model, other = (fsl_cli.load(run[0], words) for words in ([], ["eval.seed=5"]))
    assert not any(each.training for each in model.algorithm.modules())
    trained_on = EpisodeSampler(model._parts.dataset.split("train"), "train", model._parts.train_task, model.config["seed"])
    for each in (model, other):
        assert torch.equal(each.episodes("train", 2).support.x, trained_on.batch(0, 2).support.x)
    assert not torch.equal(other.episodes("val", 2).support.x, model.episodes("val", 2).support.x)


def test_pixels_in_any_order_and_uneven_shots(run):
    model = fsl_cli.load(run[0])
    episodes = model.episodes("test", 1)
    pixels = (episodes.query.x[0] * 255).round().to(torch.uint8)  # two queries of each class
    labels, rows = episodes.query.y[0], torch.tensor([7, 0, 5, 1, 2])  # two of class 0, one each of 3, 2 and 1
    answer = model.predict(pixels[rows].numpy(), labels[rows].numpy(), pixels.numpy())
    assert answer.classes == [3, 0, 2, 1]
    embedded = model.algorithm.embed(pixels.float() / 255).detach()
    means = torch.stack([embedded[rows][labels[rows] == label].mean(0) for label in answer.classes])
    np.testing.assert_allclose(answer.outputs, -(torch.cdist(embedded, means) ** 2), rtol=1e-3, atol=1e-4)


def test_invalid_inputs_of_a_model_are_errors(run):
    model = fsl_cli.load(run[0])
    support = model.episodes("test", 1).support
    with pytest.raises(fsl_cli.FslError, match=r"query_x: has the shape \[5, 28, 28\], not \[examples, 1, 28, 28\]"):
        model.predict(support.x[0], support.y[0], support.x[0, :, 0])
    with pytest.raises(fsl_cli.FslError, match="support_y: 2 labels for 5 examples"):
        model.predict(support.x[0], [0, 1], support.x[0])
    with pytest.raises(fsl_cli.FslError, match="support_y: there is only one class"):
        model.predict(support.x[0], [0] * 5, support.x[0])


def test_every_run_is_a_row(run, tmp_path):
    pandas = pytest.importorskip("pandas")
    folder, found = run
    table = fsl_cli.read_runs(folder.parent)
    assert isinstance(table, pandas.DataFrame)
    (row,) = table.to_dict("records")
    assert (row["folder"], row["state"], row["config.algo.name"]) == (str(folder), "done", "protonet")
    assert row["results.scores.accuracy.mean"] == found.score.mean
    with pytest.raises(fsl_cli.FslError, match="does not exist"):
        fsl_cli.read_runs(tmp_path / "nowhere")


def test_importing_the_package_is_light(warm, tmp_path):
    code = "import sys, fsl_cli; fsl_cli.FslError; print(sorted({'torch', 'hydra', 'numpy'} & set(sys.modules)))"
    assert "fsl_cli.train" not in code
    import subprocess

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_episodes_are_those_of_the_test(run):
    model = fsl_cli.load(run[0])
    several, later = model.episodes("test", 3), model.episodes("test", 1, first=2)
    assert isinstance(several, Episodes)
    assert isinstance(several.support, Examples)
    assert several.problem == Classification(5)
    assert torch.equal(several.query.x[2:], later.query.x)
