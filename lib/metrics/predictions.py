"""Predictions for the images of a split: the classes of the largest logits, their probabilities and the losses.

That is enough for every metric, so no logits are stored. `BatchPredictions` holds the same columns of one batch as
tensors on the device, so that no batch waits for the host.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F

from lib.distributed.process_group import ProcessGroup

NUM_TOP = 5


@dataclass(frozen=True)
class Predictions:
    """Predictions of a model: one row per image, in input order.

    Attributes:
        labels: (n,) int64; -1 where the class is unknown.
        topk: (n, k) int64 classes of the largest logits, the largest first; -1 where the image cannot be decoded.
        probabilities: (n, k) float32, those of `topk`; 0 where the image cannot be decoded, NaN where only the
            predicted class is known.
        losses: (n,) float32 cross entropy; NaN where label, image or probability is unknown.
    """

    labels: np.ndarray
    topk: np.ndarray
    probabilities: np.ndarray
    losses: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def predicted(self) -> np.ndarray:
        """The predicted class of each image, (n,) int64; -1 where it cannot be decoded."""
        return self.topk[:, 0]

    @property
    def confidence(self) -> np.ndarray:
        """The probability of the predicted class, (n,) float32."""
        return self.probabilities[:, 0]

    @property
    def correct(self) -> np.ndarray:
        """Return whether the predicted class is the label, (n,) bool."""
        return (self.labels >= 0) & (self.predicted == self.labels)

    @property
    def has_probabilities(self) -> bool:
        """Return whether probabilities are known for any image."""
        return not np.isnan(self.confidence).all()

    def at(self, rows: np.ndarray) -> Self:
        """Return the predictions of the given rows."""
        return type(self)(self.labels[rows], self.topk[rows], self.probabilities[rows], self.losses[rows])

    def labeled(self) -> Self:
        """Return the predictions of the images whose class is known."""
        return self if (self.labels >= 0).all() else self.at(np.flatnonzero(self.labels >= 0))


class BatchPredictions(NamedTuple):
    """Predictions of one batch, on its device; rows of unreadable or unlabeled images hold values of no meaning.

    Attributes:
        topk: (batch, k) int64 classes of the largest logits, the largest first.
        probabilities: (batch, k) float32, those of `topk`.
        losses: (batch,) float32 cross entropy; for labels below 0, that of class 0.
    """

    topk: torch.Tensor
    probabilities: torch.Tensor
    losses: torch.Tensor

    def to_host(self, labels: torch.Tensor, readable: torch.Tensor) -> Predictions:
        """Return the predictions as arrays, with -1, 0 and NaN for unreadable and unlabeled images as in Predictions.

        Args:
            labels: (batch,) int64; -1 where unknown.
            readable: (batch,) bool.
        """
        return Predictions(
            labels.cpu().numpy(),
            self.topk.where(readable[:, None], -1).cpu().numpy(),
            self.probabilities.where(readable[:, None], 0.0).cpu().numpy(),
            self.losses.where(readable & (labels >= 0), torch.nan).cpu().numpy(),
        )


def batch_predictions(logits: torch.Tensor, labels: torch.Tensor, num_top: int = NUM_TOP) -> BatchPredictions:
    """Return the predictions of a batch.

    Args:
        logits: (batch, num_classes) float32.
        labels: (batch,) int64.
        num_top: classes per image; fewer where there are fewer classes.
    """
    top = logits.topk(min(num_top, logits.shape[1]), dim=1)
    probabilities = (top.values - logits.logsumexp(dim=1, keepdim=True)).exp()
    return BatchPredictions(top.indices, probabilities, F.cross_entropy(logits, labels.clamp(min=0), reduction='none'))


def sharded_batch_predictions(
    logits: torch.Tensor, labels: torch.Tensor, classes: range, num_classes: int, group: ProcessGroup
) -> BatchPredictions:
    """Return the predictions of a batch from a sharded classifier; every rank passes the same images.

    Args:
        logits: (batch, len(classes)) float32 of this rank's classes.
        labels: (batch,) int64, of all classes.
        num_classes: number of classes over all ranks.
    """
    local = logits.topk(min(NUM_TOP, len(classes)), dim=1)
    # All ranks send the same shape; a rank of few classes pads with entries that never win.
    values = F.pad(local.values, (0, NUM_TOP - local.values.shape[1]), value=-torch.inf)
    indices = F.pad(local.indices + classes.start, (0, NUM_TOP - local.indices.shape[1]), value=-1)
    values, indices = (group.all_gather(part).transpose(0, 1).flatten(1) for part in (values, indices))
    top = values.topk(min(NUM_TOP, num_classes), dim=1)
    columns = labels.clamp(min=0) - classes.start
    is_local = (columns >= 0) & (columns < len(classes))
    label_logits = logits.gather(1, columns.clamp(0, len(classes) - 1)[:, None]).squeeze(1).where(is_local, 0.0)
    normalizers = group.all_gather(logits.logsumexp(dim=1)).logsumexp(dim=0)
    return BatchPredictions(
        indices.gather(1, top.indices),
        (top.values - normalizers[:, None]).exp(),
        normalizers - group.all_reduce(label_logits),
    )


def predictions_from_logits(logits: torch.Tensor, labels: torch.Tensor, readable: torch.Tensor) -> Predictions:
    """Return the predictions of a batch as arrays.

    Args:
        logits: (batch, num_classes) float32.
        labels: (batch,) int64; -1 where unknown.
        readable: (batch,) bool.
    """
    return batch_predictions(logits, labels).to_host(labels, readable)


def predictions_from_classes(labels: np.ndarray, predicted: np.ndarray) -> Predictions:
    """Return predictions without probabilities and losses from labels and predicted classes, (n,) integers each."""
    unknown = np.full(len(labels), np.nan, np.float32)
    return Predictions(
        np.asarray(labels, np.int64), np.asarray(predicted, np.int64)[:, None], unknown[:, None], unknown
    )


def join_predictions(parts: Sequence[Predictions]) -> Predictions:
    """Return the predictions of consecutive parts of a split as one record."""
    return Predictions(
        labels=np.concatenate([part.labels for part in parts]),
        topk=np.concatenate([part.topk for part in parts]),
        probabilities=np.concatenate([part.probabilities for part in parts]),
        losses=np.concatenate([part.losses for part in parts]),
    )
