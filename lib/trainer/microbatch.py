"""How a batch is computed: by so many ranks, and by each of them in so many parts one after the other.

How many images a device can take at once, found by trying.
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch

from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.errors import UserError


@dataclass(frozen=True)
class MicroBatches:
    """A batch in parts.

    Attributes:
        slices: of this rank's images, one after the other.
        sizes: by part, how many images each rank has in it.
    """

    slices: tuple[slice, ...]
    sizes: tuple[tuple[int, ...], ...]

    @property
    def num_images(self) -> int:
        """Images of the batch, over all ranks."""
        return sum(map(sum, self.sizes))


def whole_batch(num_images: int) -> MicroBatches:
    """Return a batch that one process computes in one go."""
    return MicroBatches((slice(0, num_images),), ((num_images,),))


def split_batch(batch_size: int, group: ProcessGroup = SINGLE_PROCESS, at_once: int = 0) -> MicroBatches:
    """Return a batch of `batch_size` images in parts of at most `at_once` (0: any number) on each rank.

    Parts are as equal as can be, and every rank has as many of them. Pairs (image XOR 1) stay together in a batch of
    whole pairs. No part is a single image, which BatchNorm cannot train on: where a rank with two images more would
    need a part more than the others can make, its parts are larger than `at_once`.
    """
    each = [_share_of(rank, group, batch_size) for rank in range(group.world_size)]
    pairs = 1 if batch_size % 2 else 2
    most = max(each) // pairs  # pairs, or images
    number = -(-most // max(1, at_once // pairs)) if at_once else 1
    number = max(1, min(number, min(each) // 2))
    edges = [[pairs * (part * (size // pairs) // number) for part in range(number + 1)] for size in each]
    own = edges[group.rank]
    slices = tuple(slice(start, stop) for start, stop in pairwise(own))
    sizes = tuple(tuple(edge[part + 1] - edge[part] for edge in edges) for part in range(number))
    return MicroBatches(slices, sizes)


def _share_of(rank: int, group: ProcessGroup, batch_size: int) -> int:
    rows = ProcessGroup(rank, group.world_size).shard_pairs(batch_size)
    return rows.stop - rows.start


def largest_that_fits(tries: Callable[[int], bool], limit: int, multiple: int = 2) -> int:
    """Return the largest number of images that a device takes at once: `limit`, or a multiple of `multiple` below it.

    Doubled until too many, then halved in between: about 2 log2(limit) tries, none of them of more than twice what
    fits. What is returned was tried, and fitted.

    Args:
        tries: says whether a step of so many images fits; if one does, fewer do.
        limit: number of images of which more are never wanted, at least 1.

    Raises:
        UserError: not even the smallest step fits.
    """
    smallest = min(multiple, limit)
    fitting, too_many = 0, smallest
    while tries(too_many):
        fitting = too_many
        if fitting == limit:
            return limit
        too_many = min(2 * fitting, limit)
    if not fitting:
        raise UserError(
            f'TRAIN.DEVICE_BATCH_SIZE -1: not even {smallest} images fit into the memory of the device; '
            'a smaller INPUT.SIZE or MODEL.BACKBONE needs less, and LOSS.CHUNK_IMAGES where there are many classes'
        )
    low, high = fitting // multiple, -(-too_many // multiple)  # in multiples: low fits, high does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if tries(middle * multiple) else (low, middle)
    return low * multiple


def fits(step: Callable[[int], object]) -> Callable[[int], bool]:
    """Return what says whether `step` of so many images fits into the memory of the GPU, which is free afterwards.

    Whatever else `step` raises comes through.
    """

    def tries(num_images: int) -> bool:
        try:
            step(num_images)
        except torch.OutOfMemoryError:
            fitted = False
        else:
            fitted = True
        # Only here is the step over with all that it held: the error itself keeps its frames, and their tensors.
        gc.collect()
        torch.cuda.empty_cache()
        return fitted

    return tries
