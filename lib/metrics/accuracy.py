"""Metrics as integer counts a class, divided once at the end. O(num_classes) memory."""

import numpy as np
import torch

from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.metrics.scores import Scores, scores_of

# Liu et al., CVPR 2019: many-shot above 100 training images, few-shot below 20.
MANY_ABOVE, FEW_BELOW = 100, 20


def shot_groups(train_counts: np.ndarray) -> dict[str, np.ndarray]:
    """Return which classes are many, medium and few: (num_classes,) bool each.

    Args:
        train_counts: (num_classes,) images a class in the original training set, before any cap.
    """
    many, few = train_counts > MANY_ABOVE, train_counts < FEW_BELOW
    return {'many': many, 'medium': ~many & ~few, 'few': few}


def metrics_from_counts(right: np.ndarray, total: np.ndarray, train_counts: np.ndarray) -> dict[str, float]:
    """Return the figures that follow from right answers a class.

    Args:
        right, total: (num_classes,) int64 counts over a split.
        train_counts: (num_classes,) counts that define the groups.

    Returns:
        top1 (accuracy over images), mean_class_error (mean over classes that have images), and many, medium, few
        (mean accuracy over the group's classes). Fractions; what has no image is absent.
    """
    seen = total > 0
    if not seen.any():
        return {}
    accuracy = np.divide(right, total, out=np.zeros(len(total)), where=seen)
    metrics = {
        'top1': int(right.sum()) / int(total.sum()),
        'mean_class_error': 1.0 - float(accuracy[seen].mean()),
    }
    for name, shots in shot_groups(train_counts).items():
        if (shots & seen).any():
            metrics[name] = float(accuracy[shots & seen].mean())
    return metrics


class ClassCounts:
    """Adds up right answers a class over batches, on the device.

    Args:
        num_classes: number of classes.
        device: where the batches are.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self._counts = torch.zeros(3, num_classes, dtype=torch.int64, device=device)  # total, top1, top5
        # Apple's GPUs have no float64; a batch's sum is exact enough in float32, its running sum is kept on the CPU.
        self._losses = [torch.zeros(2, device=device)]

    def update(self, logits: torch.Tensor, labels: torch.Tensor, readable: torch.Tensor) -> torch.Tensor:
        """Count a batch by its logits (batch, num_classes) float32; as `add` does."""
        return self.add(scores_of(logits, labels), labels, readable)

    def add(self, scores: Scores, labels: torch.Tensor, readable: torch.Tensor) -> torch.Tensor:
        """Count a batch and return its predictions, (batch,) int64, -1 for unreadable images.

        Args:
            scores: of its logits.
            labels: (batch,) int64; images labelled -1 are not counted.
            readable: (batch,) bool; an unreadable image counts as wrong.
        """
        # topk and argmax may break ties differently; one of them has to say what is predicted.
        predicted = torch.where(readable, scores.best[:, 0], -1)
        known = labels >= 0
        hits = (scores.best == labels[:, None]) & (readable & known)[:, None]
        target = labels.clamp(min=0)
        for row, weight in zip(self._counts, (known, hits[:, 0], hits.any(dim=1)), strict=True):
            row.index_add_(0, target, weight.to(torch.int64))
        counted = known & readable
        # Not a product with the mask: what is not counted may be infinite, and 0 times that is NaN.
        losses = scores.losses.where(counted, 0.0)
        self._losses.append(torch.stack([losses.sum(), counted.sum().to(losses.dtype)]))
        return predicted

    def metrics(self, train_counts: np.ndarray, group: ProcessGroup = SINGLE_PROCESS) -> dict[str, float]:
        """Return loss (cross entropy over readable images), top1, top5, mean_class_error, many, medium, few.

        Counts are added up over the ranks first, and divided once.
        """
        total, right, right5 = self.counts(group)
        if not total.sum():
            return {}
        losses = torch.stack(self._losses).cpu().double().sum(dim=0)
        loss, images = group.all_reduce(losses).tolist()
        return {
            **({'loss': loss / images} if images else {}),
            'top5': int(right5.sum()) / int(total.sum()),
            **metrics_from_counts(right, total, train_counts),
        }

    def counts(self, group: ProcessGroup = SINGLE_PROCESS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (total, right at top 1, right in top 5) of all ranks, each (num_classes,) int64."""
        return tuple(group.all_reduce(self._counts).cpu().numpy())
