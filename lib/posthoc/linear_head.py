"""Linear classifiers on kept features: what post-hoc methods make, and what they answer.

Temperatures: probabilities that are as sure as they are right (Guo et al., On Calibration, ICML 2017).
Learnable weight scaling on kept features (LWS: Kang et al., Decoupling, ICLR 2020, eq. 6).
Classes that come more or less often than in training: their shares, learnt from unlabelled images, put right.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from lib.inference.features import Features, logit_batch_size
from lib.metrics.accuracy import shot_groups
from lib.metrics.predictions import Predictions, join_predictions, predictions_from_logits
from lib.posthoc.tau_sweep import NEVER


@dataclass(frozen=True)
class LinearHead:
    """A linear classifier.

    Attributes:
        weight: (num_classes, num_features) float32.
        bias: (num_classes,) float32.
    """

    weight: torch.Tensor
    bias: torch.Tensor

    @property
    def num_classes(self) -> int:
        """How many classes it tells apart."""
        return len(self.weight)

    def logits(self, values: torch.Tensor) -> torch.Tensor:
        """Return the logits (batch, num_classes) of features (batch, num_features), float32."""
        return torch.nn.functional.linear(values, self.weight, self.bias)

    def shifted(self, shift: torch.Tensor) -> 'LinearHead':
        """Return it with (num_classes,) added to the logits; a class at -inf never wins."""
        shift = shift.to(self.bias.device)
        bias = (self.bias.double() + shift).where(shift.isfinite(), NEVER)
        return replace(self, bias=bias.float())

    def scaled(self, scale: torch.Tensor | float) -> 'LinearHead':
        """Return it with its logits multiplied, by one number or one a class."""
        if isinstance(scale, torch.Tensor):
            return LinearHead(self.weight * scale[:, None], self.bias * scale)
        return LinearHead(self.weight * scale, self.bias * scale)


@dataclass(frozen=True)
class GroupScaledHead(LinearHead):
    """A linear classifier whose logits are multiplied by what belongs to the group of the class that they predict.

    Attributes:
        inverse: (num_groups,) float32 factors, 1 / T.
        group_of: (num_classes,) int64.
    """

    inverse: torch.Tensor
    group_of: torch.Tensor

    def logits(self, values: torch.Tensor) -> torch.Tensor:
        """Return the logits (batch, num_classes) of features (batch, num_features), float32."""
        plain = super().logits(values)
        return plain * self.inverse[self.group_of[plain.argmax(dim=1)]][:, None]


def logit_batches(
    head: LinearHead, features: Features, rows: np.ndarray | None = None
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield logits (batch, num_classes), labels and readable of some rows, in their order; few logits at a time."""
    device, size = head.weight.device, logit_batch_size(head.num_classes)
    numbers = np.arange(len(features)) if rows is None else np.asarray(rows)
    for start in range(0, len(numbers), size):
        some = numbers[start : start + size]
        values = torch.from_numpy(np.array(features.values[some])).to(device)
        labels, readable = (torch.from_numpy(part[some]).to(device) for part in (features.labels, features.readable))
        yield head.logits(values), labels, readable


@torch.inference_mode()
def head_predictions(head: LinearHead, features: Features, rows: np.ndarray | None = None) -> Predictions:
    """Return what a classifier answers to some rows of features."""
    return join_predictions([predictions_from_logits(*batch) for batch in logit_batches(head, features, rows)])


_ROUNDS = 30
_SETTLED = 1e-6  # of the inverse temperature, relative
_RANGE = (1e-3, 1e3)


@torch.inference_mode()
def fit_temperature(head: LinearHead, features: Features, rows: np.ndarray) -> float:
    """Return the T that makes the labels of some rows most probable when logits are divided by it.

    The negative log-likelihood is convex in b = 1 / T: its slope is the mean of E_p[z] - z_label, its curvature that of
    Var_p[z]. Newton's method, halved where it would overshoot, with one pass over the logits a round; they are never
    all in memory. Images without a label, or that cannot be decoded, do not count.

    Raises:
        ValueError: no image counts.
    """
    return fit_temperatures(head, features, rows, np.zeros(head.num_classes, np.int64))[0]


