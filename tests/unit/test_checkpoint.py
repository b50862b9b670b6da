"""Checkpoints and run folders: written atomically, without executable code, and checked against the configuration."""

from __future__ import annotations

import copy
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import composed
from small_training import is_same

from fsl_cli.backbones.mlp import MLP
from fsl_cli.errors import FslError
from fsl_cli.results import checkpoint
from fsl_cli.results.files import check_writable, read_json, write_atomically, write_text
from fsl_cli.results.run_folder import RunFolder, known_runs

CONFIG = {"seed": 3, "algo": {"name": "maml", "inner_lr": 0.4}}


def payload(seed: int = 0) -> dict[str, Any]:
    torch.manual_seed(seed)
    net = MLP((1, 4, 4), widths=[6])
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.rand(3, 1, 4, 4)).sum().backward()
    optimizer.step()
    progress = {"iteration": 7, "window": {"loss": 1.5}, "best_accuracy": 0.25}
    return {"algo": net.state_dict(), "optimizer": optimizer.state_dict(), "config": CONFIG, "progress": progress}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints" / "last.pt"


def fails(path: Path, *words: str) -> str:
    """The one line that says why ``path`` cannot be loaded."""
    with pytest.raises(FslError) as error:
        checkpoint.load(path)
    line = str(error.value)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    assert all(word in line for word in words)
    return line


# --- saving and loading


def test_what_is_saved_is_loaded(path):
    saved = payload()
    checkpoint.save(path, saved)
    loaded = checkpoint.load(path)
    assert loaded.pop("format") == checkpoint.FORMAT
    assert is_same(loaded, saved)
    assert os.listdir(path.parent) == ["last.pt"]


def test_a_checkpoint_that_is_saved_again_replaces_the_old_one(path):
    checkpoint.save(path, payload(0))
    checkpoint.save(path, payload(1))
    assert is_same(checkpoint.load(path)["algo"], payload(1)["algo"])


class Crash(BaseException):
    pass


