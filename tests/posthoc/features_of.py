"""Random features and classifiers for the tests of post-hoc methods."""

import numpy as np
import torch

from lib.dataset.features import Features
from lib.posthoc.linear_head import LinearHead


def drawn(seed: int, num_images: int = 400, num_classes: int = 6, width: int = 8, noise: float = 1.0):
    """Return features around class centers, and the Bayes classifier of these centers."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(num_classes, width))
    labels = rng.integers(0, num_classes, num_images)
    values = (centers[labels] + noise * rng.normal(size=(num_images, width))).astype(np.float32)
    weight = torch.tensor(centers / noise**2, dtype=torch.float32)
    bias = -(weight.double() ** 2).sum(dim=1).float() * noise**2 / 2  # Bayes: these logits are the log-posteriors
    return features(values, labels), LinearHead(weight, bias)


def features(values: np.ndarray, labels: np.ndarray, readable: np.ndarray | None = None) -> Features:
    """Return features (n, d) with labels (n,), all readable by default."""
    readable = np.ones(len(labels), bool) if readable is None else readable
    return Features(values.astype(np.float32), labels.astype(np.int64), readable, [])
