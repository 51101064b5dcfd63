"""Random streams as pure functions of (seed, purpose, epoch, slot, attempt), so runs are reproducible and resumable."""

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """The purpose of a random stream. The numbers are part of the result: append, never renumber."""

    INIT = 0  # initial weights
    PLAN = 1  # the order of the rows in an epoch
    AUGMENT = 2  # crop and flip of one slot
    REPLACE = 3  # replacement of an unreadable image
    DROPOUT = 4  # dropout and drop path of one step
    HEAD_CAP = 5  # selection of images of a large class
    SPLIT = 6  # train or valid
    IMBALANCE = 7  # selection of images that makes a balanced set long-tailed
    DEMO = 8  # images of the demo data set
    RECOLOR = 9  # augmentations of one slot other than crop and flip
    MIX = 10  # if, where and with which lambda one slot is mixed with its partner
    MIX_STAGE = 11  # network stage at which the features of one step are mixed
    HEAD = 12  # draws of the loss of one step if classifier and loss are computed together


_DRAWS_PER_BLOCK = 4  # numbers that Philox generates per value of its counter


def generator(seed: int, purpose: Purpose, *, epoch: int = 0, slot: int = 0, attempt: int = 0) -> np.random.Generator:
    """Return the random stream of one event.

    Philox is counter-based (Salmon et al., SC 2011): the key identifies the run and the purpose, the counter the event,
    so a stream is created in microseconds, needs no state, and is never shared by two events. The lowest word of the
    counter is used by the stream itself.
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
    """Return (num_slots, num_draws) float64, uniform in [0, 1): row i depends only on slot first_slot + i.

    An epoch is one stream in which each slot has its own range of the counter. So a batch is drawn in one call, and
    the numbers of a slot do not depend on the batches.
    """
    blocks = -(-num_draws // _DRAWS_PER_BLOCK)
    key = np.array([seed, purpose], dtype=np.uint64)
    counter = np.array([first_slot * blocks, 0, 0, epoch], dtype=np.uint64)
    draws = np.random.Generator(np.random.Philox(key=key, counter=counter)).random(
        (num_slots, blocks * _DRAWS_PER_BLOCK)
    )
    return draws[:, :num_draws]
