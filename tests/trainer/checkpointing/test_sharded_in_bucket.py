"""The files of a sharded classifier in a bucket, written by ranks on several machines."""

import pytest
import torch

from lib.trainer.checkpointing.sharded import check_shards, read_rows, write_index, write_shard
from tests.runtime.test_uploads import machine, objects

__all__ = ['machine']
pytestmark = [pytest.mark.process, pytest.mark.long]


def test_ranks_on_two_machines_write_a_classifier_that_a_third_one_reads(storage_server, machine):
    rows = torch.arange(15.0).reshape(5, 3)
    for name, rank, classes in (('b', 1, range(3, 5)), ('a', 0, range(3))):
        folder = machine(name) / 'head-1-0'
        write_shard(folder, {'classifier.weight': rows[classes.start : classes.stop]}, classes, rank=rank, count=2)
    write_index(folder, 5, 2)
    assert len(objects(storage_server, folder)) == 3
    folder = machine('c') / 'head-1-0'
    check_shards(folder)
    torch.testing.assert_close(read_rows(folder, range(1, 4))['classifier.weight'], rows[1:4], rtol=0, atol=0)
