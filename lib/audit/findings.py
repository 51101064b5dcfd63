"""Findings about a data set: copies, leaks between splits, contradictory labels, suspicious images, quarantine."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lib.audit.duplicates import Duplicates, component_rows, has_mixed_values

TRAIN = 0  # index of the training split; the others are for evaluation
EXTREME_RATIO = 4.0  # longer side / shorter side
SINGLE_COLOR = 'one_colour'  # the spelling in doctor.json
KEEP, UNREADABLE, CONTRADICTION, LEAK, NEAR_LEAK, COPY = range(6)


@dataclass(frozen=True)
class DuplicateGroup:
    """Images that are duplicates of each other.

    Attributes:
        rows: ascending.
        leak: True if they are in more than one split.
        contradiction: True if they have more than one label.
    """

    rows: np.ndarray
    leak: bool
    contradiction: bool


def exact_groups(duplicates: Duplicates, splits: np.ndarray, labels: np.ndarray) -> list[DuplicateGroup]:
    """Return the groups of images with the same pixels, the most severe first.

    Args:
        splits, labels: (num_images,) split index and class; class -1 if unknown.
    """
    return _groups(duplicates.first_copy, splits, labels)


def near_groups(duplicates: Duplicates, splits: np.ndarray, labels: np.ndarray) -> list[DuplicateGroup]:
    """Return the groups of images with nearly the same pixels, which include exact copies of these images."""
    in_pair = np.zeros(len(splits), bool)
    component = duplicates.near_component
    in_pair[component[duplicates.near[:, 0]]] = True
    # Components of exact copies alone are left out.
    return _groups(np.where(in_pair[component], component, np.arange(len(component))), splits, labels)


def suspicious(
    stats: np.ndarray, readable: np.ndarray, single_color: np.ndarray, min_side: int
) -> dict[str, np.ndarray]:
    """Return {kind: rows} of readable images that are tiny, of an extreme aspect ratio, or of a single color."""
    short = np.minimum(stats['width'], stats['height'])
    long = np.maximum(stats['width'], stats['height'])
    return {
        'tiny': np.flatnonzero(readable & (short < min_side)),
        'extreme_ratio': np.flatnonzero(readable & (long > EXTREME_RATIO * short)),
        SINGLE_COLOR: single_color,
    }


def quarantine_verdicts(
    duplicates: Duplicates, splits: np.ndarray, labels: np.ndarray, readable: np.ndarray, names: Sequence
) -> np.ndarray:
    """Return (num_images,) uint8: KEEP, or the reason to exclude a training image; KEEP for other splits.

    Excluded are unreadable images; all copies of an image with several training labels (which one is right is unknown);
    images that are also in another split, exactly or nearly (the model would be evaluated on images it was trained on);
    all but the first of exact copies. Near duplicates within the training set are kept: they are more often views than
    mistakes. A copy with the path of the one that is kept is kept as well, since the path names both.
    """
    train = splits == TRAIN
    first_copy = duplicates.first_copy
    num_images = len(first_copy)
    verdict = np.full(num_images, KEEP, np.uint8)
    trained = train & readable

    evaluated = np.zeros(num_images, bool)
    evaluated[first_copy[~train & readable]] = True
    near_evaluated = np.zeros(num_images, bool)
    for one, other in ((0, 1), (1, 0)):
        near_evaluated[duplicates.near[evaluated[duplicates.near[:, other]], one]] = True
    contradictory = has_mixed_values(first_copy[trained], labels[trained].astype(np.int64), num_images)

    verdict[trained & near_evaluated[first_copy]] = NEAR_LEAK
    verdict[trained & evaluated[first_copy]] = LEAK
    verdict[trained & contradictory[first_copy]] = CONTRADICTION
    verdict[train & ~readable] = UNREADABLE

    rest = np.flatnonzero(train & (verdict == KEEP))
    order = rest[np.argsort(first_copy[rest], kind='stable')]
    again = np.flatnonzero(np.diff(first_copy[order]) == 0) + 1
    first = np.maximum.accumulate(np.where(np.isin(np.arange(len(order)), again), 0, np.arange(len(order))))
    for position in again.tolist():
        if names[int(order[position])] != names[int(order[first[position]])]:
            verdict[order[position]] = COPY
    return verdict


def _groups(root: np.ndarray, splits: np.ndarray, labels: np.ndarray) -> list[DuplicateGroup]:
    labeled = labels >= 0
    mixed = has_mixed_values(root[labeled], labels[labeled].astype(np.int64), len(root))
    leaking = has_mixed_values(root, splits.astype(np.int64), len(root))
    groups = [
        DuplicateGroup(rows, bool(leaking[root[rows[0]]]), bool(mixed[root[rows[0]]])) for rows in component_rows(root)
    ]
    return sorted(groups, key=lambda group: (-group.leak - group.contradiction, -group.leak, int(group.rows[0])))
