"""Are two small pictures one photo, but for its encoding, size, brightness, or a stamp on it?"""

import numpy as np

_BACKGROUND = 12.0  # grey levels around the commonest value that are background
_AGREEING = 0.8  # share of the content that must agree; the rest may be stamped over
_FEWEST_CELLS = 0.04  # share of the picture that must be content: an empty one tells nothing
_GAIN = (0.7, 1.4)  # of the contrast
_ROUNDS = 3


def differences(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return (n,) float32: how far the pictures of each pair differ, relative to their contrast; infinite where
    there is too little in them to tell.

    The second picture is taken as gain * first + offset, fitted by least squares on the agreeing 80 % of the content
    (found in three rounds); the result is the largest residual among those, over the standard deviation of the picture.
    Content is what differs from the background of either picture: two products before white share most of their cells.

    Args:
        first, second: (n, cells, channels) uint8, cells of the same places.
    """
    shape = (len(first), -1)
    content = _content(first) | _content(second)  # (n, cells)
    enough = content.mean(axis=1) >= _FEWEST_CELLS
    mask = np.repeat(content[:, :, None], first.shape[2], axis=2).reshape(shape)
    a, b = first.reshape(shape).astype(np.float32), second.reshape(shape).astype(np.float32)
    contrast = np.maximum(np.minimum(a.std(axis=1), b.std(axis=1)), 1.0)
    kept = mask
    for _ in range(_ROUNDS):
        residuals = _residuals(a, b, kept)
        residuals[~mask] = np.inf
        limit = _quantile_of_content(residuals, mask.sum(axis=1))
        kept = residuals <= limit[:, None]
    # Rounding to whole grey levels alone is no difference.
    return np.where(enough, np.maximum(limit - 1.0, 0.0) / contrast, np.inf).astype(np.float32)


def _content(pictures: np.ndarray) -> np.ndarray:
    """Return (n, cells) bool: cells in which some channel differs from the picture's median colour."""
    values = pictures.astype(np.float32)
    background = np.median(values, axis=1, keepdims=True)
    return (np.abs(values - background) > _BACKGROUND).any(axis=2)


def _residuals(a: np.ndarray, b: np.ndarray, kept: np.ndarray) -> np.ndarray:
    weights = kept.astype(np.float32)
    count = np.maximum(weights.sum(axis=1, keepdims=True), 1.0)
    mean_a, mean_b = ((weights * x).sum(axis=1, keepdims=True) / count for x in (a, b))
    variance = (weights * (a - mean_a) ** 2).sum(axis=1, keepdims=True)
    covariance = (weights * (a - mean_a) * (b - mean_b)).sum(axis=1, keepdims=True)
    gain = np.clip(covariance / np.maximum(variance, 1e-6), *_GAIN)
    return np.abs((b - mean_b) - gain * (a - mean_a))


def _quantile_of_content(residuals: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return (n,): the value that the agreeing share of the content does not exceed; other cells are infinite."""
    place = np.maximum(np.ceil(_AGREEING * counts).astype(int) - 1, 0)
    limit = np.sort(residuals, axis=1)[np.arange(len(residuals)), place]
    return np.where(np.isfinite(limit), limit, 0.0)
