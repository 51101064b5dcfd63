"""Calibration of a linear classifier: temperatures (Guo et al., On Calibration of Modern Neural Networks, ICML 2017),
and class priors that differ from those in training (Saerens, Latinne & Decaestecker, Neural Computation 2002).
"""

import numpy as np
import torch

from lib.dataset.features import Features
from lib.metrics.accuracy import shot_groups
from lib.posthoc.linear_head import LinearHead, logit_batches

_MAX_ROUNDS = 30
_TOLERANCE = 1e-6  # of the inverse temperature, relative
_RANGE = (1e-3, 1e3)
_MAX_PRIOR_ROUNDS, _PRIOR_TOLERANCE = 100, 1e-4
_ADDED = 0.5  # images
_MAX_LOGITS = 2**27  # in memory: 512 MB; more are computed again in every round


@torch.inference_mode()
def fit_temperature(head: LinearHead, features: Features, rows: np.ndarray) -> float:
    """Fit the temperature T that maximizes the likelihood of some rows' labels when logits are divided by it.

    The negative log-likelihood is convex in b = 1 / T: its slope is the mean of E_p[z] - z_label, its curvature that of
    Var_p[z]. Newton's method, bisected where it would overshoot, with one pass over the logits per round; they are
    never all in memory. Images without a label, or that cannot be decoded, do not count.

    Raises:
        ValueError: no image counts.
    """
    return fit_temperatures(head, features, rows, np.zeros(head.num_classes, np.int64))[0]


@torch.inference_mode()
def fit_temperatures(head: LinearHead, features: Features, rows: np.ndarray, group_of: np.ndarray) -> list[float]:
    """Fit a temperature for each group of classes; that of the predicted class's group applies to an image.

    Args:
        group_of: (num_classes,) int64 group of each class, from 0. A group that is never predicted has temperature 1.

    Raises:
        ValueError: no image counts.
    """
    groups = torch.from_numpy(group_of).to(head.weight.device)
    num_groups = int(group_of.max()) + 1
    inverse = torch.ones(num_groups, dtype=torch.float64)
    low, high = torch.full_like(inverse, _RANGE[0]), torch.full_like(inverse, _RANGE[1])
    for _ in range(_MAX_ROUNDS):
        slope, curvature, count = _derivatives(head, features, rows, groups, inverse)
        if not count.sum():
            raise ValueError('a temperature needs at least one readable, labeled image')
        # The root of the slope lies between the largest value that was too small and the smallest that was too large.
        low, high = inverse.where(slope < 0, low), inverse.where(slope > 0, high)
        step = inverse - slope / curvature.clamp(min=1e-12)
        inside = (step > low) & (step < high)
        updated = step.where(inside, (low * high).sqrt()).where((count > 0) & (slope != 0), inverse)
        converged = bool(((updated - inverse).abs() <= _TOLERANCE * inverse).all())
        inverse = updated
        if converged:
            break
    return (1 / inverse).tolist()


def shot_group_of(train_counts: np.ndarray) -> np.ndarray:
    """Return the number of each class's group, many, medium or few: (num_classes,) int64, 0 to 2."""
    return np.stack(list(shot_groups(train_counts).values())).argmax(axis=0)


def _derivatives(
    head: LinearHead, features: Features, rows: np.ndarray, groups: torch.Tensor, inverse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return slope and curvature of each group's loss at its 1 / T, and the number of images, float64 (groups,)."""
    sums = torch.zeros(3, len(inverse), dtype=torch.float64)
    for logits, labels, readable in logit_batches(head, features, rows):
        counted = readable & (labels >= 0)
        logits, labels = logits[counted].clamp(min=-1e4), labels[counted]
        group = groups[logits.argmax(dim=1)]
        probabilities = (logits * inverse.to(logits)[group][:, None]).softmax(dim=1)
        mean = (probabilities * logits).sum(dim=1)
        variance = (probabilities * (logits - mean[:, None]).square()).sum(dim=1)
        own = logits.gather(1, labels[:, None]).squeeze(1)
        for row, values in zip(sums, (mean - own, variance, torch.ones_like(own)), strict=True):
            row.index_add_(0, group.cpu(), values.double().cpu())
    return sums[0], sums[1], sums[2]


@torch.inference_mode()
def fit_prior(
    head: LinearHead,
    features: Features,
    rows: np.ndarray,
    log_prior: torch.Tensor,
    *,
    max_rounds: int = _MAX_PRIOR_ROUNDS,
) -> torch.Tensor:
    """Estimate the log class prior of some images without their labels (EM: Saerens et al., 2002).

    Each round corrects the posteriors by new over old priors, eq. 2.4, and takes their means for the new priors, eq.
    2.9; the likelihood of the images rises in each. Half an image is added to each class (a Dirichlet prior), so that
    no class vanishes because of few images. Ends when the priors change by less than 1e-4 in total.

    Args:
        head: its softmax must be the posterior under the old priors: a classifier trained on them, calibrated.
        rows: those that can be decoded count.
        log_prior: (num_classes,) float64, of the training set; classes at -inf stay there.

    Returns:
        (num_classes,) float64, on the CPU; `head.shifted(result - log_prior)` is the corrected classifier.

    Raises:
        ValueError: no image can be decoded.
    """
    readable = rows[features.readable[rows]]
    if not len(readable):
        raise ValueError('a class prior needs at least one readable image')
    known = log_prior.isfinite().cpu()
    old = log_prior.to(head.weight.device)
    prior = log_prior.exp().cpu()
    fits_in_memory = len(readable) * head.num_classes <= _MAX_LOGITS
    cached = [logits for logits, _, _ in logit_batches(head, features, readable)] if fits_in_memory else None
    for _ in range(max_rounds):
        shift = (prior.log().to(old) - old).where(known.to(old.device), -torch.inf).float()
        sums = torch.zeros(head.num_classes, dtype=torch.float64)
        for logits in cached or (logits for logits, _, _ in logit_batches(head, features, readable)):
            sums += (logits + shift).softmax(dim=1).sum(dim=0).double().cpu()
        sums[known] += _ADDED
        updated = sums / sums.sum()
        change = float((updated - prior).abs().sum())
        prior = updated
        if change < _PRIOR_TOLERANCE:
            break
    return prior.log()
