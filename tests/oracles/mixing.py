"""Mixing methods in loops over images and pixels, float64, written from the papers."""

from fractions import Fraction

import numpy as np


def partner(index: int, size: int) -> int:
    """Return the index of the neighbor that image `index` of a batch is mixed with; itself if there is none."""
    other = index + 1 if index % 2 == 0 else index - 1
    return other if other < size else index


def mixup(images: np.ndarray, lam: list[float]) -> np.ndarray:
    """Return lam_i x_i + (1 - lam_i) x_j (mixup, eq. 2)."""
    images = images.astype(np.float64)
    mixed = [weight * images[i] + (1 - weight) * images[partner(i, len(images))] for i, weight in enumerate(lam)]
    return np.stack(mixed)


def remix_lam(count: int, partner_count: int, lam: float, kappa: Fraction, tau: float) -> float:
    """Return lam_y of Remix, eq. 8, with the ratio of counts as an exact fraction."""
    ratio = Fraction(count, partner_count)
    if ratio >= kappa and lam < tau:
        return 0.0
    if ratio <= 1 / kappa and 1 - lam < tau:
        return 1.0
    return lam


def box_pixels(lam: float, center: tuple[float, float], height: int, width: int) -> set[tuple[int, int]]:
    """Return the pixels (y, x) of the CutMix box (eq. 2): sides by sqrt(1 - lam), rounded, around the center pixel."""
    sides = [int(length * (1 - lam) ** 0.5 + 0.5) for length in (height, width)]
    starts = [
        int(position * length) - side // 2
        for position, length, side in zip(center, (height, width), sides, strict=True)
    ]
    return {
        (y, x)
        for y in range(height)
        for x in range(width)
        if starts[0] <= y < starts[0] + sides[0] and starts[1] <= x < starts[1] + sides[1]
    }
