"""Features of images with the scores of old classes, and the scores of candidate rows for new classes."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from lib.inference.engine import Engine
from lib.inference.neighbors import unit_length

_BATCH = 512  # features that are classified at a time
_MAX_SCORES = 1 << 22  # numbers of a kind in memory at a time
_TINY = 1e-12


@dataclass(frozen=True)
class ScoredFeatures:
    """Features of images with the largest logit of the old classes.

    Attributes:
        source: (m, d) float32, maybe memory-mapped.
        rows: (n,) the rows of `source` that these images are.
        labels: (n,) int64: the old class of an old image; the new class, counted from 0, of a new one.
        best: (n,) float64 largest logit of the old classes.
        correct: (n,) bool: it is that of the label; False for new images.
    """

    source: np.ndarray
    rows: np.ndarray
    labels: np.ndarray
    best: np.ndarray
    correct: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, rows: np.ndarray) -> 'ScoredFeatures':
        """Return some of the images; features are not copied."""
        return ScoredFeatures(self.source, self.rows[rows], self.labels[rows], self.best[rows], self.correct[rows])

    def features(self, part: slice = slice(None)) -> np.ndarray:
        """Return features of consecutive images, (k, d) float64."""
        return self.source[self.rows[part]].astype(np.float64)

    def chunks(self, num_scores: int = 1) -> Iterator[slice]:
        """Yield consecutive parts of the images, small enough for their features and `num_scores` scores of each."""
        step = max(1, _MAX_SCORES // max(num_scores, self.source.shape[1]))
        for start in range(0, len(self), step):
            yield slice(start, start + step)

    def class_weights(self) -> np.ndarray:
        """Return the weight of each image in an accuracy averaged over classes, (n,); they sum to 1."""
        _, class_index, counts = np.unique(self.labels, return_inverse=True, return_counts=True)
        return 1.0 / (counts[class_index] * max(1, len(counts)))


def score_features(
    engine: Engine,
    features: np.ndarray,
    labels: np.ndarray,
    *,
    are_new: bool = False,
    without: np.ndarray | None = None,
) -> ScoredFeatures:
    """Classify features (n, d) by the old classes, a batch at a time.

    Args:
        labels: (n,) integers; old classes, or new ones where `are_new`.
        without: old classes that do not count, since their rows will change; None: all count.
    """
    left_out = None if without is None else torch.from_numpy(without).to(engine.device)
    best, correct = np.empty(len(features)), np.zeros(len(features), bool)
    with engine.inference():
        for start in range(0, len(features), _BATCH):
            part = slice(start, start + _BATCH)
            logits = engine.logits(torch.from_numpy(np.array(features[part])).to(engine.device))
            top = (logits if left_out is None else logits.index_fill(1, left_out, -torch.inf)).max(dim=1)
            best[part] = top.values.cpu().numpy()
            correct[part] = (top.indices.cpu().numpy() == labels[part]) & np.isfinite(best[part]) & (not are_new)
    return ScoredFeatures(features, np.arange(len(labels)), labels.astype(np.int64), best, correct)


class CandidateScores:
    """Scores of new classes before scale and shift, for every centering: norm * u . (f - center), or scaled cosines.

    Args:
        means: (k, d) float64 mean unit features of the new classes.
        center: (d,) common means of unit features and of features.
        centerings: (c,) multiples of the common mean that are subtracted from the class means.
        norm: length of the rows.
        cosine_scale: scale of a cosine classifier; None: a linear one.
    """

    def __init__(
        self,
        means: np.ndarray,
        center: tuple[np.ndarray, np.ndarray],
        centerings: np.ndarray,
        norm: float,
        cosine_scale: float | None,
    ) -> None:
        self._means, (self._unit_center, self._feature_center) = means, center
        self._centerings, self._norm, self._is_cosine = centerings, norm, cosine_scale is not None
        self._factor = norm if cosine_scale is None else cosine_scale

    def rows(self, centering: float) -> np.ndarray:
        """Return the rows (k, d), of length `norm`."""
        return self._norm * unit_length(self._means - centering * self._unit_center)

    def best(self, images: ScoredFeatures, *, without_own: bool = False) -> np.ndarray:
        """Return the largest score of each image, (c, n); without the class of its label if asked, maybe -inf."""
        best = np.empty((len(self._centerings), len(images)))
        for part in images.chunks(len(self._means)):
            features = self._prepared(images.features(part))
            # Features are multiplied once, for all centerings.
            with_means, with_center = features @ self._means.T, features @ self._unit_center
            for number, centering in enumerate(self._centerings):
                lengths = np.linalg.norm(self._means - centering * self._unit_center, axis=1)
                scores = with_means - centering * with_center[:, None]
                scores *= self._factor / np.maximum(lengths, _TINY)
                if without_own:
                    scores[np.arange(len(scores)), images.labels[part]] = -np.inf
                best[number, part] = scores.max(axis=1)
        return best

    def leave_one_out(self, shots: ScoredFeatures, counts: np.ndarray) -> np.ndarray:
        """Return the score of each shot by its own class without that shot, (c, n).

        Args:
            counts: (k,) shots per class, at least 2 where a class has shots here.
        """
        scores = np.empty((len(self._centerings), len(shots)))
        for part in shots.chunks():
            features, labels = shots.features(part), shots.labels[part]
            num = counts[labels][:, None]
            means = (self._means[labels] * num - unit_length(features)) / (num - 1)
            features = self._prepared(features)
            for number, centering in enumerate(self._centerings):
                rows = unit_length(means - centering * self._unit_center)
                scores[number, part] = self._factor * (features * rows).sum(axis=1)
        return scores

    def _prepared(self, features: np.ndarray) -> np.ndarray:
        return unit_length(features) if self._is_cosine else features - self._feature_center


def mean_unit_features(images: ScoredFeatures) -> np.ndarray:
    """Return the mean of each label's features of unit length, (k, d); every label from 0 to the largest has some."""
    counts = np.bincount(images.labels)
    sums = np.zeros((len(counts), images.source.shape[1]))
    for part in images.chunks():
        np.add.at(sums, images.labels[part], unit_length(images.features(part)))
    return sums / counts[:, None]


def feature_center(old: ScoredFeatures | None, shots: ScoredFeatures) -> tuple[np.ndarray, np.ndarray]:
    """Return the means (d,) of unit features and of features over old images; over the shots where there are none."""
    images, width = shots if old is None else old, shots.source.shape[1]
    if old is None and not shots.labels.any():
        return np.zeros(width), np.zeros(width)  # a class minus its own mean would be 0
    sums = np.zeros((2, width))
    for part in images.chunks():
        features = images.features(part)
        sums += np.stack([unit_length(features).sum(axis=0), features.sum(axis=0)])
    return sums[0] / len(images), sums[1] / len(images)
