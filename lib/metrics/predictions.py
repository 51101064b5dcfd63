"""What a model says about each image of a split: enough for every metric, without keeping logits."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

from lib.metrics.accuracy import metrics_from_counts
from lib.metrics.scores import Scores, scores_of


@dataclass(frozen=True)
class Predictions:
    """A model's answers, a row an image, in input order.

    Attributes:
        labels: (n,) int64; -1 where the class is not known.
        best: (n, k) int64 classes of the largest logits, the largest first; -1 where the image cannot be decoded.
        confidence: (n,) float32 probability of the first of them; 0 where the image cannot be decoded, NaN where only
            the prediction is known.
        losses: (n,) float32 -ln of the label's probability; NaN where the class, the image or the probability is not
            known.
    """

    labels: np.ndarray
    best: np.ndarray
    confidence: np.ndarray
    losses: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def predicted(self) -> np.ndarray:
        """The best class of each image, (n,) int64, -1 where it cannot be decoded."""
        return self.best[:, 0]

    @property
    def right(self) -> np.ndarray:
        """Whether the best class is the label, (n,) bool."""
        return (self.labels >= 0) & (self.predicted == self.labels)

    def at(self, rows: np.ndarray) -> Self:
        """Return the answers of some rows."""
        return type(self)(self.labels[rows], self.best[rows], self.confidence[rows], self.losses[rows])

    def labelled(self) -> Self:
        """Return the answers of the images whose class is known."""
        return self if (self.labels >= 0).all() else self.at(np.flatnonzero(self.labels >= 0))


def accuracy_metrics(predicted: np.ndarray, labels: np.ndarray, train_counts: np.ndarray) -> dict[str, float]:
    """Return top1, mean_class_error, many, medium, few of predictions (n,); images labelled -1 do not count."""
    num_classes, known = len(train_counts), labels >= 0
    right, total = (np.bincount(labels[rows], minlength=num_classes) for rows in ((labels == predicted) & known, known))
    return metrics_from_counts(right, total, train_counts)


def answer_metrics(answers: Predictions, train_counts: np.ndarray) -> dict[str, float]:
    """Return loss (over readable images), top1, top5, mean_class_error, many, medium, few; nothing without labels."""
    answers = answers.labelled()
    if not len(answers):
        return {}
    losses = answers.losses[~np.isnan(answers.losses)].astype(np.float64)
    return {
        **({'loss': float(losses.mean())} if len(losses) else {}),
        'top5': float((answers.best == answers.labels[:, None]).any(axis=1).mean()),
        **accuracy_metrics(answers.predicted, answers.labels, train_counts),
    }


def predictions_from_logits(logits: torch.Tensor, labels: torch.Tensor, readable: torch.Tensor) -> Predictions:
    """Return the answers that a batch's logits give.

    Args:
        logits: (batch, num_classes) float32.
        labels: (batch,) int64, -1 where not known.
        readable: (batch,) bool.
    """
    return answers_of_scores(scores_of(logits, labels), labels, readable)


def answers_of_scores(scores: Scores, labels: torch.Tensor, readable: torch.Tensor) -> Predictions:
    """Return the answers that the scores of images give; labels and readable as in answers_of."""
    return Predictions(
        labels.cpu().numpy(),
        scores.best.where(readable[:, None], -1).cpu().numpy(),
        scores.confidence.where(readable, 0.0).cpu().numpy(),
        scores.losses.where(readable & (labels >= 0), torch.nan).cpu().numpy(),
    )


def predictions_from_classes(labels: np.ndarray, predicted: np.ndarray) -> Predictions:
    """Return answers of which nothing but the best class is known: labels and predicted, (n,) integers, -1 as ever."""
    unknown = np.full(len(labels), np.nan, np.float32)
    return Predictions(np.asarray(labels, np.int64), np.asarray(predicted, np.int64)[:, None], unknown, unknown)


def join_predictions(parts: list[Predictions]) -> Predictions:
    """Return the answers of consecutive parts of a split as one."""
    return Predictions(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ('labels', 'best', 'confidence', 'losses')
        )
    )
