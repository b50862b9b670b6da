"""A run folder that somebody else made is data: opening it changes no file, reads no environment and no folder of theirs."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from command_line import merged, results

from fsl_cli.datasets.pack_reading import HASHES, INDEX, image_hashes


def edited(run: Path, **sections: object) -> Path:
    """The run with other sections in its saved configuration."""
    saved = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(saved | sections))
    return run


@pytest.mark.parametrize("section", ["dataset", "backbone", "algo"])
def test_a_configuration_cannot_name_a_class_that_destroys_a_file(small, fsl, tmp_path, section):
    precious = tmp_path / "precious.jsonl"
    precious.write_text('{"iteration": 1}\n')
    node = {"_target_": "fsl_cli.results.tracking.JsonLines", "name": "glyphs", "path": str(precious), "upto": 0}
    outcome = fsl("eval", f"run={edited(small('run'), **{section: node})}")
    assert precious.read_text() == '{"iteration": 1}\n'
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: {section}._target_: 'fsl_cli.results.tracking.JsonLines' may not be built here")
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "outputs").exists()


def everything_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_configuration_does_not_read_the_environment(small, fsl, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    run = small("run")
    saved = yaml.safe_load((run / "config.yaml").read_text())
    asking = {"algo": saved["algo"] | {"name": "${oc.env:SECRET}"}, "resume": "${oc.env:SECRET}", "wandb": "${oc.env:SECRET}"}
    outcome = fsl("eval", f"run={edited(run, **asking)}", f"hydra.run.dir={tmp_path / 'again'}")
    assert outcome.code == 0, outcome.err
    assert results(tmp_path / "again")["algo"] == "${oc.env:SECRET}"
    assert "hunter2" not in outcome.out + outcome.err
    assert b"hunter2" not in everything_in(tmp_path / "again")
    referring = fsl("eval", f"run={run}", "task.shots=${algo.name}", f"hydra.run.dir={tmp_path / 'referring'}")
    assert "hunter2" not in referring.out + referring.err
    assert "task.shots: '${oc.env:SECRET}' is not valid" in referring.err
    from fsl_cli.results.records import records
    from fsl_cli.results.tables import row

    (run / "results.json").unlink()  # the table then describes the configuration
    assert row(run, "run")["algo"] == "${oc.env:SECRET}"
    assert "hunter2" not in str(records([tmp_path]))


@pytest.mark.parametrize("text", ["${oc.env:SECRET}", "${now:%Y}", "${", "${a", r"\${oc.env:SECRET}", "???"])
def test_a_number_that_is_text_is_refused_as_it_stands(small, fsl, tmp_path, monkeypatch, text):
    monkeypatch.setenv("SECRET", "3")
    run = small("run")
    outcome = fsl("eval", f"run={edited(run, task={'ways': 5, 'shots': text, 'queries': 2})}")
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "outputs").exists()


def test_the_test_images_are_the_readers_own(small, fsl, tmp_path, monkeypatch):
    """A pack in the received run's cache folder, with test images that nobody can mistake, is not used."""
    run = small("run")
    doctored = tmp_path / "doctored"
    own = Path(os.environ["FSL_CACHE_DIR"]) / "packs"
    shutil.copytree(own, doctored / "packs", ignore=shutil.ignore_patterns("omniglot*", ".*"))
    for hashes_file in doctored.rglob(HASHES):
        make_trivial(hashes_file.with_name(INDEX))
    edited(run, cache_dir=str(doctored), data_dir=str(doctored))
    cheated = fsl("eval", f"run={run}", f"cache_dir={doctored}", f"hydra.run.dir={tmp_path / 'cheated'}")
    assert cheated.code == 0, cheated.err
    assert results(tmp_path / "cheated") != results(run)  # the doctored images are there, and can be read
    for folder in ("again", "default"):
        if folder == "default":  # without FSL_CACHE_DIR it is the platform's
            monkeypatch.delenv("FSL_CACHE_DIR")
            monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
            (tmp_path / "xdg" / "fsl").mkdir(parents=True)
            (tmp_path / "xdg" / "fsl" / "packs").symlink_to(own)
        outcome = fsl("eval", f"run={run}", f"hydra.run.dir={tmp_path / folder}")
        assert outcome.code == 0, outcome.err
        assert results(tmp_path / folder) == results(run)
        assert str(doctored) not in (tmp_path / folder / "config.yaml").read_text()


def make_trivial(index_file: Path) -> None:
    """Give all images of a class of the test split the same pixels, other ones than those of the other classes."""
    images = np.load(index_file.with_name("images.npy"), mmap_mode="r+")
    index = json.loads(index_file.read_text())
    first, rows = index["test"]["first"], np.repeat(np.arange(len(index["test"]["counts"])), index["test"]["counts"])
    bits = (rows[:, None] >> np.arange(8)) & 1
    images[first : first + len(rows)] = 0
    images[first : first + len(rows), 0, :8, :8] = 255 * bits[:, None, :]
    images.flush()
    hashes = np.load(index_file.with_name(HASHES), mmap_mode="r+")
    hashes[first : first + len(rows)] = image_hashes(images[first : first + len(rows)])
    hashes.flush()


