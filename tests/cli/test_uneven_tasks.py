"""Episodes of different sizes through the command line: trained, resumed, tested, refused."""

from __future__ import annotations

from command_line import metrics, results


def test_a_metric_method_is_trained_and_tested_with_ranges_and_resumes_exactly(small, fsl, tmp_path):
    words = ("algo=protonet", "dataset=glyphs", "algo.train_ways=null", "task.ways=3..6", "task.shots=1..4")
    whole = small("whole", *words)
    assert results(whole)["task"] == {"ways": "3..6", "shots": "1..4", "queries": 2}
    small("part", *words, "train.iterations=4", "eval.episodes=0")
    small("part", *words, "resume=auto")
    assert metrics(tmp_path / "part") == metrics(whole)
    assert results(tmp_path / "part")["accuracy"] == results(whole)["accuracy"]
    assert results(tmp_path / "part")["episodes_digest"] == results(whole)["episodes_digest"]
    meta = ("task.sampling=meta_dataset", "task.ways=5..50", "task.shots=100", "task.queries=10")
    for name, changed in (("dirichlet", ("task.query_dirichlet=2.0", "task.ways=5")), ("meta", meta)):
        outcome = fsl("eval", f"run={whole}", *changed, f"hydra.run.dir={tmp_path / name}")
        assert outcome.code == 0, outcome.err
    assert results(tmp_path / "meta")["task"] == {"ways": "5..50", "shots": 100, "queries": 10, "sampling": "meta_dataset"}


def test_maml_takes_uneven_shots_and_refuses_uneven_ways_before_any_work(small, fsl, tmp_path):
    run = small("maml", "algo=maml", "dataset=glyphs", "task.shots=1..3", "task.shots_per=class")
    assert results(run)["task"]["shots_per"] == "class"
    outcome = fsl("eval", f"run={run}", "task.ways=3..5", f"hydra.run.dir={tmp_path / 'ways'}")
    assert outcome.code == 0, outcome.err
    outcome = fsl("train", "algo=maml", "dataset=glyphs", "task.ways=3..5", f"hydra.run.dir={tmp_path / 'no'}")
    assert outcome.code == 2
    assert "task.ways: 3..5 ways, but the head that is meta-learned is for one number of classes" in outcome.err
    assert not (tmp_path / "no").exists()
