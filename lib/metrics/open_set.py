"""Open-set recognition: how well a score separates images of known classes from those of unknown ones.

A score is higher for images of known classes. All metrics count images, as in the literature.
"""

import math

import numpy as np


def open_set_metrics(known: np.ndarray, correct: np.ndarray, unknown: np.ndarray) -> dict[str, float]:
    """Compute AUROC, FPR95 and OSCR of a score.

    Args:
        known: (n,) scores of images of known classes; n > 0.
        correct: (n,) bool, whether the predicted class is right.
        unknown: (m,) scores of images of unknown classes; m > 0.

    Returns:
        auroc: probability that a known image has a higher score than an unknown one; ties count half.
        fpr95: fraction of the unknown images that a threshold accepts which accepts at least 95 % of the known ones.
        oscr: area under the curve of correct predictions that are accepted, as a fraction of the known images, over
            accepted unknown images (Dhamija, Günther & Boult, NeurIPS 2018). It is at most the accuracy and the AUROC.
        accuracy: accuracy of all known images, which the OSCR would be if the score separated all images.

    Raises:
        ValueError: no known or no unknown image.
    """
    if not len(known) or not len(unknown):
        raise ValueError('open-set metrics need at least one known and one unknown image')
    above = _fraction_below(known, unknown)  # (n,): of the unknown images, those with a lower score
    accepted = np.sort(known)[::-1][math.ceil(0.95 * len(known)) - 1]
    return {
        'auroc': float(above.mean()),
        'fpr95': float((unknown >= accepted).mean()),
        # The curve is a step function over the unknown scores, so the area under it is a mean over pairs of images.
        'oscr': float(np.where(correct, above, 0.0).mean()),
        'accuracy': float(correct.mean()),
    }


def _fraction_below(scores: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the fraction of `others` below each score, (n,) float64; equal ones count half."""
    ordered = np.sort(others)
    low, high = (np.searchsorted(ordered, scores, side=side) for side in ('left', 'right'))
    return (low + high) / (2 * len(others))
