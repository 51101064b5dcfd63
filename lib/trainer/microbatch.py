"""Micro-batches: how the ranks split a batch and compute it in steps, and the largest size that fits a device."""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch

from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup


@dataclass(frozen=True)
class MicroBatches:
    """The micro-batches of a batch.

    Attributes:
        slices: slices of this rank's images, one after the other.
        sizes: for each micro-batch, the number of images of each rank.
    """

    slices: tuple[slice, ...]
    sizes: tuple[tuple[int, ...], ...]

    @property
    def num_images(self) -> int:
        """Number of images of the batch, over all ranks."""
        return sum(map(sum, self.sizes))


def whole_batch(num_images: int) -> MicroBatches:
    """Return a single micro-batch, for one process."""
    return MicroBatches((slice(0, num_images),), ((num_images,),))


def split_batch(batch_size: int, group: ProcessGroup = SINGLE_PROCESS, max_images: int = 0) -> MicroBatches:
    """Split a batch of `batch_size` images into micro-batches of at most `max_images` (0: any) on each rank.

    Sizes are as equal as possible, and every rank has the same number of micro-batches. Pairs (image XOR 1) stay
    together if the batch size is even. No micro-batch is a single image, which BatchNorm cannot train on: where a rank
    with two more images would need one micro-batch more than the others can have, its micro-batches exceed
    `max_images`.
    """
    per_rank = [_rank_images(rank, group, batch_size) for rank in range(group.world_size)]
    unit = 1 if batch_size % 2 else 2  # images that stay together
    largest = max(per_rank) // unit
    number = -(-largest // max(1, max_images // unit)) if max_images else 1
    number = max(1, min(number, min(per_rank) // 2))
    edges = [[unit * (index * (size // unit) // number) for index in range(number + 1)] for size in per_rank]
    slices = tuple(slice(start, stop) for start, stop in pairwise(edges[group.rank]))
    sizes = tuple(tuple(edge[index + 1] - edge[index] for edge in edges) for index in range(number))
    return MicroBatches(slices, sizes)


def _rank_images(rank: int, group: ProcessGroup, batch_size: int) -> int:
    rows = ProcessGroup(rank, group.world_size).shard_pairs(batch_size)
    return rows.stop - rows.start


def largest_that_fits(tries: Callable[[int], bool], limit: int, multiple: int = 2) -> int:
    """Return the largest number of images that fits a device: `limit`, or a multiple of `multiple` below it; 0: none.

    Doubles until the step does not fit, then bisects: about 2 log2(limit) trials, none of more than twice the result.
    The result itself was tried.

    Args:
        tries: number of images -> whether a step of them fits; if it does, fewer images fit too.
        limit: largest useful number, at least 1.
    """
    fitting, too_many = 0, min(multiple, limit)
    while tries(too_many):
        fitting = too_many
        if fitting == limit:
            return limit
        too_many = min(2 * fitting, limit)
    if not fitting:
        return 0
    low, high = fitting // multiple, -(-too_many // multiple)  # in multiples: low fits, high does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if tries(middle * multiple) else (low, middle)
    return low * multiple


def fits(step: Callable[[int], object]) -> Callable[[int], bool]:
    """Return a function that reports whether `step` of a number of images fits the GPU's memory, and frees it.

    Other errors of `step` pass through.
    """

    def tries(num_images: int) -> bool:
        try:
            step(num_images)
        except torch.OutOfMemoryError:
            fitted = False
        else:
            fitted = True
        # Only outside of the except block are the error, its frames and their tensors gone.
        gc.collect()
        torch.cuda.empty_cache()
        return fitted

    return tries
