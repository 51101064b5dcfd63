"""How far a model's confidence can be believed: expected calibration error and the bins behind it."""

from typing import Any

import numpy as np

NUM_BINS = 15


def reliability(confidence: np.ndarray, right: np.ndarray, num_bins: int = NUM_BINS) -> dict[str, Any]:
    """Return the expected calibration error (Guo et al., ICML 2017) over bins of equal width, and the bins.

        ECE = sum over bins of |B| / n * |accuracy(B) - confidence(B)|,   B = images with confidence in (low, high]

    Args:
        confidence: (n,) probabilities of the predicted classes; n > 0.
        right: (n,) bool.

    Returns:
        ece, accuracy, confidence (means over all images) and bins: low, high, images, confidence, accuracy of each
        bin that has an image. Fractions.
    """
    confidence = confidence.astype(np.float64)
    # A bin's upper end belongs to it; a confidence of 0 goes to the first.
    places = np.clip(np.ceil(confidence * num_bins).astype(np.int64) - 1, 0, num_bins - 1)
    images = np.bincount(places, minlength=num_bins)
    sums = np.bincount(places, confidence, num_bins)
    hits = np.bincount(places, right, num_bins)
    bins = [
        {
            'low': place / num_bins,
            'high': (place + 1) / num_bins,
            'images': int(images[place]),
            'confidence': float(sums[place] / images[place]),
            'accuracy': float(hits[place] / images[place]),
        }
        for place in np.flatnonzero(images).tolist()
    ]
    return {
        'ece': float(np.abs(hits - sums).sum() / len(confidence)),
        'accuracy': float(hits.sum() / len(confidence)),
        'confidence': float(sums.sum() / len(confidence)),
        'bins': bins,
    }