PLUG_IN = """
from pathlib import Path
from fsl_cli.datasets.glyphs import Glyphs
class Placed(Glyphs):
    def __init__(self, cache_dir: Path, *, root: Path, other: Path | None = None):
        super().__init__(cache_dir)
        print("root", root, "other", other)
"""


def test_folders_of_a_data_set_are_the_readers_own_too(small, fsl, tmp_path, monkeypatch):
    conf = tmp_path / "plugged" / "conf" / "dataset"
    conf.mkdir(parents=True)
    (tmp_path / "plugged" / "placed_data.py").write_text(PLUG_IN)
    (conf / "placed.yaml").write_text("name: placed\n_target_: placed_data.Placed\nroot: ???\nother: theirs\n")
    monkeypatch.setenv("FSL_PLUGINS", str(tmp_path / "plugged"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    run = small("run", "dataset=placed", "dataset.root=mine")
    refused = fsl("eval", f"run={run}")
    assert refused.code == 2
    for key, value in (("root", "mine"), ("other", "theirs")):
        assert (
            f"error: dataset.{key}: is missing: a test takes no folders from a saved run, where it was {value}" in refused.err
        )
    outcome = fsl("eval", f"run={run}", "dataset.root=own", "dataset.other=null", f"hydra.run.dir={tmp_path / 'again'}")
    assert outcome.code == 0, outcome.err
    assert "root own other None" in outcome.out
    swapped = ("dataset=placed", "dataset.root=other", f"hydra.run.dir={tmp_path / 'swapped'}")
    assert "root other other theirs" in fsl("eval", f"run={small('glyphs')}", *swapped).out  # the reader's own conf says theirs
    monkeypatch.delenv("FSL_PLUGINS")
    refused = fsl("eval", f"run={run}", "dataset.root=own")
    assert refused.code == 2
    assert "package placed_data is not a plug-in here" in refused.err


# --- configurations of other versions


@pytest.mark.parametrize("lost", ["train", "wandb", "resume", "eval.seed", "hardware.compile", "hardware", "algo.adapt"])
def test_what_a_test_does_not_need_or_has_a_default_may_be_missing(small, fsl, tmp_path, lost):
    run = small("run", "eval.checkpoint=best")
    assert fsl("eval", f"run={without(run, lost)}", "eval.episodes=12", f"hydra.run.dir={tmp_path / 'again'}").code == 0
    assert results(tmp_path / "again")["accuracy"] == results(run)["accuracy"]


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        ("task.shots", "task.shots"),
        ("task", "task.ways"),
        ("task.ways", "task.ways"),
        ("seed", "seed"),
        ("algo", "algo"),
        ("algo.name", "algo.name"),
    ],
)
def test_what_a_test_needs_is_named_in_full(small, fsl, lost, named):
    outcome = fsl("eval", f"run={without(small('run'), lost)}")
    assert outcome.code == 2
    assert f"{named}: is missing" in outcome.err
    assert outcome.err.count("\n") == 1


def without(run: Path, key: str) -> Path:
    """The run without a key in its saved configuration."""
    saved = yaml.safe_load((run / "config.yaml").read_text())
    *sections, name = key.split(".")
    node = saved
    for section in sections:
        node = node[section]
    del node[name]
    (run / "config.yaml").write_text(yaml.safe_dump(saved))
    return run


def test_a_checkpoint_without_settings_of_a_later_version_goes_on(small, fsl):
    run = small("run", "train.iterations=4")
    payload = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    for section, name in (("hardware", "engine"), ("eval", "seed"), ("algo", "adapt"), ("backbone", "batch_norm")):
        del payload["config"][section][name]
    torch.save(payload, run / "checkpoints" / "last.pt")
    words = merged((f"hydra.run.dir={run}", "resume=auto"))
    refused = fsl("train", *words, "hardware.engine=loop", "algo.adapt=head")
    assert refused.code == 2
    assert "algo.adapt was all, now head; hardware.engine was auto, now loop" in refused.err
    assert fsl("train", *words).code == 0
    assert results(run) == results(small("whole"))


def test_settings_of_a_later_version_that_say_how_to_test_are_ignored_with_a_warning(small, fsl, tmp_path):
    run = small("run")
    saved = yaml.safe_load((run / "config.yaml").read_text())
    later = {"eval": saved["eval"] | {"bootstrap": 5}, "hardware": saved["hardware"] | {"power": "low"}}
    outcome = fsl("eval", f"run={edited(run, **later)}", f"hydra.run.dir={tmp_path / 'again'}")
    assert outcome.code == 0, outcome.err
    assert (
        outcome.err
        == f"warning: {run / 'config.yaml'}: eval.bootstrap, hardware.power: unknown to this version of fsl, and ignored\n"
    )
    assert results(tmp_path / "again")["accuracy"] == results(run)["accuracy"]
    refused = fsl("eval", f"run={edited(run, task=saved['task'] | {'unions': 2})}")  # what is tested is another matter
    assert (refused.code, refused.err.count("\n")) == (2, 2)
    assert "error: task.unions: unknown option" in refused.err
