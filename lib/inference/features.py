"""The features of a split, looked at once and kept on the disk: what follows from them takes seconds."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from lib.dataset.loader import EvalLoader
from lib.metrics.predictions import Predictions, join_predictions, predictions_from_logits
from lib.model import Recognizer
from lib.runtime.column_store import ColumnStore
from lib.runtime.log import progress_bar

_LOGITS_AT_ONCE = 2**24  # 64 MB


@dataclass(frozen=True)
class Features:
    """What a backbone makes of the images of a split, a row an image, in input order.

    Attributes:
        values: (n, num_features) float32, mostly memory-mapped; zeros where the image could not be decoded.
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
        """Return those of some rows, in memory, numbered anew."""
        places = {int(row): place for place, row in enumerate(rows)}
        bad = [(places[row], reason) for row, reason in self.bad if row in places]
        return Features(np.asarray(self.values[rows]), self.labels[rows], self.readable[rows], bad)

    def batches(
        self, size: int, device: torch.device, part: slice = slice(None)
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Yield (batch, num_features) values, (batch,) labels and readable, in order, on the device.

        `part`: the rows that are wanted, without gaps.
        """
        first, stop, _ = part.indices(len(self))
        for start in range(first, stop, size):
            rows = slice(start, min(start + size, stop))
            parts = (np.array(self.values[rows]), self.labels[rows], self.readable[rows])
            yield tuple(torch.from_numpy(np.asarray(part)).to(device) for part in parts)


@torch.inference_mode()
def fill_features(model: Recognizer, loader: EvalLoader, store: ColumnStore, *, label: str) -> None:
    """Look at the images of this rank that a store with columns `features` and `readable` has not, and fill it.

    Batches are those of an uninterrupted pass, so that its numbers are too.
    """
    was_training = model.training
    model.eval()
    parts = [rows for rows in loader.batch_slices() if not store.done[rows].all()]
    done = len(loader) - len(parts)
    for batch in progress_bar(loader.batches(parts), total=len(loader), label=label, start=done):
        features = model.features(batch.images).where(batch.readable[:, None], 0.0)
        rows = slice(int(batch.rows[0]), int(batch.rows[-1]) + 1)
        values = {'features': features.cpu().numpy(), 'readable': batch.readable.cpu().numpy()}
        store.write(rows, values, batch.bad)
    store.flush()
    model.train(was_training)


def logit_batch_size(num_classes: int, num_images: int = 2**31) -> int:
    """Return how many images' logits are made at once, so that their memory is bounded."""
    return max(1, min(num_images, 512, _LOGITS_AT_ONCE // num_classes))


@torch.inference_mode()
def classify_features(model: Recognizer, features: Features) -> Predictions:
    """Return what a model's classifier answers to features, without keeping logits."""
    was_training = model.training
    model.eval()
    device, size = next(model.parameters()).device, logit_batch_size(model.classifier.num_classes)
    parts = [
        predictions_from_logits(model.classify(values), labels, readable)
        for values, labels, readable in features.batches(size, device)
    ]
    model.train(was_training)
    return join_predictions(parts)
