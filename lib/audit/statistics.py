"""Figures of a split: how many images its classes have, how large its images are."""

from typing import Any

import numpy as np

from lib.audit.image_stats import FORMATS

_PERCENTILES = {'p5': 5, 'median': 50, 'p95': 95}


def class_statistics(labels: np.ndarray, num_classes: int, few: int) -> dict[str, Any]:
    """Return counts of a labelled split; {} without labels.

    Args:
        labels: (num_images,) class of each image; -1 where unknown.
        few: classes with fewer images, but not none, are listed.
    """
    known = labels[labels >= 0]
    if not len(known):
        return {}
    counts = np.bincount(known, minlength=num_classes)
    filled = counts[counts > 0]
    return {
        'num_classes': num_classes,
        'smallest': int(filled.min()),
        'median': float(np.median(filled)),
        'largest': int(filled.max()),
        'imbalance': float(filled.max() / filled.min()),
        'empty': np.flatnonzero(counts == 0).tolist(),
        'few': np.flatnonzero((counts > 0) & (counts < few)).tolist(),
        'counts': counts.tolist(),
    }


def size_statistics(seen: np.ndarray, enlarged_below: int) -> dict[str, Any]:
    """Return percentiles of width, height (pixels) and bytes, and formats; {} when there is no image.

    Args:
        seen: records of readable images, as in a Scan.
        enlarged_below: a shorter side below it is enlarged before the model sees it.
    """
    if not len(seen):
        return {}
    short = np.minimum(seen['width'], seen['height'])
    counts = np.bincount(seen['format'], minlength=len(FORMATS))
    return {
        **{
            name: {key: int(value) for key, value in zip(_PERCENTILES, _percentiles(seen[column]), strict=True)}
            for name, column in (('width', 'width'), ('height', 'height'), ('bytes', 'num_bytes'))
        },
        'formats': {name: int(count) for name, count in zip(FORMATS, counts, strict=True) if count},
        'enlarged_below': enlarged_below,
        'enlarged': int((short < enlarged_below).sum()),
    }


def _percentiles(values: np.ndarray) -> np.ndarray:
    return np.percentile(values, list(_PERCENTILES.values()), method='nearest')
