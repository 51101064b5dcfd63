"""Accuracy metrics from integer counts per class, divided once at the end: O(num_classes) memory."""

import numpy as np
import torch

from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.metrics.predictions import BatchPredictions, Predictions

# Liu et al., CVPR 2019: many-shot above 100 training images, few-shot below 20.
MANY_ABOVE, FEW_BELOW = 100, 20


def shot_groups(train_counts: np.ndarray) -> dict[str, np.ndarray]:
    """Return which classes are many-, medium- and few-shot: (num_classes,) bool each.

    Args:
        train_counts: (num_classes,) images per class in the original training set, before any cap.
    """
    many, few = train_counts > MANY_ABOVE, train_counts < FEW_BELOW
    return {'many': many, 'medium': ~many & ~few, 'few': few}


def mean_over_classes(sums: np.ndarray, total: np.ndarray) -> float:
    """Return the mean of sums / total over the classes that have images; with correct images as sums, mean accuracy.

    Args:
        sums: (num_classes,) sums over the images of each class.
        total: (num_classes,) int64 images of each class; at least one is above 0.
    """
    has_images = total > 0
    return float((sums[has_images] / total[has_images]).mean())


def metrics_from_counts(correct: np.ndarray, total: np.ndarray, train_counts: np.ndarray) -> dict[str, float]:
    """Compute the metrics that follow from counts per class.

    Args:
        correct, total: (num_classes,) int64 correctly predicted images and images of a split.
        train_counts: (num_classes,) training images, which define the groups.

    Returns:
        top1 (accuracy over images), mean_class_error (mean over the classes that have images), and many, medium, few
        (mean accuracy over the group's classes). Fractions; a metric without images is absent.
    """
    if not total.any():
        return {}
    metrics = {
        'top1': int(correct.sum()) / int(total.sum()),
        'mean_class_error': 1.0 - mean_over_classes(correct, total),
    }
    for name, group in shot_groups(train_counts).items():
        if total[group].any():
            metrics[name] = mean_over_classes(correct[group], total[group])
    return metrics


def compute_metrics(predictions: Predictions, train_counts: np.ndarray) -> dict[str, float]:
    """Compute loss, top5, top1, mean_class_error, many, medium and few; {} without labeled images.

    Images labeled -1 do not count. An image that cannot be decoded is wrong and has no loss. Without probabilities
    there is neither loss nor top5.

    Args:
        train_counts: (num_classes,) images per class in the original training set.
    """
    predictions = predictions.labeled()
    if not len(predictions):
        return {}
    metrics: dict[str, float] = {}
    losses = predictions.losses[~np.isnan(predictions.losses)].astype(np.float64)
    if len(losses):
        metrics['loss'] = float(losses.mean())
    if predictions.has_probabilities:
        hits = (predictions.topk == predictions.labels[:, None]).any(axis=1)
        metrics['top5'] = int(hits.sum()) / len(predictions)
    correct, total = count_per_class(predictions.labels, predictions.correct, len(train_counts))
    return metrics | metrics_from_counts(correct, total, train_counts)


def count_per_class(labels: np.ndarray, correct: np.ndarray, num_classes: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return correct images and images per class, (num_classes,) int64 each.

    Args:
        labels: (n,) integers, none below 0.
        correct: (n,) bool.
        num_classes: length of the result; by default that of the labels.
    """
    total = np.bincount(labels, minlength=num_classes)
    return np.bincount(labels[correct], minlength=len(total)), total


def mean_class_accuracy(labels: np.ndarray, correct: np.ndarray) -> float:
    """Return the accuracy averaged over the classes among labels (n,); correct: (n,) bool."""
    return mean_over_classes(*count_per_class(labels, correct))


class ClassCounts:
    """Correct predictions per class, summed over batches on the device.

    Args:
        num_classes: number of classes.
        device: that of the batches.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self._counts = torch.zeros(3, num_classes, dtype=torch.int64, device=device)  # total, top1, top5
        # MPS has no float64: a batch's sum is exact enough in float32, the running sum is computed on the CPU.
        self._losses = [torch.zeros(2, device=device)]

    def add(self, predictions: BatchPredictions, labels: torch.Tensor, readable: torch.Tensor) -> None:
        """Count a batch.

        Args:
            labels: (batch,) int64; images labeled -1 are not counted.
            readable: (batch,) bool; an unreadable image counts as wrong.
        """
        known = labels >= 0
        hits = (predictions.topk == labels[:, None]) & (readable & known)[:, None]
        target = labels.clamp(min=0)
        for row, weight in zip(self._counts, (known, hits[:, 0], hits.any(dim=1)), strict=True):
            row.index_add_(0, target, weight.to(torch.int64))
        counted = known & readable
        # Not a product with the mask: a loss that is not counted may be infinite, and 0 times that is NaN.
        losses = predictions.losses.where(counted, 0.0)
        self._losses.append(torch.stack([losses.sum(), counted.sum().to(losses.dtype)]))

    def metrics(self, train_counts: np.ndarray, group: ProcessGroup = SINGLE_PROCESS) -> dict[str, float]:
        """Return loss (cross entropy over readable images), top1, top5, mean_class_error, many, medium, few.

        Counts are summed over the ranks first and divided once.
        """
        total, correct, correct5 = self.counts(group)
        if not total.sum():
            return {}
        losses = torch.stack(self._losses).cpu().double().sum(dim=0)
        loss, images = group.all_reduce(losses).tolist()
        return {
            **({'loss': loss / images} if images else {}),
            'top5': int(correct5.sum()) / int(total.sum()),
            **metrics_from_counts(correct, total, train_counts),
        }

    def counts(self, group: ProcessGroup = SINGLE_PROCESS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (images, correct at top 1, correct in the top 5) over all ranks, each (num_classes,) int64."""
        total, correct, correct5 = group.all_reduce(self._counts).cpu().numpy()
        return total, correct, correct5
