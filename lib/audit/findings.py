"""What the likeness of images means for a data set: copies, leaks between splits, contradictory labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lib.audit.duplicates import Duplicates, members, spread

TRAIN = 0  # the number of the training split; those behind it measure
EXTREME_RATIO = 4.0  # longer side over shorter one
KEPT, UNREADABLE, CONTRADICTION, LEAK, NEAR_LEAK, COPY = range(6)


@dataclass(frozen=True)
class Group:
    """Images that are one picture.

    Attributes:
        rows: in rising order.
        leak: whether they are in more than one split.
        contradiction: whether they have more than one label.
    """

    rows: np.ndarray
    leak: bool
    contradiction: bool


def exact_groups(duplicates: Duplicates, splits: np.ndarray, labels: np.ndarray) -> list[Group]:
    """Return the sets of images with the same pixels, the gravest first.

    Args:
        splits, labels: (num_images,) split number and class; class -1 where unknown.
    """
    return _groups(duplicates.picture, splits, labels)


def near_groups(duplicates: Duplicates, splits: np.ndarray, labels: np.ndarray) -> list[Group]:
    """Return the sets of images that nearly have the same pixels; copies with exactly the same are among them."""
    in_pair = np.zeros(len(splits), bool)
    family = duplicates.family
    in_pair[family[duplicates.near[:, 0]]] = True
    # Families of exact copies alone are not near.
    return _groups(np.where(in_pair[family], family, np.arange(len(family))), splits, labels)


def suspicious(scan_seen: np.ndarray, readable: np.ndarray, one_colour: np.ndarray, min_side: int) -> dict:
    """Return {kind: rows} of readable images that are tiny, stretched or of one colour."""
    short = np.minimum(scan_seen['width'], scan_seen['height'])
    long = np.maximum(scan_seen['width'], scan_seen['height'])
    return {
        'tiny': np.flatnonzero(readable & (short < min_side)),
        'extreme_ratio': np.flatnonzero(readable & (long > EXTREME_RATIO * short)),
        'one_colour': one_colour,
    }


def quarantine(
    duplicates: Duplicates, splits: np.ndarray, labels: np.ndarray, readable: np.ndarray, names: Sequence
) -> np.ndarray:
    """Return (num_images,) uint8: KEPT, or why a training image should not be trained on; others are always KEPT.

    Unreadable; one picture under several training labels (nobody knows which is right: all copies); a picture that is
    in another split too, exactly or nearly (measured on what was learnt by heart); all but the first of exact copies.
    Near copies within the training set stay: they are views more often than mistakes. A copy listed under the very path
    of the one that is kept stays too, since a path names both.
    """
    train = splits == TRAIN
    picture = duplicates.picture
    num_images = len(picture)
    verdict = np.full(num_images, KEPT, np.uint8)
    trained = train & readable

    measured = np.zeros(num_images, bool)
    measured[picture[~train & readable]] = True
    near_measured = np.zeros(num_images, bool)
    for one, other in ((0, 1), (1, 0)):
        near_measured[duplicates.near[measured[duplicates.near[:, other]], one]] = True
    contradictory = spread(picture[trained], labels[trained].astype(np.int64), num_images)

    verdict[trained & near_measured[picture]] = NEAR_LEAK
    verdict[trained & measured[picture]] = LEAK
    verdict[trained & contradictory[picture]] = CONTRADICTION
    verdict[train & ~readable] = UNREADABLE

    left = np.flatnonzero(train & (verdict == KEPT))
    order = left[np.argsort(picture[left], kind='stable')]
    again = np.flatnonzero(np.diff(picture[order]) == 0) + 1
    first = np.maximum.accumulate(np.where(np.isin(np.arange(len(order)), again), 0, np.arange(len(order))))
    for place in again.tolist():
        if names[int(order[place])] != names[int(order[first[place]])]:
            verdict[order[place]] = COPY
    return verdict


def _groups(root: np.ndarray, splits: np.ndarray, labels: np.ndarray) -> list[Group]:
    known = labels >= 0
    mixed = spread(root[known], labels[known].astype(np.int64), len(root))
    leaking = spread(root, splits.astype(np.int64), len(root))
    found = [Group(rows, bool(leaking[root[rows[0]]]), bool(mixed[root[rows[0]]])) for rows in members(root)]
    return sorted(found, key=lambda group: (-group.leak - group.contradiction, -group.leak, int(group.rows[0])))
