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
    'arcface, uneven ranks': Setup(batch_size=10, loss='arcface'),
    'sharded arcface, uneven ranks': Setup(batch_size=10, head='sharded', loss='arcface'),
    'head first': Setup(max_images=4, clip=0.05, decay=0.9, head_steps=8),
    'head first, sharded': Setup(batch_size=10, head='sharded', head_steps=8),
    'embedding, head first, sharded arcface': Setup(head='sharded', loss='arcface', embedding=True, head_steps=8),
    'triplets, uneven ranks, sharded arcface': Setup(
        batch_size=13, head='sharded', loss='arcface', embedding=True, auxiliary='triplet'
    ),
    'multi-similarity, head first': Setup(loss='ldam', embedding=True, auxiliary='multi_similarity', head_steps=8),
    'supervised contrastive, chunked': Setup(
        batch_size=10, loss='ldam', head='chunked', auxiliary='supervised_contrastive'
    ),
    'sharded backbone, clip, EMA': Setup(backbone_sharded=True, clip=0.05, decay=0.9),
    'sharded backbone, micro-batches, AdamW': Setup(backbone_sharded=True, batch_size=18, max_images=4, adamw=True),
    'sharded backbone, float32': Setup(backbone_sharded=True, dtype=torch.float32),
    'both sharded, micro-batches, clip, EMA': Setup(
        backbone_sharded=True, batch_size=18, max_images=4, head='sharded', clip=0.05, decay=0.9
    ),
    'sharded backbone, tuned norms, embedding': Setup(backbone_sharded=True, tune='norm', embedding=True, decay=0.9),
    'sharded backbone, head first, arcface': Setup(
        backbone_sharded=True, loss='arcface', embedding=True, head_steps=8, clip=0.05
    ),
}
# Each head, loss and option of a step is in one of them.
SOME = ('uneven ranks', 'float32', 'sharded, micro-batches, clip, EMA', 'micro-batches, weights of images', 'lora',
        'chunked', 'sharded ldam, uneven ranks', 'head first', 'embedding, head first, sharded arcface',
        'triplets, uneven ranks, sharded arcface', 'multi-similarity, head first',
        'both sharded, micro-batches, clip, EMA', 'sharded backbone, micro-batches, AdamW')  # fmt: skip


def weights_of_a_rank(rank: int, count: int, names: tuple[str, ...]) -> dict:
    """Run in each process."""
    return {name: train(SETUPS[name], ProcessGroup(rank, count)) for name in names}


@pytest.mark.process
@pytest.mark.long
@pytest.mark.parametrize(
    ('count', 'names'),
    [
        pytest.param(2, SOME, id='2, some'),
        pytest.param(2, tuple(SETUPS), id='2', marks=pytest.mark.slow),
        pytest.param(3, tuple(SETUPS), id='3', marks=pytest.mark.slow),
    ],
)
def test_ranks_compute_the_weights_of_one_process(tmp_path, count, names):
    found = run_ranks(weights_of_a_rank, count, tmp_path, names)
    for name in names:
        setup = SETUPS[name]
        expected = train(setup)
        bound = 1e-5 if setup.dtype == torch.float32 else 1e-10
        for key, tensor in expected.items():
            per_rank = [weights[name][key] for weights in found if key in weights[name]]
            if setup.head == 'sharded' and 'classifier' in key:
                assert [len(rows) for rows in per_rank] == [
                    rows.stop - rows.start
                    for rows in (ProcessGroup(rank, count).shard(NUM_CLASSES) for rank in range(count))
                ]
                per_rank = [torch.cat(per_rank)]
            for actual in per_rank:
                torch.testing.assert_close(actual, tensor, rtol=0, atol=bound, msg=f'{name}: {key}')
