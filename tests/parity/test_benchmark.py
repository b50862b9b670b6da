"""The benchmark gives both sides the same work and reports its measurements."""

from __future__ import annotations

import json

import benchmark
import benchmark_loading
import benchmark_peer
import benchmark_processes
import benchmark_rows
import pytest
import torch
from benchmark_timing import alternate, compare, peak_mb
from problems import striped_classes

from fsl_cli.compute import hardware
from fsl_cli.datasets import cifar100
from fsl_cli.episodes import Task
from fsl_cli.episodes.class_images import ClassImages

CPU = torch.device("cpu")
IMAGES = striped_classes(classes=24, images=20, size=28)


@pytest.fixture
def bench(tmp_path, learn2learn):
    benchmark_peer.write_pictures(ClassImages(IMAGES.images[:160], IMAGES.counts[:8], IMAGES.names[:8]), tmp_path)
    used = hardware.Hardware(CPU, "fp32", 2)
    return benchmark_rows.Bench(used, 1, IMAGES, IMAGES, tmp_path)


def test_peak_memory_counts_simultaneously_allocated_tensors():
    def run() -> None:
        first = torch.ones(2**20)  # 4 MiB
        del first
        second, third = torch.ones(2**20), torch.ones(2**19)
        del second, third

    assert peak_mb(run, CPU) == pytest.approx(6, abs=0.01)


def test_runs_alternate_after_a_warm_up():
    calls: list[str] = []
    assert len(alternate([lambda: calls.append("a"), lambda: calls.append("b")], 2, CPU)) == 2
    assert "".join(calls) == "ababab"


def test_a_ratio_above_one_means_that_ours_is_faster():
    row = compare("name", "what", lambda: None, lambda: sum(range(10**5)), 3, CPU, times=10)
    assert row.ratio == pytest.approx(row.peer_s / row.ours_s)
    assert row.ratio > 10


@pytest.mark.parametrize("steps", [1, 3])
def test_both_sides_have_the_same_loss_and_the_same_outer_gradient(bench, steps):
    episodes = benchmark_rows.EpisodeSampler(IMAGES, "train", Task(5, 1, 3), 0).batch(0, 3)
    algorithm = benchmark_rows.maml(bench, 5, steps)
    theirs = benchmark_peer.meta_learner(benchmark_peer.omniglot_net(algorithm.net, 5, CPU), benchmark_rows.INNER_LR)
    mine, other = (module.double() for module in (algorithm, theirs))
    exact = episodes.to(dtype=torch.float64)
    loss = benchmark_rows.outer_gradient(bench.used, mine, exact)
    assert benchmark_peer.meta_step(other, exact, steps) == pytest.approx(loss, rel=1e-9)
    pairs = [(mine.net.head.weight, other.module.classifier.weight), (mine.net.head.bias, other.module.classifier.bias)]
    for mine_block, block in zip(mine.net.body.blocks, other.module.base, strict=True):
        pairs += [(mine_block[0].weight, block.conv.weight), (mine_block[1].weight, block.normalize.weight)]
        pairs += [(mine_block[1].bias, block.normalize.bias)]
    for ours, their in pairs:
        torch.testing.assert_close(ours.grad, their.grad, rtol=1e-6, atol=1e-9)


def test_different_losses_are_an_error():
    with pytest.raises(SystemExit, match="the losses differ"):
        benchmark_rows.must_agree("row", 1.0, 1.1)


def test_the_peers_pipeline_draws_tasks_of_the_same_shape(bench):
    support_x, support_y, query_x, query_y = benchmark_peer.tasks(bench.pictures, Task(5, 1, 3), CPU)()
    assert (support_x.shape, query_x.shape) == ((5, 1, 28, 28), (15, 1, 28, 28))
    assert sorted(support_y.tolist()) == [0, 1, 2, 3, 4]
    assert sorted(query_y.tolist()) == sorted([0, 1, 2, 3, 4] * 3)
    assert 0 <= support_x.min() < support_x.max() <= 1


