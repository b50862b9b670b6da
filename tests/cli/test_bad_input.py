"""Invalid input gives a one-line error and exit code 2, and creates no files."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from command_line import merged

CASES = {
    "verb": (["trian"], "there is no command trian (did you mean train?"),
    "flag": (["train", "--mutirun"], "--mutirun: unknown flag (did you mean --multirun?"),
    "no equals sign": (["train", "algo"], "algo: is no override (write key=value)"),
    "group member": (["train", "algo=mmal"], "algo=mmal: there is no algo mmal (did you mean maml?"),
    "group": (["train", "datset=omniglot"], "datset=omniglot: there is no such key (did you mean dataset?"),
    "key": (["train", "train.iteration=5"], "train.iteration=5: there is no such key (did you mean train.iterations?"),
    "option": (["train", "algo.iner_lr=1"], "algo.iner_lr=1: there is no such key (did you mean algo.inner_lr?"),
    "added key": (["train", "+algo.iner_lr=1"], "algo.iner_lr: unknown option (did you mean inner_lr?"),
    "optimiser's option": (["train", "+train.optimizer.beta=1"], "train.optimizer.beta: unknown option (did you mean betas?"),
    "choice": (["train", "algo.adapt=al"], "algo.adapt: 'al' is not valid (should be 'all', 'head' or 'body')"),
    "type": (["train", "train.iterations=many"], "train.iterations: 'many' is not valid (should be a valid integer"),
    "zero": (["train", "train.meta_batch=0"], "train.meta_batch: 0 is not valid (should be greater than or equal to 1)"),
    "negative": (["train", "eval.episodes=-5"], "eval.episodes: -5 is not valid (should be greater than or equal to 0)"),
    "ways": (["train", "task.ways=5000"], "task.ways: 5000 ways, but the val split has"),
    "images": (
        ["train", "task.shots=15"],
        "15 shots + 15 queries, but a class of the val split has 20",
    ),
    "device": (["train", "hardware.device=tpu"], "hardware.device: 'tpu' is not valid (should be auto, cpu, gpu"),
    "engine": (
        ["train", "algo=protonet", "hardware.engine=vmap"],
        "hardware.engine: vmap is not valid: protonet has no",
    ),
    "engine's limits": (["train", "hardware.engine=learn2learn", "algo.adapt=body"], "learn2learn has no algo.adapt=body"),
    "code in a target": (["train", "algo._target_=os.system"], "algo._target_: 'os.system' may not be built"),
    "no data": (["train", "dataset=omniglot", "dataset.download=false", "data_dir=nowhere"], "set data_dir="),
    "sweep without -m": (["train", "algo=maml,protonet"], "add -m to run them all"),
    "resume": (["train", "resume=nowhere"], "resume=nowhere: there is no such checkpoint"),
    "no run": (["eval"], "run: is missing (fsl eval run=FOLDER"),
    "several runs": (["eval", "run=a,b"], "run=a,b: names several runs (test one at a time)"),
    "no run there": (["eval", "run=nowhere"], "is not a run folder: it does not exist"),
    "ls": (["ls", "algos"], "there is no group algos (did you mean algo?"),
    "doctor": (["doctor", "please"], "takes no arguments"),
    "name of the folder": (["train", "hydra.run.dir=${algo.nme}"], "hydra.run.dir: Interpolation key 'algo.nme' not found"),
    "name of a job": (["train", "-m", "hydra.sweep.subdir=${nme}"], "hydra.sweep.subdir: Interpolation key 'nme' not found"),
    "grid": (["train", "-m", "+hydra.sweeper.params.seed=1"], "configuration: Unexpected type for root"),
    "file in the way": (["train", "hydra.run.dir=/dev/null/run"], "/dev/null/run: cannot be written"),
}


@pytest.mark.parametrize("case", CASES)
def test_one_clear_line(fsl, tmp_path, case):
    words, expected = CASES[case]
    outcome = fsl(*words)
    assert outcome.code == 2
    assert expected in outcome.err
    assert outcome.err.count("\n") == 1, outcome.err
    assert outcome.err.startswith("error: ")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_every_device_that_is_not_here_is_refused(fsl):
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("this machine has a GPU")
    for device in ("gpu", "cuda", "cuda:3", "mps"):
        outcome = fsl("train", f"hardware.device={device}")
        assert outcome.code == 2
        assert "does not exist here (available: cpu)" in outcome.err


def test_all_problems_of_a_configuration_are_reported_together(fsl):
    outcome = fsl("train", "train.iterations=0", "algo.inner_lr=-1", "backbone.filters=0", "seed=-1", "task.ways=1")
    assert outcome.code == 2
    assert outcome.err.count("\n") == 5
    for key in ("train.iterations", "algo.inner_lr", "backbone.filters", "seed", "task.ways"):
        assert f"error: {key}: " in outcome.err


def test_a_sweep_is_checked_before_its_first_job(fsl, tmp_path):
    outcome = fsl("train", "-m", "algo=maml,protonet", "algo.inner_lr=0.1,0")
    assert outcome.code == 2
    assert "algo.inner_lr=0: there is no such key" in outcome.err
    assert not list(tmp_path.iterdir())


def test_a_folder_without_write_permission(fsl, tmp_path, monkeypatch):
    """Root ignores permission bits, so the error of the operating system is simulated."""
    import tempfile

    def refused(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    outcome = fsl("train", *merged(()), f"hydra.run.dir={tmp_path / 'run'}")
    assert outcome.code == 2
    assert f"{tmp_path / 'run'}: cannot be written: Permission denied (choose a folder you may write to)" in outcome.err
    assert not (tmp_path / "run").exists()


@pytest.mark.data
@pytest.mark.parametrize("damage", ["truncated", "undecodable"])
def test_damaged_data(fsl, tmp_path, omniglot_dir, damage):
    data = tmp_path / "data" / "omniglot"
    data.mkdir(parents=True)
    shutil.copy(omniglot_dir / "omniglot/images_evaluation.zip", data)
    source = omniglot_dir / "omniglot/images_background.zip"
    if damage == "truncated":
        (data / "images_background.zip").write_bytes(source.read_bytes()[:5_000_000])
    else:
        with zipfile.ZipFile(source) as old, zipfile.ZipFile(data / "images_background.zip", "w") as new:
            for number, name in enumerate(old.namelist()):
                new.writestr(name, b"no image" if number == 7 else old.read(name))
    outcome = fsl("train", "dataset=omniglot", f"data_dir={data.parent}", f"cache_dir={tmp_path / 'cache'}")
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert "images_background.zip" in outcome.err
    assert not list((tmp_path / "cache").rglob("*.npy"))
    assert not list((tmp_path / "outputs").rglob("*.json"))


def test_a_checkpoint_of_another_configuration(small, fsl, tmp_path):
    run = small("run")
    outcome = fsl("eval", f"run={run}", "backbone.widths=[17]", f"hydra.run.dir={tmp_path / 'eval'}")
    assert outcome.code == 2
    assert "best.pt: belongs to another configuration: size mismatch" in outcome.err
    assert not (tmp_path / "eval").exists()


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint"])
def test_a_damaged_checkpoint(small, fsl, damage):
    run = small("run")
    (run / "checkpoints/best.pt").write_bytes(damage)
    outcome = fsl("eval", f"run={run}")
    assert outcome.code == 2
    assert "best.pt: cannot be read" in outcome.err


def test_overrides_of_eval_that_make_no_sense(small, fsl):
    run = small("run")
    outcome = fsl("eval", f"run={run}", "train.iterations=3", "taks.ways=3", "algo=protonet", "task.shots=1,5", "dataset=foo")
    assert outcome.code == 2
    for expected in (
        "train.iterations=3: belongs to training",
        "taks.ways=3: there is no such key (did you mean task.ways?",
        "algo=protonet: a trained model cannot change it",
        "task.shots=1,5: one value at a time",
        "dataset=foo: there is no dataset foo",
    ):
        assert f"error: {expected}" in outcome.err
    assert outcome.err.count("\n") == 5


def test_saved_configurations_may_not_name_foreign_code(small, fsl):
    run = small("run")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("fsl_cli.algos.maml.MAML", "os.system"))
    outcome = fsl("eval", f"run={run}")
    assert outcome.code == 2
    assert "algo._target_: 'os.system' may not be built" in outcome.err


@pytest.mark.parametrize(("name", "chosen"), [("best.pt", ""), ("last.pt", " eval.checkpoint=last")])
def test_a_checkpoint_is_no_run_folder_and_what_to_type_is_said(small, fsl, name, chosen):
    run = small("run")
    outcome = fsl("eval", f"run={run / 'checkpoints' / name}")
    assert outcome.code == 2
    assert f"{name}: is a file: name the run folder (run={run}{chosen})" in outcome.err


def test_a_network_that_cannot_take_the_images_is_found_before_they_are_packed(fsl, tmp_path, monkeypatch):
    from fsl_cli.backbones.mlp import MLP

    def refuse(self, x):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(MLP, "forward", refuse)
    monkeypatch.setenv("FSL_CACHE_DIR", str(tmp_path / "cache"))
    outcome = fsl("train", *merged(()))
    assert outcome.code == 2
    assert "backbone: does not accept [1, 28, 28] examples: mat1 and mat2 shapes" in outcome.err
    assert not (tmp_path / "cache").exists()


def test_a_tag_that_is_too_long_for_wandb(fsl, tmp_path):
    outcome = fsl("train", *merged((f"wandb.tags=[{'a' * 64}]", f"hydra.run.dir={tmp_path / 'run'}")))
    assert outcome.code == 0, outcome.err
    outcome = fsl("train", *merged((f"wandb.tags=[a,{'a' * 65}]",)))
    assert outcome.code == 2
    assert "wandb.tags" in outcome.err
    assert "should have 1 to 64 characters, which is W&B's limit; it has 65" in outcome.err


def test_a_working_folder_that_has_been_deleted(fsl, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    outcome = fsl("ls", "algo")
    assert outcome.code == 2
    assert outcome.err == "error: fsl: the working folder does not exist any more (cd to another one)\n"


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path):
    import subprocess

    from command_line import command

    process = subprocess.Popen(command("ls"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path)
    process.stdout.close()
    assert b"Traceback" not in process.stderr.read()
    process.wait()
