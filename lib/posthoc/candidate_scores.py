"""Features of images, and what a classifier says of them: enough to weigh new classes against the old ones."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from lib.model import Recognizer

_BATCH = 512  # features that are classified at a time
_SCORES = 1 << 22  # numbers of a kind that are held at a time


@dataclass(frozen=True)
class ScoredFeatures:
    """Features of images and what the old classes say of them.

    Attributes:
        source: (m, d) float32, maybe memory-mapped.
        rows: (n,) which of them these are.
        labels: (n,) int64: of old images the old class, of new ones the new class, counted from 0.
        best: (n,) float64 largest logit of the old classes.
        right: (n,) bool: it is that of the label; of new images False.
    """

    source: np.ndarray
    rows: np.ndarray
    labels: np.ndarray
    best: np.ndarray
    right: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, rows: np.ndarray) -> 'ScoredFeatures':
        """Return some of them; features are not copied."""
        return ScoredFeatures(self.source, self.rows[rows], self.labels[rows], self.best[rows], self.right[rows])

    def features(self, part: slice = slice(None)) -> np.ndarray:
        """Return features of consecutive images, (k, d) float64."""
        return self.source[self.rows[part]].astype(np.float64)

    def parts(self, num_scores: int = 1) -> Iterator[slice]:
        """Yield consecutive parts of the images, small enough for their features and `num_scores` scores of each."""
        step = max(1, _SCORES // max(num_scores, self.source.shape[1]))
        for start in range(0, len(self), step):
            yield slice(start, start + step)

    def shares(self) -> np.ndarray:
        """Return (n,) what each image counts of an accuracy that is averaged over classes; they add up to 1."""
        _, of, counts = np.unique(self.labels, return_inverse=True, return_counts=True)
        return 1.0 / (counts[of] * max(1, len(counts)))


@torch.inference_mode()
def score_features(model: Recognizer, features: np.ndarray, labels: np.ndarray, *, new: bool = False) -> ScoredFeatures:
    """Return what the classifier of `model` says of features (n, d), a batch at a time."""
    best, right = np.empty(len(features)), np.zeros(len(features), bool)
    device = next(model.parameters()).device
    for start in range(0, len(features), _BATCH):
        part = slice(start, start + _BATCH)
        found = model.classify(torch.from_numpy(np.array(features[part])).to(device)).max(dim=1)
        best[part] = found.values.cpu().numpy()
        right[part] = (found.indices.cpu().numpy() == labels[part]) & (not new)
    return ScoredFeatures(features, np.arange(len(labels)), labels.astype(np.int64), best, right)


def mean_class_accuracy(labels: np.ndarray, right: np.ndarray) -> float:
    """Return the accuracy averaged over the classes among `labels`."""
    totals = np.bincount(labels)
    hits = np.bincount(labels, weights=right, minlength=len(totals))
    return float((hits[totals > 0] / totals[totals > 0]).mean())


def unit_length(vectors: np.ndarray) -> np.ndarray:
    """Return the vectors (..., d) scaled to length 1; zero vectors stay zero."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
