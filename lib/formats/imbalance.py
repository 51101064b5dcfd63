"""A long-tailed subset of a set that is not, or not enough."""

from dataclasses import replace

import numpy as np

from lib.errors import UserError
from lib.formats.cifar import class_sizes
from lib.formats.converted import Converted, Split
from lib.runtime.seeding import Purpose, generator


def with_imbalance(converted: Converted, *, ratio: float, seed: int) -> Converted:
    """Return the set with a long-tailed part of its training images; the other splits stay as they are.

    Classes are ranked by their number of training images, the largest first, equal ones by category id. Of the class
    at rank r of C, min(what it has, max(1, floor(n_max ratio^(-r / (C - 1))))) images stay, the sizes of CIFAR-LT (Cui
    et al., CVPR 2019) with n_max the largest class, drawn by (seed, category id). Classes without training images
    have no rank. Images stay in their order.

    So the largest class stays whole, no class is lost, and sizes fall with the rank. Largest over smallest (of two or
    more classes) is exactly n_max / min(n_min, max(1, floor(n_max / ratio))), n_min being what the smallest class
    has: `ratio` itself where n_max / ratio is a whole number that n_min reaches, else more; at most n_max.

    Raises:
        UserError: no training split with labels.
    """
    train = converted.splits.get('train')
    if train is None or train.labels is None:
        raise UserError('--imbalance thins out the training images, but SOURCE has none with labels')
    counts = np.bincount(train.labels, minlength=len(converted.names))
    ranked = np.argsort(-counts, kind='stable')[: np.count_nonzero(counts)]
    wanted = np.zeros(len(counts), np.int64)
    wanted[ranked] = class_sizes(int(counts.max(initial=0)), len(ranked), 'exp', ratio)
    by_class = np.argsort(train.labels, kind='stable')
    starts = np.searchsorted(train.labels[by_class], np.arange(len(counts)))
    kept = np.zeros(len(train), bool)
    for label in np.flatnonzero(counts):
        drawn = generator(seed, Purpose.IMBALANCE, slot=int(label)).permutation(counts[label])[: wanted[label]]
        kept[by_class[starts[label] + drawn]] = True
    rows = np.flatnonzero(kept)
    part = Split([train.paths[row] for row in rows], train.labels[rows])
    return replace(converted, splits={**converted.splits, 'train': part})
