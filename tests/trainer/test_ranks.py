"""Several processes compute the weights of one."""

import pytest
import torch

from lib.distributed.process_group import ProcessGroup
from tests.ranks import run_ranks
from tests.trainer.steps import NUM_CLASSES, Setup, train

SETUPS = {
    'mixed': Setup(),
    'uneven ranks': Setup(batch_size=10),
    'odd batch': Setup(batch_size=13),
    'float32': Setup(dtype=torch.float32),
    'micro-batches': Setup(batch_size=16, max_images=4),
    'clip and EMA': Setup(clip=0.05, decay=0.9),
    'ldam': Setup(loss='ldam'),
    'chunked': Setup(head='chunked'),
    'sharded': Setup(head='sharded'),
    'sharded, weights of images': Setup(head='sharded', weighted=True),
    'micro-batches, weights of images': Setup(batch_size=16, max_images=4, weighted=True),
    'sharded, micro-batches, clip, EMA': Setup(batch_size=18, max_images=4, head='sharded', clip=0.05, decay=0.9),
    'lora': Setup(tune='lora', clip=0.05, decay=0.9),
    'adaptformer, sharded': Setup(tune='adaptformer', head='sharded'),
    'ssf, micro-batches, sharded, EMA': Setup(tune='ssf', batch_size=16, max_images=4, head='sharded', decay=0.9),
    'sharded ldam, uneven ranks': Setup(batch_size=10, head='sharded', loss='ldam'),
}


def weights_of_a_rank(rank: int, count: int) -> dict:
    """Run in each process."""
    return {name: train(setup, ProcessGroup(rank, count)) for name, setup in SETUPS.items()}


@pytest.mark.process
@pytest.mark.parametrize('count', [2, pytest.param(3, marks=pytest.mark.slow)])
def test_ranks_compute_the_weights_of_one_process(tmp_path, count):
    found = run_ranks(weights_of_a_rank, count, tmp_path)
    for name, setup in SETUPS.items():
        expected = train(setup)
        bound = 1e-5 if setup.dtype == torch.float32 else 1e-10
        for key, tensor in expected.items():
            per_rank = [weights[name][key] for weights in found]
            if setup.head == 'sharded' and 'classifier' in key:
                assert [len(rows) for rows in per_rank] == [
                    rows.stop - rows.start
                    for rows in (ProcessGroup(rank, count).shard(NUM_CLASSES) for rank in range(count))
                ]
                per_rank = [torch.cat(per_rank)]
            for actual in per_rank:
                torch.testing.assert_close(actual, tensor, rtol=0, atol=bound, msg=f'{name}: {key}')
