"""The processes of one run, as torchrun starts them: how they share work, and what they tell each other."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist

from lib.distributed.rank_info import place
from lib.distributed.rendezvous import meet

Value = TypeVar('Value')
# A rank that hangs without dying (a dead disk, a lost network) ends the others after this.
_TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run.

    Attributes:
        rank: from 0; that one writes files and speaks.
        count: how many there are.
        local: number among those of this machine, which is the number of its GPU.
    """

    rank: int = 0
    count: int = 1
    local: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this rank writes."""
        return self.rank == 0

    def share(self, total: int, start: int = 0) -> slice:
        """Return this rank's contiguous part of `total` things that begin at `start`; parts differ by 1 at most."""
        return slice(start + self.rank * total // self.count, start + (self.rank + 1) * total // self.count)

    def share_pairs(self, total: int, start: int = 0) -> slice:
        """Return the same of things that come in pairs (0 and 1, 2 and 3, ...), which stay together if all have one."""
        if total % 2:
            return self.share(total, start)
        pairs = self.share(total // 2)
        return slice(start + 2 * pairs.start, start + 2 * pairs.stop)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum over all ranks, of the tensor's shape, on its device. Takes no gradient."""
        if self.count == 1:
            return tensor
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

    def gather(self, value: Value) -> list[Value]:
        """Return what every rank has, in their order, to each of them. Any plain object; it waits for the device."""
        if self.count == 1:
            return [value]
        values: list = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def join(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows of all ranks (any number each), in their order, to each of them."""
        return np.concatenate(self.gather(rows)) if self.count > 1 else rows

    def stack(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return (count, *shape): the tensors of all ranks, which have one shape. Takes no gradient."""
        if self.count == 1:
            return tensor.detach()[None]
        stacked = tensor.new_empty(self.count, *tensor.shape)
        dist.all_gather(list(stacked.unbind()), tensor.detach().contiguous())
        return stacked

    def send_from_main(self, tensor: torch.Tensor) -> None:
        """Give the main rank's numbers to the same tensor of all ranks, in place."""
        if self.count > 1:
            dist.broadcast(tensor, src=0)

    def wait(self) -> None:
        """Wait until all ranks have come here."""
        if self.count > 1:
            dist.all_reduce(torch.zeros(()))  # on the CPU, whatever the GPUs are at

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Let the main rank go through the block before the others: what it leaves on the disk, they find."""
        if not self.is_main:
            self.wait()
        yield
        if self.is_main:
            self.wait()


ALONE = Ranks()


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """Join the processes that torchrun started, and leave them at the end; ALONE where it did not.

    CPU tensors go by gloo, those of GPUs by NCCL. When the block raises, the process is about to end: the group is
    left to the system then, since a proper farewell would wait for ranks that wait for this one.
    """
    found = place()
    if found.count == 1 and 'TORCHELASTIC_RUN_ID' not in os.environ:
        yield ALONE
        return
    backend = 'gloo'
    if torch.cuda.is_available():
        backend = 'cpu:gloo,cuda:nccl'
        torch.cuda.set_device(found.local % torch.cuda.device_count())
    store = meet(found, _TIMEOUT)
    dist.init_process_group(backend, store=store, rank=found.rank, world_size=found.count, timeout=_TIMEOUT)
    yield Ranks(*found)
    dist.destroy_process_group()
