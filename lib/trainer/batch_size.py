"""How many images a device can take at once, found by trying."""

import gc
from collections.abc import Callable

import torch

from lib.errors import UserError


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
