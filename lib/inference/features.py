"""Features of a split, computed once and stored on disk: classifiers on top of them take seconds."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from lib.inference.engine import Engine
from lib.metrics.predictions import Predictions, join_predictions, predictions_from_logits

_MAX_LOGITS = 2**24  # computed at once: 64 MB


@dataclass(frozen=True)
class Features:
    """The features that a backbone computes of a split: one row per image, in input order.

    Attributes:
        values: (n, num_features) float32, usually memory-mapped; zeros where the image could not be decoded.
        labels: (n,) int64; -1 where unknown.
        readable: (n,) bool.
        bad: (row, reason) of the images that could not be decoded.
    """

    values: np.ndarray
    labels: np.ndarray
    readable: np.ndarray
    bad: list[tuple[int, str]]

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, rows: np.ndarray) -> 'Features':
        """Return the given rows, in memory and renumbered from 0."""
        positions = {int(row): position for position, row in enumerate(rows)}
        bad = [(positions[row], reason) for row, reason in self.bad if row in positions]
        return Features(np.asarray(self.values[rows]), self.labels[rows], self.readable[rows], bad)

    def batches(
        self, size: int, device: torch.device, part: slice = slice(None)
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Yield values (batch, num_features), labels and readable flags (batch,) each, in order, on the device.

        Args:
            size: images per batch.
            part: consecutive rows; all by default.
        """
        first, stop, _ = part.indices(len(self))
        for start in range(first, stop, size):
            rows = slice(start, min(start + size, stop))
            values = torch.from_numpy(np.array(self.values[rows]))  # copied: torch wants writable memory
            labels, readable = torch.from_numpy(self.labels[rows]), torch.from_numpy(np.asarray(self.readable[rows]))
            yield values.to(device), labels.to(device), readable.to(device)


def logit_batch_size(num_classes: int, num_images: int = 2**31) -> int:
    """Return how many images to classify at once, so that the memory of their logits is bounded."""
    return max(1, min(num_images, 512, _MAX_LOGITS // num_classes))


def classify_features(engine: Engine, features: Features) -> Predictions:
    """Predict images from their features, without storing logits."""
    size = logit_batch_size(engine.num_classes)
    with engine.inference():
        return join_predictions(
            [
                predictions_from_logits(engine.logits(values), labels, readable)
                for values, labels, readable in features.batches(size, engine.device)
            ]
        )
