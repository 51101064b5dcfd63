"""Random streams are pure functions of (seed, purpose, epoch, slot, attempt)."""

import itertools

import numpy as np
import pytest
import torch

from lib.runtime.seeding import Purpose, generator, slot_draws, torch_seed

PINNED = [3385005581954199770, 8185218417636761946, 5311904316832468893, 2531659844504820774]
PINNED_ORDER = [0, 1, 3, 2, 5, 4, 7, 6]


def first(*args, **event):
    return generator(*args, **event).integers(2**63, size=4).tolist()


def test_the_same_event_gives_the_same_stream():
    event = {'epoch': 3, 'slot': 5, 'attempt': 1}
    assert first(7, Purpose.AUGMENT, **event) == first(7, Purpose.AUGMENT, **event)


def test_two_events_never_share_a_stream():
    small = range(4)
    seen = set()
    for seed, purpose, epoch, slot, attempt in itertools.product(small, Purpose, small, small, small):
        seen.update(first(seed, purpose, epoch=epoch, slot=slot, attempt=attempt))
    assert len(seen) == 4 * 4**4 * len(Purpose)


def test_a_long_stream_does_not_overlap_with_the_next_slot():
    """The lowest word of the counter belongs to the stream."""
    long = set(generator(0, Purpose.PLAN, slot=0).integers(2**63, size=100_000).tolist())
    assert not long & set(generator(0, Purpose.PLAN, slot=1).integers(2**63, size=100_000).tolist())


@pytest.mark.parametrize('event', [{'epoch': 2**40}, {'slot': 10**13}, {'attempt': 2**62}])
def test_large_numbers_are_different_events(event):
    assert first(2**63 - 1, Purpose.PLAN, **event) != first(2**63 - 1, Purpose.PLAN)


def test_global_generators_are_neither_used_nor_changed():
    np.random.seed(1)  # noqa: NPY002 - the global seed must have no influence
    torch.manual_seed(1)
    before = first(0, Purpose.PLAN), torch_seed(0, Purpose.DROPOUT)
    np.random.seed(2)  # noqa: NPY002
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert (first(0, Purpose.PLAN), torch_seed(0, Purpose.DROPOUT)) == before
    assert torch.equal(torch.get_rng_state(), state)


def test_streams_never_change():
    """Pinned: plans and crops of a resumed run must be those of the run that was interrupted."""
    assert [int(purpose) for purpose in Purpose] == list(range(len(Purpose)))
    assert first(1, Purpose.PLAN, epoch=2, slot=3, attempt=4) == PINNED
    assert generator(0, Purpose.SPLIT).permutation(8).tolist() == PINNED_ORDER


def test_torch_seeds_are_63_bit_and_differ_by_step_and_purpose():
    seeds = [torch_seed(0, purpose, step) for purpose in Purpose for step in range(100)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    torch.Generator().manual_seed(max(seeds))


def test_draws_are_uniform_over_slots():
    """The first draw of consecutive slots, as crops and flips use it."""
    draws = np.array([generator(5, Purpose.AUGMENT, slot=slot).random() for slot in range(4000)])
    counts = np.histogram(draws, bins=20, range=(0, 1))[0]
    assert abs(counts - 200).max() < 70, counts  # standard deviation 14
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.06


@pytest.mark.parametrize('num_draws', [0, 1, 3, 4, 41])
def test_draws_of_a_slot_do_not_depend_on_its_batch(num_draws):
    def draws(first_slot, num_slots, **other):
        event = {'seed': 5, 'purpose': Purpose.AUGMENT, 'epoch': 2, 'num_draws': num_draws, **other}
        return slot_draws(first_slot=first_slot, num_slots=num_slots, **event)

    whole = draws(0, 40)
    assert whole.shape == (40, num_draws)
    assert np.array_equal(whole[13:20], draws(13, 7))
    assert np.array_equal(draws(10**12, 4)[2:], draws(10**12 + 2, 2))
    if num_draws:
        others = [draws(0, 40, seed=6), draws(0, 40, epoch=3), draws(0, 40, purpose=Purpose.RECOLOR)]
        numbers = np.concatenate([whole, *others]).ravel()
        assert len(np.unique(numbers)) == numbers.size, 'all numbers are different'
        assert 0 <= numbers.min() <= numbers.max() < 1
