"""Several processes that work as one. torchrun starts them; torch.distributed joins them (gloo on CPUs, NCCL on GPUs).

Without torchrun there is one process. Everything here works with one process too, so callers need no second case.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from longformer.errors import LongformerError

Item = TypeVar("Item")
LOST_CONNECTION = (  # words of gloo's errors when another process has ended
    "Connection closed by peer", "Connection reset by peer", "Socket closed", "Broken pipe",
)  # fmt: skip


class Processes(NamedTuple):
    """rank: number of this process. size: how many there are. device: where this one computes.

    joined: whether torch.distributed is in use, as it is under torchrun even with a single process.
    """

    rank: int
    size: int
    device: torch.device
    joined: bool

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and prints messages."""
        return self.rank == 0

    def gather(self, value: Item) -> list[Item]:
        """The ``value`` of every process, in order of rank. All processes must call this."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums over all processes, element by element. All processes must call this."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def share(self, items: Sequence[Item]) -> list[Item]:
        """This process's share of ``items``: every ``size``-th one, starting with number ``rank``."""
        return list(items[self.rank :: self.size])


# Groups that this process has left. The last reference to a group ends its threads and waits for them. Where that is a
# model's under DDP, the interpreter's lock is held meanwhile, one of the threads may wait for that lock, and both wait
# for ever. A reference from Python is given up without the lock. So one is kept, longer than any model.
_left: list[Any] = []


@contextmanager
def processes(device: torch.device | str | None = None) -> Iterator[Processes]:
    """Join the processes that torchrun started, and leave them at the end. Without torchrun this process is alone.

    Args:
        device: "cpu" or "cuda"; None is the CPU. With "cuda" each process takes the GPU of its local rank.

    Raises:
        LongformerError: the device cannot be used, or the other processes cannot be reached.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield Processes(0, 1, check_device(device), joined=False)
        return
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    own = torch.device("cpu" if device is None else device)
    if str(own) == "cuda":
        own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    own = check_device(own)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    if dist.is_initialized():
        yield Processes(rank, size, own, joined=True)
        return
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo")
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise LongformerError(f"process {rank} of {size} cannot join the others: {reason}") from None
    try:
        yield Processes(rank, size, own, joined=True)
    except RuntimeError as error:
        if not any(words in str(error) for words in LOST_CONNECTION):
            raise
        raise LongformerError(
            f"process {rank} of {size} lost the others: one of them ended; its own message says why"
        ) from None
    finally:
        _left.append(dist.group.WORLD)
        dist.destroy_process_group()


def check_device(device: torch.device | str | None) -> torch.device:
    """``device`` as a torch.device; None is the CPU. Raises LongformerError if it cannot be used here."""
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0].rstrip(".")  # torch goes on for a thousand characters
        raise LongformerError(f"device {str(device)!r} cannot be used here ({reason}); 'cpu' always works") from None
    return torch.device("cpu" if device is None else device)


@contextmanager
def fail_together(group: Processes) -> Iterator[None]:
    """If the block raises an error in one process, raise it in all. So none waits for a process that has ended.

    Inside the block no process may wait for another.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as raised:  # of any kind: each must end all processes
        error = raised
    known = isinstance(error, LongformerError)
    messages = group.gather(None if error is None else str(error) if known else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    for rank, message in enumerate(messages):
        if message is not None:
            raise LongformerError(f"process {rank} of {group.size}: {message}")


def check_agreement(group: Processes, **values: str) -> None:
    """Raise LongformerError in every process if the processes differ in one of the named ``values``."""
    everyone = group.gather(values)
    for name, value in everyone[0].items():
        for rank, theirs in enumerate(everyone):
            if theirs.get(name) != value:
                raise LongformerError(
                    f"the processes disagree about {name}: {value} in process 0, {theirs.get(name)} in process {rank}; "
                    "start them with the same arguments, on the same files and versions"
                )


def unsharded(tensor: Tensor) -> Tensor:
    """The complete tensor, which may be sharded over processes. All processes must call this."""
    gathered: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return gathered.detach()
