"""How the ranks of a run find each other, also when torchrun has started them anew.

torchrun's agent keeps one store over all starts, and torch writes the ranks' addresses into it under the same names
each time: a fast rank would read the address of a process that is gone (pytorch issue 135712). So each start has a
name of its own for all that it writes there. torchrun's count of restarts is no such name: machines count for
themselves.
"""

import time
import uuid
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from lib.distributed.rank_info import RankInfo

_PAUSE_SECONDS = 0.01


def join_store(found: RankInfo, timeout: timedelta) -> dist.Store:
    """Return a store in which nothing is but what the ranks of this start write. Called by each of them.

    Raises:
        RuntimeError: not all of them came in time.
    """
    store, _, _ = next(rendezvous('env://', found.rank, found.world_size, timeout=timeout))
    store.set_timeout(timeout)
    name = _name_for_all(store, found.world_size, timeout) if found.rank == 0 else _name_from_main(store, found.rank)
    return dist.PrefixStore(name, store)


def _name_for_all(store: dist.Store, count: int, timeout: timedelta) -> str:
    """Tell a new name to every rank that calls, until all have taken it; calls of an earlier start take none."""
    name, told = uuid.uuid4().hex, {}
    waiting, end = set(range(1, count)), time.monotonic() + timeout.total_seconds()
    while waiting := {rank for rank in waiting if not store.check([f'{name} taken by {rank}'])}:
        if time.monotonic() > end:
            raise RuntimeError(f'ranks {sorted(waiting)} of {count} did not come in {timeout}')
        for rank in waiting:
            if store.check([f'call of {rank}']):
                call = store.get(f'call of {rank}').decode()
                if told.get(rank) != call:
                    store.set(f'answer to {call}', name)
                    told[rank] = call
        time.sleep(_PAUSE_SECONDS)
    return name


def _name_from_main(store: dist.Store, rank: int) -> str:
    call = uuid.uuid4().hex
    store.set(f'call of {rank}', call)
    name = store.get(f'answer to {call}').decode()  # waits for it
    store.set(f'{name} taken by {rank}', '')
    return name
