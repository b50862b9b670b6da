"""Device, precision, threads and determinism; the resulting state does not depend on earlier settings."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from fsl_cli.compute import hardware
from fsl_cli.compute.hardware import Hardware, automatic_chunk, available_devices, pick_device, seed_everything, set_up
from fsl_cli.errors import FslError
from fsl_cli.results import environment


@pytest.fixture(autouse=True)
def restored():
    """Settings of this process as they were."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    benchmark, states = torch.backends.cudnn.benchmark, (random.getstate(), np.random.get_state(), torch.get_rng_state())
    yield
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode("warn" if deterministic else "default")
    torch.backends.cudnn.benchmark = benchmark
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


@pytest.fixture
def machine(monkeypatch):
    """A machine with so many CUDA devices, with or without MPS."""

    def pretend(cuda: int = 0, mps: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return pretend


@pytest.mark.parametrize(
    ("cuda", "mps", "name", "expected"),
    [
        (0, False, "auto", "cpu"),
        (0, False, "cpu", "cpu"),
        (0, True, "auto", "mps"),
        (0, True, "gpu", "mps"),
        (0, True, "mps", "mps"),
        (2, False, "auto", "cuda:0"),
        (2, False, "gpu", "cuda:0"),
        (2, False, "cuda", "cuda:0"),
        (2, False, "cuda:1", "cuda:1"),
        (2, False, "cpu", "cpu"),
        (1, True, "auto", "cuda:0"),
        (1, True, "gpu", "cuda:0"),
        (1, True, "mps", "mps"),
    ],
)
def test_the_device_a_name_means(machine, cuda, mps, name, expected):
    machine(cuda, mps)
    assert pick_device(name) == torch.device(expected)


@pytest.mark.parametrize(
    ("cuda", "name", "message"),
    [
        (0, "gpu", "hardware.device: gpu does not exist here (available: cpu)"),
        (0, "cuda", "hardware.device: cuda:0 does not exist here (available: cpu)"),
        (0, "mps", "hardware.device: mps does not exist here (available: cpu)"),
        (2, "cuda:2", "hardware.device: cuda:2 does not exist here (available: cpu, cuda:1, cuda:0)"),
    ],
)
def test_a_device_that_does_not_exist_is_one_line(machine, cuda, name, message):
    machine(cuda)
    with pytest.raises(FslError) as error:
        set_up(name, "fp32", None, True, "auto")
    assert str(error.value) == message


def test_the_processor_is_always_there_and_auto_takes_the_last(machine):
    machine(2, True)
    assert available_devices() == ["cpu", "mps", "cuda:1", "cuda:0"]


def test_threads_are_set_and_start_from_the_default_again():
    default = hardware._DEFAULT_THREADS
    set_up("cpu", "fp32", 1, True, "auto")
    assert torch.get_num_threads() == 1
    set_up("cpu", "fp32", default + 1, True, "auto")
    assert torch.get_num_threads() == default + 1
    set_up("cpu", "fp32", None, True, "auto")
    assert torch.get_num_threads() == default


def test_determinism_is_set_and_taken_back(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.delattr(torch, "use_deterministic_algorithms")  # which imports torch's compiler
    set_up("cpu", "fp32", None, False, "auto")
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    set_up("cpu", "fp32", None, True, "auto")
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    set_up("cpu", "fp32", None, False, "auto")
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_compiler_is_told_to_be_deterministic(machine, monkeypatch):
    told = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda mode, warn_only: told.append((mode, warn_only)))
    machine(1)
    set_up("cuda", "fp32", None, True, "auto", compile=True)
    assert told == [(True, True)]


def test_denormal_numbers_are_flushed():
    set_up("cpu", "fp32", None, True, "auto")
    tiny = torch.tensor([1e-30], dtype=torch.float32)
    assert (tiny * 1e-10).item() == 0
    assert (tiny * 1e-5).item() > 0


@pytest.mark.parametrize(
    ("device", "chunk", "expected"), [("cpu", "auto", 16), ("cuda", "auto", 64), ("mps", "auto", 64), ("cpu", 3, 3)], ids=str
)
def test_episodes_computed_at_once(machine, device, chunk, expected):
    machine(1, True)
    assert set_up(device, "fp32", None, True, chunk).task_chunk == expected


@pytest.mark.parametrize(
    ("device", "numbers", "expected"),
    [("cpu", 80 * 784, 16), ("cpu", 400 * 784, 3), ("cpu", 80 * 3 * 84 * 84, 1), ("cuda", 400 * 784, 64), ("cuda", 2**24, 4)],
)
def test_automatic_chunk_shrinks_with_the_episode(device, numbers, expected):
    assert automatic_chunk(torch.device(device), numbers) == expected


def test_compiling_for_a_processor_is_refused():
    with pytest.raises(FslError, match="gains nothing") as raised:
        set_up("cpu", "fp32", None, True, "auto", compile=True)
    assert raised.value.where == "hardware.compile"


def test_autocast_is_bf16_or_nothing():
    weight, x = torch.rand(4, 4), torch.rand(2, 4)
    for precision, expected in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with Hardware(torch.device("cpu"), precision, 1).autocast():
            assert (x @ weight).dtype == expected
    assert (x @ weight).dtype == torch.float32


def test_a_phrase_for_the_header(monkeypatch):
    torch.set_num_threads(2)
    assert Hardware(torch.device("cpu"), "bf16", 1).describe() == "cpu (2 threads), bf16"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")
    assert Hardware(torch.device("cuda:0"), "fp32", 1).describe() == "cuda:0 (H100), fp32"
    assert Hardware(torch.device("mps"), "fp32", 1).describe() == "mps, fp32"


def numbers(seed: int) -> tuple[float, ...]:
    seed_everything(seed)
    return random.random(), np.random.rand(), torch.rand(1).item()


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, 2**40, 2**63 - 1])
def test_every_generator_starts_from_the_seed(seed):
    first = numbers(seed)
    assert numbers(seed) == first
    assert all(one != other for one, other in zip(first, numbers(seed + 1), strict=True))


def test_the_environment_is_described(machine):
    described = environment.describe(torch.device("cpu"), "fsl train")
    assert described["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert set(described["packages"]) == set(environment.PACKAGES)
    assert described["device"] == "cpu"
    assert described["threads"] == torch.get_num_threads()
    if (Path(environment.__file__).parents[1] / ".git").exists():
        assert len(described["git_commit"].removesuffix("+changes")) == 40
    assert environment.version("no-such-package") is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_real_gpu():
    used = set_up("gpu", "bf16", None, True, "auto")
    assert used.device == torch.device("cuda:0")
    assert torch.cuda.get_device_name(0) in used.describe()
    with used.autocast():
        assert (torch.rand(2, 2, device=used.device) @ torch.rand(2, 2, device=used.device)).dtype == torch.bfloat16
