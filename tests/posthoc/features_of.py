"""Kept features and classifiers, drawn: what tests of post-hoc methods share."""

import numpy as np
import torch

from lib.inference.features import Features
from lib.posthoc.linear_head import LinearHead


def drawn(seed: int, num_images: int = 400, num_classes: int = 6, width: int = 8, noise: float = 1.0):
    """Return features about class centres, and the classifier that the centres make."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(num_classes, width))
    labels = rng.integers(0, num_classes, num_images)
    values = (centres[labels] + noise * rng.normal(size=(num_images, width))).astype(np.float32)
    weight = torch.tensor(centres / noise**2, dtype=torch.float32)
    bias = -(weight.double() ** 2).sum(dim=1).float() * noise**2 / 2  # Bayes: these logits are the log-posteriors
    return features(values, labels), LinearHead(weight, bias)


def features(values: np.ndarray, labels: np.ndarray, readable: np.ndarray | None = None) -> Features:
    """Return features (n, d) with labels (n,), all of them readable unless told."""
    readable = np.ones(len(labels), bool) if readable is None else readable
    return Features(values.astype(np.float32), labels.astype(np.int64), readable, [])
