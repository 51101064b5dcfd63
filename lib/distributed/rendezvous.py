"""Rendezvous of the ranks, also after a restart by torchrun.

torchrun uses one store for all restarts, and torch writes the addresses of the ranks under the same keys each time, so
a fast rank may read the address of a process that has ended (pytorch issue 135712). Therefore, the ranks of each
(re)start agree on a new prefix for all keys. torchrun's count of restarts cannot be the prefix: it may differ between
machines.
"""

import time
import uuid
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from lib.distributed.rank_info import RankInfo

_PAUSE_SECONDS = 0.01


def join_store(rank_info: RankInfo, timeout: timedelta) -> dist.Store:
    """Return a store with a prefix that only the ranks of this start use. Must be called by all of them.

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
        time.sleep(_PAUSE_SECONDS)
    return prefix


def _receive_prefix(store: dist.Store, rank: int) -> str:
    request = uuid.uuid4().hex
    store.set(f'request of {rank}', request)
    prefix = store.get(f'prefix for {request}').decode()  # blocks until it is set
    store.set(f'{prefix} confirmed by {rank}', '')
    return prefix
