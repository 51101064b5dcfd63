"""Temperatures: probabilities that are as sure as they are right (Guo et al., On Calibration, ICML 2017)."""

import numpy as np
import torch

from lib.inference.features import Features
from lib.metrics.accuracy import shot_groups
from lib.posthoc.linear_head import Head, logit_batches

_ROUNDS = 30
_SETTLED = 1e-6  # of the inverse temperature, relative
_RANGE = (1e-3, 1e3)


@torch.inference_mode()
def fit_temperature(head: Head, features: Features, rows: np.ndarray) -> float:
    """Return the T that makes the labels of some rows most probable when logits are divided by it.

    The negative log-likelihood is convex in b = 1 / T: its slope is the mean of E_p[z] - z_label, its curvature that of
    Var_p[z]. Newton's method, halved where it would overshoot, with one pass over the logits a round; they are never
    all in memory. Images without a label, or that cannot be decoded, do not count.

    Raises:
        ValueError: no image counts.
    """
    return fit_temperatures(head, features, rows, np.zeros(head.num_classes, np.int64))[0]


@torch.inference_mode()
def fit_temperatures(head: Head, features: Features, rows: np.ndarray, group_of: np.ndarray) -> list[float]:
    """Return a temperature for each group of classes, by the group of the class that is predicted.

    Args:
        group_of: (num_classes,) int64 group of each class, from 0. A group in which nothing is predicted keeps 1.

    Raises:
        ValueError: no image counts.
    """
    groups = torch.from_numpy(group_of).to(head.weight.device)
    num_groups = int(group_of.max()) + 1
    inverse = torch.ones(num_groups, dtype=torch.float64)
    low, high = torch.full_like(inverse, _RANGE[0]), torch.full_like(inverse, _RANGE[1])
    for _ in range(_ROUNDS):
        slope, curvature, count = _derivatives(head, features, rows, groups, inverse)
        if not count.sum():
            raise ValueError('a temperature needs at least one readable, labelled image')
        # The root of the slope lies between what was too small and what was too large.
        low, high = inverse.where(slope < 0, low), inverse.where(slope > 0, high)
        step = inverse - slope / curvature.clamp(min=1e-12)
        inside = (step > low) & (step < high)
        updated = step.where(inside, (low * high).sqrt()).where((count > 0) & (slope != 0), inverse)
        settled = bool(((updated - inverse).abs() <= _SETTLED * inverse).all())
        inverse = updated
        if settled:
            break
    return (1 / inverse).tolist()


def shot_group_of(train_counts: np.ndarray) -> np.ndarray:
    """Return the number of each class's group, many, medium or few: (num_classes,) int64, 0 to 2."""
    return np.stack(list(shot_groups(train_counts).values())).argmax(axis=0)


def _derivatives(
    head: Head, features: Features, rows: np.ndarray, groups: torch.Tensor, inverse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return slope and curvature of each group's loss at its 1 / T, and the images that count, float64 (groups,)."""
    sums = torch.zeros(3, len(inverse), dtype=torch.float64)
    for logits, labels, readable in logit_batches(head, features, rows):
        counted = readable & (labels >= 0)
        logits, labels = logits[counted].clamp(min=-1e4), labels[counted]
        group = groups[logits.argmax(dim=1)]
        chances = (logits * inverse.to(logits)[group][:, None]).softmax(dim=1)
        mean = (chances * logits).sum(dim=1)
        spread = (chances * (logits - mean[:, None]).square()).sum(dim=1)
        own = logits.gather(1, labels[:, None]).squeeze(1)
        for row, values in zip(sums, (mean - own, spread, torch.ones_like(own)), strict=True):
            row.index_add_(0, group.cpu(), values.double().cpu())
    return sums[0], sums[1], sums[2]
