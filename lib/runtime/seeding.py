"""Everything random is a pure function of (seed, epoch, slot, purpose)."""

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a random stream is for. Numbers are part of the result: append, never renumber."""

    INIT = 0  # initial weights
    PLAN = 1  # the rows of an epoch, in order
    AUGMENT = 2  # crop and flip of one slot
    REPLACE = 3  # another image in the place of an unreadable one
    DROPOUT = 4  # dropout and drop path of one step
    HEAD_CAP = 5  # which images of a large class are kept
    SPLIT = 6  # train or valid
    IMBALANCE = 7  # which images of a balanced set make the long-tailed one
    DEMO = 8  # the drawn products
    RECOLOR = 9  # augmentations of one slot beyond crop and flip
    MIX = 10  # whether, where and how much one slot is mixed with its partner
    MIX_STAGE = 11  # the stage at which the features of one step are mixed
    HEAD = 12  # what the loss of one step draws where classifier and loss are computed together


_DRAWS_A_BLOCK = 4  # numbers that Philox makes at each place of its counter


def generator(seed: int, purpose: Purpose, *, epoch: int = 0, slot: int = 0, attempt: int = 0) -> np.random.Generator:
    """Return the random stream of one event.

    Philox is counter based (Salmon et al., SC 2011): the key names the run and the purpose, the counter names the
    event, so a stream costs microseconds, needs no state, and two events never share one. The counter's lowest word
    is left to the stream itself.
    """
    key = np.array([seed, purpose], dtype=np.uint64)
    counter = np.array([0, attempt, slot, epoch], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def torch_seed(seed: int, purpose: Purpose, step: int = 0, rank: int = 0) -> int:
    """Return a 63-bit seed for torch's generators, different for every step and rank of every purpose."""
    return int(generator(seed, purpose, slot=step, attempt=rank).integers(2**63))


def slot_draws(
    seed: int, purpose: Purpose, *, epoch: int, first_slot: int, num_slots: int, num_draws: int
) -> np.ndarray:
    """Return (num_slots, num_draws) float64, uniform in [0, 1): row i belongs to slot first_slot + i alone.

    One stream an epoch, in which each slot has its own stretch of the counter: a batch is drawn in one call, and a slot
    gets the same numbers whichever batch it falls into.
    """
    blocks = -(-num_draws // _DRAWS_A_BLOCK)
    key = np.array([seed, purpose], dtype=np.uint64)
    counter = np.array([first_slot * blocks, 0, 0, epoch], dtype=np.uint64)
    draws = np.random.Generator(np.random.Philox(key=key, counter=counter)).random((num_slots, blocks * _DRAWS_A_BLOCK))
    return draws[:, :num_draws]
