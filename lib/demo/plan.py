"""What the demo set holds: how many images of each class, which labels are wrong."""

from dataclasses import dataclass

import numpy as np

from lib.demo.catalog import FAMILIES, PRODUCTS, VARIANTS_PER_FAMILY
from lib.runtime.seeding import Purpose, generator

SPLITS = ('train', 'val', 'test')
LARGEST, SMALLEST = 120, 3  # train images of the largest and of the smallest class
EVALUATION = 8  # valid and test images a class
NOISE = 0.04  # share of the train labels that are wrong
SIBLING_NOISE = 0.5  # share of the wrong labels that name a sibling

# Streams of Purpose.DEMO: the plan takes epoch 0; the photos of split s take epoch 1 + s, their row as slot.
_SIZES, _NOISE = 0, 1


@dataclass(frozen=True, slots=True)
class Photo:
    """One image to be drawn. `given` is its annotated label, `shown` the product that it really shows."""

    split: int
    row: int
    fpath: str  # under the set's root, with forward slashes
    given: int
    shown: int


def plan_photos(seed: int, scale: float = 1.0) -> list[Photo]:
    """List the set's photos, in the order of the annotations, a pure function of its arguments.

    Train counts fall exponentially from LARGEST to SMALLEST over the classes (Cui et al., CVPR 2019) and are
    those of the given labels, as in any annotated set. Each family has one class in every quarter of the
    sizes, so that head and tail siblings meet. The first two photos of every class are never wrong.

    Args:
        seed: any non-negative integer.
        scale: multiplies the counts; at least one image a class stays in every split.
    """
    counts = np.stack([_train_counts(seed, scale), *[np.full(len(PRODUCTS), max(1, round(EVALUATION * scale)))] * 2])
    photos = []
    for split, name in enumerate(SPLITS):
        given = np.repeat(np.arange(len(PRODUCTS)), counts[split])
        number = np.arange(len(given)) - np.repeat(np.cumsum(counts[split]) - counts[split], counts[split])
        shown = _with_noise(given, number, seed) if name == 'train' else given
        for row, (label, product, n) in enumerate(zip(given.tolist(), shown.tolist(), number.tolist(), strict=True)):
            fpath = f'images/{name}/{PRODUCTS[label].name}/{n:03d}.jpg'
            photos.append(Photo(split, row, fpath, label, product))
    return photos


def _train_counts(seed: int, scale: float) -> np.ndarray:
    """Train images of each class, int64 (num_classes,)."""
    num_classes = len(PRODUCTS)
    rng = generator(seed, Purpose.DEMO, slot=_SIZES)
    ranks = np.arange(num_classes).reshape(VARIANTS_PER_FAMILY, len(FAMILIES))  # a quarter of the sizes a line
    ranks = rng.permuted(rng.permuted(ranks, axis=1).T, axis=1).ravel()  # (num_classes,), family by family
    sizes = LARGEST * scale * (SMALLEST / LARGEST) ** (ranks / (num_classes - 1))
    # Adding a little keeps 2.9999999 from becoming 2.
    return np.maximum(1, np.floor(sizes + 1e-6)).astype(np.int64)


def _with_noise(given: np.ndarray, number: np.ndarray, seed: int) -> np.ndarray:
    """Choose the products really shown: NOISE of the rows show a sibling or another product."""
    rng = generator(seed, Purpose.DEMO, slot=_NOISE)
    rows = rng.permutation(np.flatnonzero(number >= 2))[: round(NOISE * len(given))]
    shown = given.copy()
    for row in rows.tolist():
        label = int(given[row])
        family = label // VARIANTS_PER_FAMILY
        if rng.random() < SIBLING_NOISE:
            member = (label + rng.integers(1, VARIANTS_PER_FAMILY)) % VARIANTS_PER_FAMILY
        else:
            family = (family + rng.integers(1, len(FAMILIES))) % len(FAMILIES)
            member = rng.integers(VARIANTS_PER_FAMILY)
        shown[row] = family * VARIANTS_PER_FAMILY + member
    return shown
