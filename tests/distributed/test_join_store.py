"""The ranks of each start agree on a new prefix, whatever an earlier start has left in the store."""

import threading
from datetime import timedelta

import pytest
import torch.distributed as dist

from lib.distributed.process_group import _receive_prefix, _send_prefix

TIMEOUT = timedelta(seconds=20)


def start(store, count, order):
    """Return the prefix of each rank; the ranks start in the given order."""
    prefixes, threads = {}, {}

    def join(rank):
        prefixes[rank] = _send_prefix(store, count, TIMEOUT) if rank == 0 else _receive_prefix(store, rank)

    for rank in order:
        threads[rank] = threading.Thread(target=join, args=(rank,), daemon=True)
        threads[rank].start()
        threads[rank].join(0.05)
    for thread in threads.values():
        thread.join(20)
    return [prefixes[rank] for rank in range(count)]


@pytest.mark.parametrize('order', [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
@pytest.mark.long
def test_every_start_has_a_new_prefix(order):
    store = dist.HashStore()
    store.set_timeout(TIMEOUT)
    # Of an earlier start without the main rank.
    store.set('request of 1', 'an earlier process')
    started = []
    for _ in range(3):
        prefixes = start(store, 3, order)
        assert len(set(prefixes)) == 1
        started += prefixes[:1]
    assert len(set(started)) == 3


def test_a_single_rank_does_not_wait():
    assert start(dist.HashStore(), 1, (0,))[0]


def test_missing_ranks_are_reported():
    store = dist.HashStore()
    store.set('request of 1', 'a process that has ended')
    with pytest.raises(RuntimeError, match=r'ranks \[1\] of 2 did not join'):
        _send_prefix(store, 2, timedelta(seconds=0.1))
