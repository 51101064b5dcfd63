"""A batch in parts: which images, and that the gradients are those of the whole."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib.distributed.process_group import ProcessGroup
from lib.trainer.microbatch import split_batch
from tests.trainer.steps import Setup, train


@given(st.integers(2, 200), st.integers(1, 8), st.integers(0, 40))
def test_parts_cover_each_rank_once(batch_size, count, at_once):
    if batch_size // (2 if batch_size % 2 == 0 else 1) < count or batch_size < 2 * count or at_once == 1:
        return
    found = [split_batch(batch_size, ProcessGroup(rank, count), at_once) for rank in range(count)]
    for rank, parts in enumerate(found):
        rows = ProcessGroup(rank, count).shard_pairs(batch_size)
        assert [row for part in parts.slices for row in range(part.start, part.stop)] == list(
            range(rows.stop - rows.start)
        )
        lengths = [part.stop - part.start for part in parts.slices]
        assert min(lengths) >= 2 or batch_size < 4 * count
        assert lengths == [sizes[rank] for sizes in parts.sizes]
        assert max(lengths) - min(lengths) <= 2
        if batch_size % 2 == 0:
            assert all(part.start % 2 == 0 for part in parts.slices)
        fewest = min(sum(sizes[other] for sizes in parts.sizes) for other in range(count))
        if at_once and len(lengths) < fewest // 2:  # more parts would be of single images on some rank
            assert max(lengths) <= max(at_once, 3)
    assert len({parts.sizes for parts in found}) == 1
    assert found[0].num_images == batch_size


@pytest.mark.parametrize('loss', ['mixed', 'ldam'])
@pytest.mark.parametrize('head', ['whole', 'chunked'])
def test_four_times_eight_are_thirty_two(loss, head):
    """The gradients of a batch are those of its parts added up; in float64, whatever the loss divides by."""
    options = {'batch_size': 32, 'loss': loss, 'head': head, 'clip': 0.5, 'decay': 0.9}
    whole, parts = (train(Setup(at_once=at_once, **options)) for at_once in (0, 8))
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=0, atol=1e-12, msg=name)


def test_it_learns():
    """What the tests compare would be equal, too, if nothing moved."""
    losses = train(Setup(batch_size=32))['losses']
    assert losses[-5:].mean() < losses[0]
