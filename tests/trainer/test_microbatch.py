"""Micro-batches cover each batch once, and their gradients add up to those of the batch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib.distributed.process_group import ProcessGroup
from lib.trainer.microbatch import split_batch
from tests.trainer.steps import Setup, train


@given(st.integers(2, 200), st.integers(1, 8), st.integers(0, 40))
def test_micro_batches_cover_each_rank_once(batch_size, count, max_images):
    if batch_size // (2 if batch_size % 2 == 0 else 1) < count or batch_size < 2 * count or max_images == 1:
        return
    found = [split_batch(batch_size, ProcessGroup(rank, count), max_images) for rank in range(count)]
    for rank, micro_batches in enumerate(found):
        rows = ProcessGroup(rank, count).shard_pairs(batch_size)
        assert [row for part in micro_batches.slices for row in range(part.start, part.stop)] == list(
            range(rows.stop - rows.start)
        )
        lengths = [part.stop - part.start for part in micro_batches.slices]
        assert min(lengths) >= 2 or batch_size < 4 * count
        assert lengths == [sizes[rank] for sizes in micro_batches.sizes]
        assert max(lengths) - min(lengths) <= 2
        if batch_size % 2 == 0:
            assert all(part.start % 2 == 0 for part in micro_batches.slices)
        fewest = min(sum(sizes[other] for sizes in micro_batches.sizes) for other in range(count))
        if max_images and len(lengths) < fewest // 2:  # more micro-batches would be single images on some rank
            assert max(lengths) <= max(max_images, 3)
    assert len({micro_batches.sizes for micro_batches in found}) == 1
    assert found[0].num_images == batch_size


@pytest.mark.parametrize('loss', ['mixed', 'ldam'])
@pytest.mark.parametrize('head', ['whole', 'chunked'])
@pytest.mark.long
def test_gradients_add_up(loss, head):
    """The gradients of a batch are the sum over its micro-batches, in float64, for every normalizer."""
    options = {'batch_size': 32, 'loss': loss, 'head': head, 'clip': 0.5, 'decay': 0.9}
    whole, micro_batches = (train(Setup(max_images=max_images, **options)) for max_images in (0, 8))
    for name, tensor in whole.items():
        torch.testing.assert_close(micro_batches[name], tensor, rtol=0, atol=1e-12, msg=name)


def test_the_loss_falls():
    """The other tests would pass, too, if no weight changed."""
    losses = train(Setup(batch_size=32))['losses']
    assert losses[-5:].mean() < losses[0]