def test_it_prints_a_table_and_writes_json(bench, tmp_path, monkeypatch, capsys):
    def tiny(given):
        yield benchmark_rows.meta_step(given, "meta_step_5steps_1query", Task(5, 1, 1), 1, tasks=2)
        yield benchmark_rows.iteration_with_data(given)

    monkeypatch.setattr(benchmark, "SUITES", {"quick": (tiny, 1)})
    monkeypatch.setattr(benchmark, "images", lambda: ("stripes", IMAGES, IMAGES, IMAGES))
    monkeypatch.setattr(hardware, "set_up", lambda *settings: bench.used)
    benchmark.main(["--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["machine"]["images"] == "stripes"
    assert found["machine"]["learn2learn"] == "0.2.0"
    assert [row["name"] for row in found["rows"]] == ["meta_step_5steps_1query", "iteration_with_data"]
    for row in found["rows"]:
        assert row.keys() >= {"name", "ours_s", "peer_s", "ratio", "ours_peak_mb", "peer_peak_mb"}
        assert row["ratio"] == pytest.approx(row["peer_s"] / row["ours_s"])
        assert row["ours_peak_mb"] > 1
    shown = capsys.readouterr().out
    assert "meta_step_5steps_1query" in shown
    assert "hours" in shown


def test_the_quick_suite_has_the_rows_of_the_readme(monkeypatch):
    rows = []
    for name in ("meta_step", "iteration_with_data", "sampling", "proto_eval"):
        monkeypatch.setattr(benchmark_rows, name, lambda *arguments, name=name: rows.append(arguments[1:2] or name))
    list(benchmark_rows.quick(None))
    names = [("meta_step_5steps_1query",), ("meta_step_5steps_15query",), "iteration_with_data", "sampling", "proto_eval"]
    assert rows == names


def test_two_sides_alternate_after_a_warm_up():
    calls: list[str] = []

    def side(name, seconds):
        values = iter(seconds)
        return lambda: (calls.append(name), next(values))[1]

    sides = {"passive": side("p", [9.0, 1.0, 3.0, 2.0]), "default": side("d", [1.0, 6.0, 2.0, 4.0])}
    pair = benchmark_processes.in_turns("row", "what", sides, 3)
    assert "".join(calls) == "pdpdpdpd"
    assert (pair.sides, pair.seconds, pair.ratio) == (("passive", "default"), (2.0, 4.0), 2.0)


@pytest.mark.slow
def test_steps_on_a_busy_machine_are_measured_in_processes(tmp_path, monkeypatch, capsys):
    make, _, images = benchmark_processes.SUITES["busy"]
    monkeypatch.setitem(benchmark.PAIRS, "busy", (make, 1, images))
    benchmark.main(["--suite", "busy", "--json", str(tmp_path / "found.json")])
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["step_quiet", "step_busy"]
    assert all(0 < seconds < 600 for row in rows for seconds in row["seconds"])
    assert "step_busy" in capsys.readouterr().out


@pytest.mark.slow
def test_loading_is_measured_beside_both_libraries(learn2learn, tmp_path, monkeypatch):
    pytest.importorskip("easyfsl")
    monkeypatch.setenv("FSL_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(cifar100, "PICTURES", 2)
    pairs = list(benchmark_loading.loading(1, classes=10, per_class=20, small=2))
    drawn = [pair for pair in pairs if pair.name.startswith("draw_")]
    assert [pair.sides for pair in drawn[:2]] == [("fsl", "learn2learn"), ("fsl", "easyfsl")]
    assert all(pair.ratio > 1 for pair in drawn)
    assert [pair.name for pair in pairs if pair not in drawn] == ["pack_zip", "pack_files", "step_mapped"]


@pytest.mark.parametrize("tasks", [benchmark_peer.tasks_of_folder, lambda *each: benchmark_peer.easyfsl_tasks(*each, 0)])
def test_both_libraries_draw_tasks_of_the_same_shape_from_image_files(learn2learn, tmp_path, tasks):
    pytest.importorskip("easyfsl")
    benchmark_loading._write_pictures(tmp_path, 6, 5)
    images = [each for each in tasks(tmp_path, Task(5, 1, 3))() if getattr(each, "ndim", 0) == 4]
    assert sum(map(len, images)) == 20
    assert all(each.shape[1:] == (3, 84, 84) and 0 <= each.min() < each.max() <= 1 for each in images)


@pytest.mark.slow
def test_the_start_of_a_run_takes_cpu_time(tmp_path):
    seconds = benchmark_processes.first_iteration({"PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"})
    assert 1 < seconds < 300
    assert not list(tmp_path.iterdir())
