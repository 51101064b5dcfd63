"""The largest number of images that fits, against a linear search."""

import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib.trainer.microbatch import fits, largest_that_fits


class Memory:
    """A device that holds a number of images, and records the trials."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.tried = capacity, []

    def __call__(self, num_images: int) -> bool:
        self.tried.append(num_images)
        return num_images <= self.capacity


@given(capacity=st.integers(0, 700), limit=st.integers(1, 600), multiple=st.integers(1, 9))
def test_against_a_linear_search(capacity, limit, multiple):
    memory = Memory(capacity)
    allowed = [limit, *range(multiple, limit, multiple)]
    expected = max((number for number in allowed if number <= capacity), default=None)
    if expected is None:
        assert largest_that_fits(memory, limit, multiple) == 0
        return
    assert largest_that_fits(memory, limit, multiple) == expected
    assert expected in memory.tried
    assert set(memory.tried) <= set(allowed)
    assert len(set(memory.tried)) == len(memory.tried) <= 2 * limit.bit_length()
    assert max(memory.tried) <= max(2 * capacity, multiple)


def test_multiples_of_two_by_default():
    assert largest_that_fits(Memory(37), 512) == 36
    assert largest_that_fits(Memory(1000), 37) == 37


@pytest.mark.long
def test_other_errors_pass_through():
    def step(num_images):
        if num_images > 8:
            raise torch.OutOfMemoryError('CUDA out of memory')
        if num_images == 7:
            raise RuntimeError('something else')

    tries = fits(step)
    assert [tries(8), tries(16), tries(2)] == [True, False, True]
    with pytest.raises(RuntimeError, match='something else'):
        tries(7)


def test_a_failed_step_frees_its_tensors(monkeypatch):
    """Before the cache is emptied, the tensors of the step are freed, even those in a reference cycle of its error."""
    alive, at_emptying = [], []

    def step(num_images):
        images = torch.zeros(num_images)
        alive.append(weakref.ref(images))
        error = torch.OutOfMemoryError('CUDA out of memory')
        error.images = [images, error]
        raise error

    monkeypatch.setattr(torch.cuda, 'empty_cache', lambda: at_emptying.append([one() for one in alive]))
    assert not fits(step)(4)
    assert at_emptying == [[None]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_on_a_gpu():
    total = torch.cuda.get_device_properties(0).total_memory
    image = total // 20

    def step(num_images):
        torch.empty(num_images * image, dtype=torch.uint8, device='cuda')

    assert 2 <= largest_that_fits(fits(step), 64) <= 20
    assert torch.cuda.memory_reserved() < image
