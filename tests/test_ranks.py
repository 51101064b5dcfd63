"""run_ranks(): results in order of ranks; a failure ends all ranks."""

import os
import time

import pytest
import torch

from tests.ranks import gather, run_ranks

pytestmark = pytest.mark.process


def every_rank(rank, count, number):
    return {'count': count, 'ranks': gather(torch.tensor([rank + number]))}


def first_raises(rank, count):
    if rank == 0:
        raise ValueError('on purpose')
    gather(torch.zeros(1))  # would wait forever


def last_dies(rank, count):
    if rank == count - 1:
        os._exit(7)
    gather(torch.zeros(1))


def every_rank_sleeps(rank, count):
    time.sleep(600)


def test_results_are_in_order_of_ranks(tmp_path):
    results = run_ranks(every_rank, 3, tmp_path, 10)
    assert [result['count'] for result in results] == [3, 3, 3]
    assert all(result['ranks'].flatten().tolist() == [10, 11, 12] for result in results)


@pytest.mark.parametrize(
    ('function', 'seconds', 'message'),
    [
        (first_raises, 60, 'ValueError: on purpose'),
        (last_dies, 60, 'exit codes|closed by peer|reset by peer'),
        (every_rank_sleeps, 2, 'out of time'),
    ],
)
def test_failures_are_reported_and_end_all_ranks(tmp_path, function, seconds, message):
    started = time.monotonic()
    with pytest.raises(AssertionError, match=message):
        run_ranks(function, 2, tmp_path, seconds=seconds)
    assert time.monotonic() - started < 40
