"""Predictions for the tests of metrics, with the probabilities behind them."""

import numpy as np
import torch

from lib.metrics.predictions import Predictions, predictions_from_logits


def problem(seed: int, num_images: int = 200, num_classes: int = 12) -> tuple[Predictions, np.ndarray, np.ndarray]:
    """Return predictions, probabilities of all classes and training counts.

    The last class has no image; some labels are unknown, some images unreadable.
    """
    random = np.random.default_rng(seed)
    labels = np.minimum(random.geometric(0.3, num_images) - 1, num_classes - 2)
    logits = random.normal(size=(num_images, num_classes)).astype(np.float32)
    logits[np.arange(num_images), labels] += 1.5
    labels[random.random(num_images) < 0.1] = -1
    readable = random.random(num_images) > 0.1
    logits = torch.from_numpy(logits)
    predictions = predictions_from_logits(logits, torch.from_numpy(labels), torch.from_numpy(readable))
    train_counts = random.choice([0, 5, 19, 20, 100, 101, 900], num_classes)
    return predictions, logits.double().softmax(dim=1).numpy(), train_counts


def predictions_of(labels, predicted, confidence: float = 0.8, loss: float = 0.5) -> Predictions:
    """Return predictions of one class per image, with equal confidences and losses."""
    labels, predicted = np.asarray(labels, np.int64), np.asarray(predicted, np.int64)
    probabilities = np.where(predicted >= 0, confidence, 0).astype(np.float32)
    losses = np.where((labels >= 0) & (predicted >= 0), loss, np.nan).astype(np.float32)
    return Predictions(labels, predicted[:, None], probabilities[:, None], losses)
