"""Answers for the tests of metrics, with the logits behind them."""

import numpy as np
import torch

from lib.metrics.predictions import predictions_from_logits


def problem(seed, num_images=200, num_classes=12):
    """Return answers, probabilities and training counts: the last class has no image, some labels and images are
    unknown.
    """
    random = np.random.default_rng(seed)
    labels = np.minimum(random.geometric(0.3, num_images) - 1, num_classes - 2)
    logits = random.normal(size=(num_images, num_classes)).astype(np.float32)
    logits[np.arange(num_images), labels] += 1.5
    labels[random.random(num_images) < 0.1] = -1
    readable = random.random(num_images) > 0.1
    logits = torch.from_numpy(logits)
    answers = predictions_from_logits(logits, torch.from_numpy(labels), torch.from_numpy(readable))
    train_counts = random.choice([0, 5, 19, 20, 100, 101, 900], num_classes)
    return answers, logits.double().softmax(dim=1).numpy(), train_counts
