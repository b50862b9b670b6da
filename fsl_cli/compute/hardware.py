"""Device, precision, threads and determinism of one run."""

from __future__ import annotations

import ctypes
import os
import platform
import random
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, ParamSpec, TypeVar

import numpy as np
import torch

from fsl_cli.compute import processes
from fsl_cli.compute.processes import ALONE, Processes
from fsl_cli.errors import FslError

_DEFAULT_THREADS = torch.get_num_threads()
P = ParamSpec("P")
T = TypeVar("T")

_MOST_TASKS = {"cpu": 16}  # at once; elsewhere 64
_MOST_NUMBERS = {"cpu": 2**20}  # pixels at once: 16 tasks of Omniglot, which leave caches some use; elsewhere 2**26


@dataclass
class Hardware:
    """Where a run computes.

    Attributes:
        device: the device.
        precision: ``fp32``, or ``bf16`` for mixed precision with fp32 weights.
        task_chunk: number of episodes computed at once; it is halved when memory runs out.
        processes: the processes of this run.
        warn: shows a warning to the user.
        compile: whether training runs through `torch.compile`.
    """

    device: torch.device
    precision: Literal["fp32", "bf16"]
    task_chunk: int
    processes: Processes = ALONE
    warn: Callable[[str], object] = warnings.warn
    compile: bool = False

    def autocast(self) -> AbstractContextManager[None]:
        """Context of every forward pass."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def compiled(self, function: Callable[P, T]) -> Callable[P, T]:
        """``function`` through `torch.compile` if ``compile`` says so: same numbers, to rounding."""
        return torch.compile(function) if self.compile else function

    def within_memory(self, work: str, most: int, compute: Callable[[int], T], restore: Callable[[], None] = lambda: None) -> T:
        """``compute(chunk)`` with ``task_chunk`` episodes at once; half as many, with a warning, whenever memory runs out.

        Args:
            work: what is computed, for messages.
            most: number of episodes there are; the chunk is not larger.
            compute: started again with the smaller chunk.
            restore: undoes what ``compute`` has done before it ran out of memory.

        Raises:
            FslError: one episode does not fit into memory.
        """
        while True:
            chunk = max(1, min(self.task_chunk, most))
            try:
                return compute(chunk)
            except torch.OutOfMemoryError:
                pass  # the exception keeps tensors alive through its traceback, so free memory only after this block
            restore()
            self._make_room(work, chunk)

    def _make_room(self, work: str, chunk: int) -> None:
        if chunk == 1:
            hint = "use a smaller backbone, fewer ways or queries, or hardware.precision=bf16"
            raise FslError(f"one episode does not fit into the memory of {self.device}", where=work, hint=hint)
        self.task_chunk = chunk // 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.warn(
            f"{work}: {chunk} episodes at once do not fit into the memory of {self.device}; going on with "
            f"{self.task_chunk} (to start with that: hardware.task_chunk={self.task_chunk})"
        )

    def describe(self) -> str:
        """One phrase for the header of a run."""
        name = str(self.device)
        if self.device.type == "cuda":
            name += f" ({torch.cuda.get_device_name(self.device)})"
        elif self.device.type == "cpu":
            name += f" ({torch.get_num_threads()} threads)"
        if self.processes.size > 1:
            name = f"{self.processes.size} processes on {name}"
        return f"{name}, {self.precision}"


def set_up(
    device: str,
    precision: Literal["fp32", "bf16"],
    threads: int | None,
    deterministic: bool,
    task_chunk: int | Literal["auto"],
    warn: Callable[[str], object] = warnings.warn,
    *,
    compile: bool = False,
) -> Hardware:
    """Apply the hardware settings to this process, whatever an earlier run has set.

    Raises:
        FslError: the device does not exist here, or ``compile`` is of no use on it.
    """
    used = processes.current()
    chosen = pick_device(device, used)
    if compile and chosen.type != "cuda":
        what = f"true is not valid on {chosen}: compiling takes minutes and gains nothing there"
        raise FslError(what, where="hardware.compile", hint="use false, or device=cuda")
    if chosen.type == "cuda" and used.size > 1:
        torch.cuda.set_device(chosen)  # what NCCL goes by
    torch.set_num_threads(threads or _DEFAULT_THREADS)
    # The same as torch.use_deterministic_algorithms, which also imports torch's compiler: seconds, at every start.
    torch.set_deterministic_debug_mode("warn" if deterministic else "default")
    if compile:
        torch.use_deterministic_algorithms(deterministic, warn_only=True)  # the compiler is told as well
    # Nothing here reads memory before it is written, and filling it takes a tenth of the time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_flush_denormal(True)  # a converged inner loop makes denormals, which are up to 15 times slower
    _keep_freed_memory()
    chunk = automatic_chunk(chosen, 1) if task_chunk == "auto" else task_chunk
    return Hardware(chosen, precision, chunk, used, warn, compile)


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated on a device; None for the CPU, which reads images where they are."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # kept by PyTorch for later tensors
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return None


def automatic_chunk(device: torch.device, numbers: int) -> int:
    """How many tasks to compute at once on a device: few enough for its caches and its memory.

    Args:
        device: the device.
        numbers: pixels of one task's images, all channels.
    """
    return max(1, min(_MOST_TASKS.get(device.type, 64), _MOST_NUMBERS.get(device.type, 2**26) // numbers))


def seed_everything(seed: int) -> None:
    """Start every random generator a library might use from ``seed``."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def pick_device(name: str, used: Processes = ALONE) -> torch.device:
    """The device that ``auto``, ``cpu``, ``gpu``, ``mps``, ``cuda`` or ``cuda:N`` stands for on this machine.

    Unless the name has a number, each of several processes takes its own GPU: process N of a machine takes ``cuda:N``.

    Raises:
        FslError: it does not exist here, or several processes would share it.
    """
    present = available_devices()
    if used.size > 1:
        if name.startswith(("cuda:", "mps")):
            raise FslError(f"{used.size} processes cannot share {name}", where="hardware.device", hint="use cuda or cpu")
        present = [each for each in present if each != "mps"]
        if name == "cuda" or (name in ("auto", "gpu") and len(present) > 1):
            name = f"cuda:{used.local_rank}"
    if name == "auto":
        name = present[-1]
    elif name == "gpu":
        name = present[-1] if len(present) > 1 else "gpu"
    name = "cuda:0" if name == "cuda" else name
    if name not in present:
        raise FslError(f"{name} does not exist here", where="hardware.device", hint=f"available: {', '.join(present)}")
    return torch.device(name)


def available_devices() -> list[str]:
    """Devices of this machine, the one that ``auto`` takes last."""
    devices = ["cpu"]
    if torch.backends.mps.is_available():
        devices.append("mps")
    devices += [f"cuda:{index}" for index in reversed(range(torch.cuda.device_count()))]
    return devices


def _keep_freed_memory() -> None:
    """Let glibc keep freed blocks: handing them back costs a page fault per page on the next step (a third of the time).

    Linux with glibc only; PyTorch's own allocator does the same on GPUs.
    """
    if platform.libc_ver()[0] == "glibc":
        mmap_threshold, trim_threshold = -3, -1
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, (1 << 31) - 1)
