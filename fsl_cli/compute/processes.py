"""Several processes that work as one run, started by torchrun: who does what, and how results come together.

    torchrun --nproc-per-node=4 -m fsl_cli train algo=protonet dataset=omniglot

The processes talk through `torch.distributed`: gloo for what lies in main memory, NCCL for what lies on GPUs. Process 0
alone writes and prints. Without torchrun there is one process and no process group. Nothing here is slow to import.
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
_FOREVER = timedelta(days=1)  # a process that has died is noticed by its connection, a slow one is waited for
_LAST_WORDS = timedelta(seconds=20)  # torchrun kills after 30
_LONGEST_PAUSE = 0.01  # seconds between looking whether the others have come


class Processes:
    """One process alone; `Several` does the same for many.

    Attributes:
        rank: number of this process, 0..size-1.
        size: how many there are.
        local_rank: number of this process on its machine.
    """

    rank, size, local_rank = 0, 1, 0

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def share(self, count: int, unit: int = 1) -> range:
        """The part of ``range(count)`` that this process works on, in blocks of ``unit``.

        The parts follow each other in the order of the processes; the last ones are empty when there is not enough.
        """
        blocks = -(-count // unit)
        start, stop = (min(count, unit * -(-blocks * rank // self.size)) for rank in (self.rank, self.rank + 1))
        return range(start, stop)

    def from_first(self, work: Callable[[], T]) -> T:
        """What ``work`` gives in process 0, in all of them; it must be picklable. An `FslError` is raised in all."""
        return work()

    def together(self, work: Callable[[], T]) -> T:
        """Do ``work`` in every process; an `FslError` of one is raised in all."""
        return work()

    def numbers(self, values: Sequence[float]) -> list[float]:
        """Sums of a few numbers over the processes."""
        return list(values)

    def summed(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Sums of tensors over the processes, the same bits in each; shapes must agree."""
        return list(tensors)

    def gather(self, mine: Tensor | None) -> Tensor:
        """The tensors ``[n, ...]`` of all processes one after the other; None where there is nothing."""
        assert mine is not None
        return mine

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite ``tensors`` by those of process 0."""

    @contextmanager
    def own_randomness(self, device: torch.device) -> Iterator[None]:
        """Inside, each process draws other random numbers; afterwards all generators go on as one, the same in all."""
        yield


ALONE = Processes()


class Several(Processes):
    """What `Processes` says, for this process among the others of the process group.

    Every method but `share` must be called by all of them, in the same order.

    Raises:
        FslError: another process has gone.
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
        """Wait for the others, open to Ctrl-C. Returns how many have ``raised``."""
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
    """Whether torchrun has started this process together with others."""
    return all(name in os.environ for name in _VARIABLES) and int(os.environ["WORLD_SIZE"]) > 1


def current() -> Processes:
    """The processes of this run."""
    distributed = sys.modules.get("torch.distributed")
    return Several() if distributed and distributed.is_available() and distributed.is_initialized() else ALONE


def run(main: Callable[[], int]) -> int:
    """Join the process group, run ``main`` and return its exit code; only process 0 is heard.

    When something went wrong, the others stay until process 0 has said and written what it has to: torchrun ends all
    processes as soon as one has failed. What fails unexpectedly in another process is printed with its number.
    """
    import torch
    import torch.distributed
    from torch.distributed.rendezvous import rendezvous

    store, rank, size = next(rendezvous("env://"))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_FOREVER)
    if rank == 0:
        code = main()
        store.set("fsl has finished", str(code))
    else:
        heard = io.StringIO()
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(heard):
            code = main()
        if code == 1:
            print(*(f"process {rank}: {line}" for line in heard.getvalue().splitlines()), sep="\n", file=sys.stderr)
        elif code != 0:
            with suppress(RuntimeError):
                store.wait(["fsl has finished"], _LAST_WORDS)
    if code == 0:
        torch.distributed.destroy_process_group()
    return code