@torch.inference_mode()
def fit_temperatures(head: LinearHead, features: Features, rows: np.ndarray, group_of: np.ndarray) -> list[float]:
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
    head: LinearHead, features: Features, rows: np.ndarray, groups: torch.Tensor, inverse: torch.Tensor
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


_STEPS, _BATCH, _RATE = 300, 256, 0.02


def fit_scales(
    head: LinearHead, features: Features, rows: np.ndarray, *, seed: int = 0, num_steps: int = _STEPS
) -> torch.Tensor:
    """Return a scale of the logits a class, (num_classes,) float32 on the classifier's device.

    Class-balanced sampling as in the paper: each draw takes a class, then one of its images; cross entropy; Adam on the
    logarithms of the scales, which keeps them above 0, at a rate that falls to 0 along a cosine. A class that has no
    image among the rows changes as a rival alone.

    Args:
        rows: labelled, readable ones count.
        seed: of the draws; the same give the same scales on one device.

    Raises:
        ValueError: no image counts.
    """
    rows = rows[(features.labels[rows] >= 0) & features.readable[rows]]
    if not len(rows):
        raise ValueError('scales need at least one readable, labelled image')
    labels = features.labels[rows]
    order = np.argsort(labels, kind='stable')
    present, first, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    rng = np.random.default_rng(seed)
    device = head.weight.device
    logs = torch.zeros(head.num_classes, device=device, requires_grad=True)
    optimizer = torch.optim.Adam([logs], lr=_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for _ in range(num_steps):
        drawn = rng.integers(len(present), size=_BATCH)
        places = first[drawn] + (rng.random(_BATCH) * sizes[drawn]).astype(np.int64)
        chosen = rows[order[places]]
        values = torch.from_numpy(np.array(features.values[chosen])).to(device)
        with torch.no_grad():
            logits = head.logits(values)
        loss = torch.nn.functional.cross_entropy(
            logits * logs.exp(), torch.from_numpy(features.labels[chosen]).to(device)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return logs.detach().exp()


_PRIOR_ROUNDS, _PRIOR_TOLERANCE = 100, 1e-4
_ADDED = 0.5  # images
_LOGITS_KEPT = 2**27  # 512 MB; more are computed anew in every round


@torch.inference_mode()
def fit_prior(
    head: LinearHead, features: Features, rows: np.ndarray, log_prior: torch.Tensor, *, num_rounds: int = _PRIOR_ROUNDS
) -> torch.Tensor:
    """Return the logarithms of the class shares among some images, without their labels (EM: Saerens et al., 2002).

    Each round corrects the posteriors by new over old shares, eq. 2.4, and takes their means for the new shares, eq.
    2.9; the likelihood of the images rises in each. Half an image is added to each class (a Dirichlet prior), so that
    no class vanishes because few images were seen. Ends when the shares change by less than 1e-4 altogether.

    Args:
        head: its softmax must be the posterior under the old shares: a classifier trained on them, calibrated.
        log_prior: (num_classes,) float64, of the old shares; -inf classes stay without any.

    Returns:
        (num_classes,) float64, on the CPU; `head.shifted(result - log_prior)` is the corrected classifier.

    Raises:
        ValueError: no image can be decoded.
    """
    readable = rows[features.readable[rows]]
    if not len(readable):
        raise ValueError('class shares need at least one readable image')
    known = log_prior.isfinite().cpu()
    old = log_prior.to(head.weight.device)
    shares = log_prior.exp().cpu()
    keeps = len(readable) * head.num_classes <= _LOGITS_KEPT
    kept = [logits for logits, _, _ in logit_batches(head, features, readable)] if keeps else None
    for _ in range(num_rounds):
        shift = (shares.log().to(old) - old).where(known.to(old.device), -torch.inf).float()
        sums = torch.zeros(head.num_classes, dtype=torch.float64)
        for logits in kept or (logits for logits, _, _ in logit_batches(head, features, readable)):
            sums += (logits + shift).softmax(dim=1).sum(dim=0).double().cpu()
        sums[known] += _ADDED
        updated = sums / sums.sum()
        change = float((updated - shares).abs().sum())
        shares = updated
        if change < _PRIOR_TOLERANCE:
            break
    return shares.log()
