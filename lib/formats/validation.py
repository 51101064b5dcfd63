"""A validation split for sources that come without one."""

from dataclasses import replace

import numpy as np

from lib.dataset.hold_out import held_out
from lib.errors import UserError
from lib.formats.converted import Converted, Split


def with_validation(converted: Converted, *, fraction: float, seed: int) -> Converted:
    """Return the set with `fraction` of each class's training images as its validation split.

    Stratified and seeded as a folder of class folders is; a class of one image stays in training.

    Raises:
        UserError: there is a validation split already, no training split, or no class has two images.
    """
    if 'val' in converted.splits:
        raise UserError('--valid_fraction would split the training images, but SOURCE has a validation split')
    if 'train' not in converted.splits:
        raise UserError('--valid_fraction splits the training images, but SOURCE has none')
    train = converted.splits['train']
    by_class = np.argsort(train.labels, kind='stable')
    starts = np.searchsorted(train.labels[by_class], np.arange(len(converted.names) + 1))
    is_valid = np.zeros(len(train), bool)
    for name, start, end in zip(converted.names, starts, starts[1:], strict=False):
        is_valid[by_class[start + held_out(int(end - start), name, fraction, seed)]] = True
    if not is_valid.any():
        raise UserError(f'--valid_fraction {fraction:g} keeps no image: every class has one image only')
    kept = {'train': _part(train, ~is_valid), 'val': _part(train, is_valid)}
    return replace(converted, splits={**converted.splits, **kept})


def _part(split: Split, chosen: np.ndarray) -> Split:
    return Split([split.paths[row] for row in np.flatnonzero(chosen)], split.labels[chosen])
