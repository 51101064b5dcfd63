"""Mixing as the papers write it: one image and one pixel at a time, float64."""

from fractions import Fraction

import numpy as np


def partner(place: int, size: int) -> int:
    """The neighbour that image `place` of a batch is mixed with; itself where there is none."""
    other = place + 1 if place % 2 == 0 else place - 1
    return other if other < size else place


def mixup(images: np.ndarray, shares: list[float]) -> np.ndarray:
    """l x_i + (1 - l) x_j (mixup, eq. 2)."""
    images = images.astype(np.float64)
    mixed = [share * images[i] + (1 - share) * images[partner(i, len(images))] for i, share in enumerate(shares)]
    return np.stack(mixed)


def remix_share(own_count: int, other_count: int, share: float, kappa: Fraction, tau: float) -> float:
    """l_y of Remix, eq. 8, with the ratio of counts as an exact fraction."""
    ratio = Fraction(own_count, other_count)
    if ratio >= kappa and share < tau:
        return 0.0
    if ratio <= 1 / kappa and 1 - share < tau:
        return 1.0
    return share


def box_pixels(share: float, centre: tuple[float, float], height: int, width: int) -> set[tuple[int, int]]:
    """The pixels of CutMix's box (eq. 2): sides by sqrt(1 - l) in whole pixels around the pixel of the centre."""
    sides = [int(length * (1 - share) ** 0.5 + 0.5) for length in (height, width)]
    starts = [int(at * length) - side // 2 for at, length, side in zip(centre, (height, width), sides, strict=True)]
    return {
        (y, x)
        for y in range(height)
        for x in range(width)
        if starts[0] <= y < starts[0] + sides[0] and starts[1] <= x < starts[1] + sides[1]
    }
