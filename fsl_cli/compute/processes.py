"""Several processes that work on one run, started by torchrun: how work is divided and results are combined.

    torchrun --nproc-per-node=4 -m fsl_cli train algo=protonet dataset=omniglot

The processes communicate through `torch.distributed`: gloo for tensors in main memory, NCCL for tensors on GPUs. Only
process 0 writes and prints. Without torchrun there is one process and no process group. This module imports torch only
when it is used.
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from fsl_cli.errors import FslError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")

_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # torchrun's
_TIMEOUT = timedelta(days=1)  # for slow processes; one that has died is noticed at once, as its connection closes
_EXIT_TIMEOUT = timedelta(seconds=20)  # for process 0 to report an error; torchrun kills all processes after 30
_LONGEST_PAUSE = 0.01  # seconds between two checks whether the other processes have arrived


class Processes:
    """A run of a single process; `Several` implements the same methods for several processes.

    Attributes:
        rank: number of this process, 0..size-1.
        size: number of processes.
        local_rank: number of this process on its machine.
    """

    rank, size, local_rank = 0, 1, 0

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def share(self, count: int, unit: int = 1) -> range:
        """The part of ``range(count)`` that this process computes, in blocks of ``unit``.

        The parts are consecutive, in the order of the processes; the last ones are empty if there are too few blocks.
        """
        blocks = -(-count // unit)
        start, stop = (min(count, unit * -(-blocks * rank // self.size)) for rank in (self.rank, self.rank + 1))
        return range(start, stop)

    def from_first(self, work: Callable[[], T]) -> T:
        """Run ``work`` in process 0 and return its result, which must be picklable, in all; an `FslError` is raised in all."""
        return work()

    def together(self, work: Callable[[], T]) -> T:
        """Run ``work`` in every process and return its own result; an `FslError` in one of them is raised in all."""
        return work()

    def numbers(self, values: Sequence[float]) -> list[float]:
        """Sums of a few numbers over the processes."""
        return list(values)

    def summed(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Sums of tensors over the processes, bit-identical in all of them; shapes must agree."""
        return list(tensors)

    def gather(self, mine: Tensor | None) -> Tensor:
        """The tensors ``[n, ...]`` of all processes, concatenated in their order; None where a process has no rows."""
        assert mine is not None
        return mine

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite ``tensors`` with those of process 0."""

    @contextmanager
    def own_randomness(self, device: torch.device) -> Iterator[None]:
        """Inside, each process draws its own random numbers; afterwards the generators of all are in the same state again."""
        yield


ALONE = Processes()


class Several(Processes):
    """The current process as a member of the process group; see `Processes`.

    Every method except `share` must be called by all processes, in the same order.

    Raises:
        FslError: another process has stopped.
    """

    def __init__(self) -> None:
        import torch
        import torch.distributed

        self._torch, self._group = torch, torch.distributed
        self.rank, self.size = self._group.get_rank(), self._group.get_world_size()
        self.local_rank = int(os.environ.get("LOCAL_RANK", self.rank))

    def from_first(self, work: Callable[[], T]) -> T:
        """See `Processes.from_first`."""
        result, error = _attempt(work) if self.first else (None, None)
        self._meet()
        content: list[Any] = [result, error]
        with self._others():
            self._group.broadcast_object_list(content, src=0, device=self._torch.device("cpu"))
        if content[1]:
            raise content[1]
        return content[0]

    def together(self, work: Callable[[], T]) -> T:
        """See `Processes.together`."""
        result, error = _attempt(work)
        if self._meet(error is not None):
            with self._others():
                errors: list[FslError | None] = [None] * self.size
                self._group.all_gather_object(errors, error)
            raise next(each for each in errors if each)
        return result  # type: ignore[return-value]

    def numbers(self, values: Sequence[float]) -> list[float]:
        """See `Processes.numbers`."""
        tensor = self._torch.tensor(values, dtype=self._torch.float64)
        with self._others():
            self._group.all_reduce(tensor)
        return tensor.tolist()

    def summed(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """See `Processes.summed`."""
        flat = self._torch.cat([each.flatten() for each in tensors])
        with self._others():
            self._group.all_reduce(flat)
        parts = flat.split([each.numel() for each in tensors])
        return [part.view(each.shape).to(each.dtype) for part, each in zip(parts, tensors, strict=True)]

    def gather(self, mine: Tensor | None) -> Tensor:
        """See `Processes.gather`."""
        self._meet()
        kinds: list[Any] = [None] * self.size
        with self._others():
            self._group.all_gather_object(kinds, None if mine is None else (mine.shape, mine.dtype, mine.device.type))
            parts = []
            for rank, kind in enumerate(kinds):
                if kind:
                    shape, dtype, device = kind  # "cuda" is the current one, that of this process
                    part = self._torch.empty(shape, dtype=dtype, device=device)
                    if rank == self.rank and mine is not None:
                        part.copy_(mine)
                    self._group.broadcast(part, src=rank)
                    parts.append(part)
        return self._torch.cat(parts)

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """See `Processes.copy_from_first`."""
        with self._others():
            for tensor in tensors:
                self._group.broadcast(tensor, src=0)

    @contextmanager
    def own_randomness(self, device: torch.device) -> Iterator[None]:
        """See `Processes.own_randomness`."""
        seed = int(self._torch.randint(2**62, ()))  # the same in all, as the generators are
        with self._torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            self._torch.manual_seed(seed + self.rank)
            yield

    def _meet(self, raised: bool = False) -> int:
        """Wait for the others; Ctrl-C interrupts the wait. Returns how many have ``raised``."""
        with self._others():
            total = self._torch.tensor(int(raised))
            work, pause = self._group.all_reduce(total, async_op=True), 0.0
            while not work.is_completed():
                time.sleep(pause)
                pause = min(_LONGEST_PAUSE, pause + 1e-5)
            work.wait()
        return int(total)

    @contextmanager
    def _others(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise FslError("another process has stopped", where=f"process {self.rank} of {self.size}") from error


def _attempt(work: Callable[[], T]) -> tuple[T | None, FslError | None]:
    try:
        return work(), None
    except FslError as error:
        return None, error


def launched() -> bool:
    """Whether torchrun has started this process as one of several."""
    return all(name in os.environ for name in _VARIABLES) and int(os.environ["WORLD_SIZE"]) > 1


def current() -> Processes:
    """The processes of this run."""
    distributed = sys.modules.get("torch.distributed")
    return Several() if distributed and distributed.is_available() and distributed.is_initialized() else ALONE


def run(main: Callable[[], int]) -> int:
    """Join the process group, run ``main`` and return its exit code; only process 0 prints.

    After an error the other processes wait until process 0 has reported it, because torchrun ends all processes as soon as
    one of them has failed. An unexpected error in another process is printed with the number of that process.
    """
    import torch
    import torch.distributed
    from torch.distributed.rendezvous import rendezvous

    store, rank, size = next(rendezvous("env://"))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_TIMEOUT)
    if rank == 0:
        code = main()
        store.set("fsl has finished", str(code))
    else:
        heard = io.StringIO()
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(heard):
            code = main()
        if code == 1:
            print(*(f"process {rank}: {line}" for line in heard.getvalue().splitlines()), sep="\n", file=sys.stderr)
        elif code != 0:
            with suppress(RuntimeError):
                store.wait(["fsl has finished"], _EXIT_TIMEOUT)
    if code == 0:
        torch.distributed.destroy_process_group()
    return code
