"""The process group of one run, started by torchrun: shards of the work, collective operations, and rendezvous."""

import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from lib.distributed.lost_rank import own_process, remember_processes
from lib.distributed.rank_info import RankInfo, check_address, read_rank_info

Value = TypeVar('Value')
Item = TypeVar('Item')
_POLL_SECONDS = 0.01
# If a rank hangs (disk failure, lost network), the others end after this time.
_TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of one run, seen from one of them; its collective operations are called by all.

    Attributes:
        rank: index of this process; rank 0 writes the files and the log.
        world_size: number of processes.
        local_rank: index of this process on its machine, which is the index of its GPU.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """True on rank 0, which writes the files and the log."""
        return self.rank == 0

    def shard(self, total: int) -> slice:
        """Return this rank's contiguous slice of `total` items; sizes differ by at most 1."""
        return slice(self.rank * total // self.world_size, (self.rank + 1) * total // self.world_size)

    def shard_pairs(self, total: int) -> slice:
        """Return the same for items in pairs (0 and 1, 2 and 3, ...), which stay together when `total` is even."""
        if total % 2:
            return self.shard(total)
        pairs = self.shard(total // 2)
        return slice(2 * pairs.start, 2 * pairs.stop)

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum over all ranks, with the tensor's shape and device. It has no gradient."""
        if self.world_size == 1:
            return tensor
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

    def all_gather_objects(self, value: Value) -> list[Value]:
        """Return the objects of all ranks, by rank, on every rank. Pickles them, so it waits for the device."""
        if self.world_size == 1:
            return [value]
        values: list = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def gather_objects(self, value: Value) -> list[Value]:
        """Return the objects of all ranks, by rank, on rank 0, and an empty list on the others. Pickles them."""
        if self.world_size == 1:
            return [value]
        values: list | None = [None] * self.world_size if self.is_main else None
        dist.gather_object(value, values, dst=0)
        return values or []

    def map(self, function: Callable[[Item], Value], items: Sequence[Item]) -> Iterator[Value]:
        """Yield the result of `function` for each item, in order, on every rank; the ranks take turns. Collective.

        An item is computed as a whole by one rank, so the last bits of its result do not depend on the number of ranks.
        """
        for start in range(0, len(items), self.world_size):
            some = items[start : start + self.world_size]
            value = function(some[self.rank]) if self.rank < len(some) else None
            yield from cast(list[Value], self.all_gather_objects(value)[: len(some)])

    def broadcast_object(self, value: Value) -> Value:
        """Return rank 0's object on every rank. Pickles it."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return (world_size, *shape): the tensors of all ranks, which have equal shapes. It has no gradient."""
        if self.world_size == 1:
            return tensor.detach()[None]
        stacked = tensor.new_empty(self.world_size, *tensor.shape)
        dist.all_gather(list(stacked.unbind()), tensor.detach().contiguous())
        return stacked

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Copy the values of rank 0 into the tensor on all ranks, in place."""
        if self.world_size > 1:
            dist.broadcast(tensor, src=0)

    def barrier(self) -> None:
        """Wait until all ranks have reached this call."""
        if self.world_size > 1:
            dist.all_reduce(torch.zeros(()))  # on the CPU: no wait for the GPUs

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Run the block on rank 0 first, then on the others, which find the files that it wrote."""
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()


SINGLE_PROCESS = ProcessGroup()


@contextmanager
def join_process_group() -> Iterator[ProcessGroup]:
    """Join the process group that torchrun started, and destroy it at the end; SINGLE_PROCESS without torchrun.

    CPU tensors use gloo, GPU tensors NCCL. When the block raises, the process is about to exit and the group is not
    destroyed, because destroying it would wait for ranks that wait for this one.
    """
    rank_info = read_rank_info()
    if rank_info.world_size == 1 and 'TORCHELASTIC_RUN_ID' not in os.environ:
        yield SINGLE_PROCESS
        return
    check_address()
    backend = 'gloo'
    if torch.cuda.is_available():
        backend = 'cpu:gloo,cuda:nccl'
        torch.cuda.set_device(rank_info.local_rank % torch.cuda.device_count())
    store = join_store(rank_info, _TIMEOUT)
    rank, world_size = rank_info.rank, rank_info.world_size
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=_TIMEOUT)
    group = ProcessGroup(*rank_info)
    remember_processes(group.all_gather_objects(own_process()))
    yield group
    dist.destroy_process_group()


def join_store(rank_info: RankInfo, timeout: timedelta) -> dist.Store:
    """Return a store with a prefix that only the ranks of this start use. Must be called by all of them.

    torchrun uses one store for all restarts, and torch writes the addresses of the ranks under the same keys each time,
    so a fast rank may read the address of a process that has ended (pytorch issue 135712). Therefore, the ranks of each
    (re)start agree on a new prefix for all keys. torchrun's count of restarts cannot be the prefix: it may differ
    between machines.

    Raises:
        RuntimeError: not all ranks have called it in time.
    """
    rank, world_size = rank_info.rank, rank_info.world_size
    store, _, _ = next(rendezvous('env://', rank, world_size, timeout=timeout))
    store.set_timeout(timeout)
    prefix = _send_prefix(store, world_size, timeout) if rank == 0 else _receive_prefix(store, rank)
    return dist.PrefixStore(prefix, store)


def _send_prefix(store: dist.Store, world_size: int, timeout: timedelta) -> str:
    """Send a new prefix to every rank that requests it, until all ranks have confirmed it.

    Requests of an earlier start are never confirmed, so they don't count.
    """
    prefix = uuid.uuid4().hex
    answered: dict[int, str] = {}
    waiting, end = set(range(1, world_size)), time.monotonic() + timeout.total_seconds()
    while waiting := {rank for rank in waiting if not store.check([f'{prefix} confirmed by {rank}'])}:
        if time.monotonic() > end:
            raise RuntimeError(f'ranks {sorted(waiting)} of {world_size} did not join within {timeout}')
        for rank in waiting:
            if store.check([f'request of {rank}']):
                request = store.get(f'request of {rank}').decode()
                if answered.get(rank) != request:
                    store.set(f'prefix for {request}', prefix)
                    answered[rank] = request
        time.sleep(_POLL_SECONDS)
    return prefix


def _receive_prefix(store: dist.Store, rank: int) -> str:
    request = uuid.uuid4().hex
    store.set(f'request of {rank}', request)
    prefix = store.get(f'prefix for {request}').decode()  # blocks until it is set
    store.set(f'{prefix} confirmed by {rank}', '')
    return prefix
