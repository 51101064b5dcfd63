"""Ranks agree on a name that is new, whatever an earlier start has left in the store."""

import threading
from datetime import timedelta

import pytest
import torch.distributed as dist

from lib.distributed import rendezvous as meeting

TIMEOUT = timedelta(seconds=20)


def start(store, count, order):
    """Return the name that each rank has found; they come in an order."""
    names, threads = {}, {}

    def come(rank):
        names[rank] = (
            meeting._name_for_all(store, count, TIMEOUT) if rank == 0 else meeting._name_from_main(store, rank)
        )

    for rank in order:
        threads[rank] = threading.Thread(target=come, args=(rank,), daemon=True)
        threads[rank].start()
        threads[rank].join(0.05)
    for thread in threads.values():
        thread.join(20)
    return [names[rank] for rank in range(count)]


@pytest.mark.parametrize('order', [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_every_start_has_a_name_of_its_own(order):
    store = dist.HashStore()
    store.set_timeout(TIMEOUT)
    # Of a start in which the main rank never came.
    store.set('call of 1', 'an earlier process')
    found = []
    for _ in range(3):
        names = start(store, 3, order)
        assert len(set(names)) == 1
        found += names[:1]
    assert len(set(found)) == 3


def test_one_rank_needs_nobody():
    assert start(dist.HashStore(), 1, (0,))[0]


def test_whoever_does_not_come_is_named():
    store = dist.HashStore()
    store.set('call of 1', 'a process that is gone')
    with pytest.raises(RuntimeError, match=r'ranks \[1\] of 2 did not come'):
        meeting._name_for_all(store, 2, timedelta(seconds=0.1))