@pytest.mark.parametrize("crash", [Crash, KeyboardInterrupt, ZeroDivisionError])
def test_a_crash_in_the_middle_of_writing_leaves_the_old_file(path, crash, monkeypatch):
    checkpoint.save(path, payload(0))
    before = path.read_bytes()

    def half(values: Any, file: Any) -> None:
        file.write(before[: len(before) // 2])
        file.flush()
        raise crash

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(crash):
        checkpoint.save(path, payload(1))
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["last.pt"]


def test_a_crash_before_the_file_is_moved_leaves_the_old_file(path, monkeypatch):
    checkpoint.save(path, payload(0))
    before = path.read_bytes()

    def refuse(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(FslError, match="cannot be written: No space left on device"):
        checkpoint.save(path, payload(1))
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["last.pt"]


KILLED = """
import os, signal, sys
from pathlib import Path
from fsl_cli.results.files import write_atomically

def half(file):
    file.write(b"half of the new content")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)

write_atomically(Path(sys.argv[1]), half)
"""


def test_a_process_killed_in_the_middle_of_writing_leaves_the_old_file(tmp_path):
    target = tmp_path / "results.json"
    target.write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(target)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert target.read_text() == "old"
    assert RunFolder(tmp_path).results == target


def test_the_file_is_moved_only_when_it_is_on_the_disk(tmp_path, monkeypatch):
    happened = []
    replace, fsync = os.replace, os.fsync
    monkeypatch.setattr(os, "replace", lambda *paths: (happened.append("replace"), replace(*paths)))
    monkeypatch.setattr(os, "fsync", lambda handle: (happened.append("fsync"), fsync(handle)))
    write_text(tmp_path / "x", "text")
    assert happened == ["fsync", "replace"]
    assert (tmp_path / "x").read_text() == "text"


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_files_can_be_read_by_those_the_user_lets_read(tmp_path, mask):
    before = os.umask(mask)
    try:
        (tmp_path / "ordinary").touch()
        write_text(tmp_path / "ours", "text")
    finally:
        os.umask(before)
    modes = {(tmp_path / name).stat().st_mode for name in ("ordinary", "ours")}
    assert len(modes) == 1


# --- what is no checkpoint


def test_a_missing_file_is_one_line(path):
    fails(path, "there is no such checkpoint", "fsl train writes checkpoints/{best,last}.pt")


def test_a_folder_is_not_a_checkpoint(tmp_path):
    fails(tmp_path, "there is no such checkpoint")


def test_a_truncated_file_is_damaged_wherever_it_was_cut(path):
    checkpoint.save(path, payload())
    whole = path.read_bytes()
    lengths = [0, 1, 2, 4, 30, *range(100, len(whole), 311), len(whole) - 22, len(whole) - 1]
    assert len(lengths) > 15
    for length in lengths:
        path.write_bytes(whole[:length])
        fails(path, "cannot be read", "damaged")


def test_a_changed_byte_of_the_content_never_goes_unnoticed(path):
    """Either the file is refused, or the byte was padding and all values are right."""
    saved = payload()
    checkpoint.save(path, saved)
    whole = path.read_bytes()
    weights = whole.find(saved["algo"]["layers.1.weight"].numpy().tobytes())
    assert weights > 0
    draw, directory = random.Random(0), whole.find(b"PK\x01\x02")
    positions = [weights, weights + 77, *(draw.randrange(directory) for _ in range(250))]
    refused = []
    for position in positions:
        changed = bytearray(whole)
        changed[position] ^= draw.randrange(1, 256)
        path.write_bytes(changed)
        try:
            loaded = checkpoint.load(path)
        except FslError:
            refused.append(position)
        else:
            del loaded["format"]
            assert is_same(loaded, saved)
    assert refused[:2] == positions[:2]
    assert len(refused) > 100


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"PK\x03\x04", b"\x80\x02.", b"\x80\x02K\x01.", bytes(1000), b"seed: 3\n", pickle.dumps({"format": 1})],
    ids=lambda content: repr(content[:10]),
)
def test_a_foreign_file_is_refused(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fails(path)


def test_an_archive_of_something_else_is_refused(path):
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    fails(path, "cannot be read")


@pytest.mark.parametrize("content", [{"algo": {}}, {"format": checkpoint.FORMAT + 1}, [1, 2], torch.zeros(2)], ids=str)
def test_torch_files_of_others_and_of_other_versions_are_refused(path, content):
    path.parent.mkdir()
    torch.save(content, path)
    fails(path, "is not a checkpoint of this version of fsl")


class Code:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def test_a_pickle_with_code_is_refused_and_not_run(path, tmp_path):
    trace = tmp_path / "hacked"
    path.parent.mkdir()
    torch.save({"format": checkpoint.FORMAT, "algo": Code(f"touch {trace}")}, path)
    fails(path, "cannot be read")
    assert not trace.exists()
    torch.load(path, weights_only=False)  # the file does what it should
    assert trace.exists()


# --- weights of another network


def test_weights_are_loaded_or_the_file_is_named(path):
    net = MLP((1, 4, 4), widths=[6])
    checkpoint.load_weights(net, payload(), path)
    assert is_same(dict(net.state_dict()), dict(payload()["algo"]))
    for other in (MLP((1, 4, 4), widths=[7]), MLP((1, 4, 4), widths=[6, 6]), MLP((1, 5, 5), widths=[6])):
        with pytest.raises(FslError) as error:
            checkpoint.load_weights(other, payload(), path)
        line = str(error.value)
        assert line.startswith(f"{path}: belongs to another configuration: ")
        assert "layers." in line
        assert "use the algo and backbone options it was trained with" in line
    with pytest.raises(FslError, match="belongs to another configuration"):
        checkpoint.load_weights(net, {"config": CONFIG}, path)


# --- another configuration


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    return composed()


def leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found = {}
    for key, value in values.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def with_changed(values: dict[str, Any], key: str) -> dict[str, Any]:
    values = copy.deepcopy(values)
    *sections, last = key.split(".")
    node = values
    for section in sections:
        node = node[section]
    node[last] = "something else"
    return values


FREE = {
    *("train.iterations", "train.max_minutes", "train.patience", "train.log_every"),
    *("eval.episodes", "eval.checkpoint"),  # not eval.seed, of the validation episodes too
    *("hardware.device", "hardware.threads", "hardware.deterministic", "hardware.task_chunk", "hardware.compile"),
    *("wandb.mode", "wandb.project", "wandb.entity", "wandb.group", "wandb.name", "wandb.tags"),
    *("data_dir", "cache_dir", "resume"),
}


def test_every_setting_is_free_to_differ_or_refused_by_name(whole, path):
    checkpoint.check_same_configuration(whole, copy.deepcopy(whole), path)
    keys = leaves(whole)
    assert len(keys) > 40
    assert set(keys) >= FREE
    for key, value in keys.items():
        other = with_changed(whole, key)
        if key in FREE:
            checkpoint.check_same_configuration(whole, other, path)
            continue
        with pytest.raises(FslError) as error:
            checkpoint.check_same_configuration(whole, other, path)
        line = str(error.value)
        assert line.startswith(f"{path}: belongs to another configuration: {key} was {value}, now something else (")


def test_all_differing_settings_are_named_and_no_other(path):
    old = {"seed": 1, "algo": {"name": "maml", "inner_lr": 0.4}, "task": {"ways": 5}, "wandb": {"mode": "auto"}}
    new = {"seed": 2, "algo": {"name": "protonet", "scale": 1.0}, "task": {"ways": 5}, "wandb": {"mode": "offline"}}
    with pytest.raises(FslError) as error:
        checkpoint.check_same_configuration(old, new, path)
    assert error.value.what == (
        "belongs to another configuration: algo.inner_lr was 0.4, now None; algo.name was maml, now protonet; "
        "algo.scale was None, now 1.0; seed was 1, now 2"
    )


# --- the other files of a run folder


def test_json_files_hold_what_was_written_and_no_nan(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.write_json(folder.results, {"a": 1, "b": [0.5, float("nan")], "c": {"d": float("inf"), "e": None}})
    assert json.loads(folder.results.read_text()) == {"a": 1, "b": [0.5, None], "c": {"d": None, "e": None}}
    assert read_json(folder.results) == {"a": 1, "b": [0.5, None], "c": {"d": None, "e": None}}
    folder.write_status("running", iteration=3)
    assert read_json(folder.status) == {"state": "running", "iteration": 3}


def test_read_json_of_what_is_none(tmp_path):
    for name, content in {"broken": '{"a": 1', "list": "[1]", "binary": "\x00"}.items():
        (tmp_path / name).write_text(content)
        assert read_json(tmp_path / name) is None
    assert read_json(tmp_path / "missing") is None


def test_episodes_are_read_back_exactly(tmp_path):
    folder, values = RunFolder(tmp_path), np.random.default_rng(0).random(50)
    folder.write_episodes({"accuracy": values, "loss": 2 * values})
    with np.load(folder.episodes) as loaded:
        assert set(loaded) == {"accuracy", "loss"}
        assert np.array_equal(loaded["accuracy"], values)
        assert np.array_equal(loaded["loss"], 2 * values)


def test_a_file_in_the_way_of_a_folder_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    for act in (lambda path: write_text(path / "x", "text"), lambda path: checkpoint.save(path / "x.pt", payload())):
        with pytest.raises(FslError, match=r"cannot be written: .* \(choose a folder you may write to\)"):
            act(tmp_path / "file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission_is_one_line(tmp_path):
    tmp_path.chmod(0o500)
    for act in (lambda: write_text(tmp_path / "x", "text"), lambda: check_writable(tmp_path / "a" / "b")):
        with pytest.raises(FslError, match="cannot be written: Permission denied"):
            act()
    tmp_path.chmod(0o700)


def test_check_writable_leaves_nothing_behind(tmp_path):
    check_writable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(FslError, match="cannot be written"):
        check_writable(tmp_path / "file" / "below")


def test_known_runs_names_the_newest(tmp_path):
    assert known_runs(tmp_path) == "fsl train makes one"
    for age, name in enumerate(["new", "old"]):
        RunFolder(tmp_path / name).write_config(CONFIG)
        os.utime(tmp_path / name / "config.yaml", (1e9 - age, 1e9 - age))
    assert known_runs(tmp_path) == f"the newest one is {tmp_path / 'new'}"


def test_write_atomically_makes_the_folders(tmp_path):
    write_atomically(tmp_path / "a" / "b" / "c", lambda file: file.write(b"bytes") and None)
    assert (tmp_path / "a" / "b" / "c").read_bytes() == b"bytes"
