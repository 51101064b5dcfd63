"""Which images of a class are kept for validation."""

import zlib

import numpy as np

from lib.runtime.seeding import Purpose, generator


def held_out(num_images: int, name: str, fraction: float, seed: int) -> np.ndarray:
    """Return the places, ascending, of the images of class `name` that go to validation.

    They are round(fraction * num_images), at least one and not all; a class of one image gives none. A class is
    drawn by (seed, its name) alone, so a new image changes the split of no other class.
    """
    if num_images < 2 or fraction <= 0:
        return np.zeros(0, np.int64)
    number = min(num_images - 1, max(1, round(fraction * num_images)))
    slot = zlib.crc32(name.encode('utf-8', 'surrogateescape'))
    return np.sort(generator(seed, Purpose.SPLIT, slot=slot).permutation(num_images)[:number])


def chosen_few(num_images: int, name: str, number: int, seed: int) -> np.ndarray:
    """Return the places, ascending, of at most `number` images of class `name`, drawn by (seed, its name) alone."""
    slot = zlib.crc32(name.encode('utf-8', 'surrogateescape'))
    return np.sort(generator(seed, Purpose.SPLIT, slot=slot).permutation(num_images)[:number])
