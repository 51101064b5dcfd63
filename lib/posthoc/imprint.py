"""New classes from a few images: rows of a classifier that are imprinted, not trained.

A row is the mean of its class's features of unit length (weight imprinting: Qi et al., Low-Shot Learning with Imprinted
Weights, CVPR 2018), minus the mean over all classes: features behind a ReLU all point in one direction, so without that
any image is near any mean. The scale of the new rows is chosen so that the accuracy of old classes falls by a limited
amount.
"""

from dataclasses import dataclass

import numpy as np

from lib.inference.neighbors import unit_length
from lib.posthoc.candidate_scores import (
    CandidateScores,
    ScoredFeatures,
    feature_center,
    mean_unit_features,
)
from lib.posthoc.row_updates import RowUpdates

# Linear classifier: lengths of new rows, in units of the median length of the old ones.
SCALES = 2.0 ** (np.arange(-16, 17) / 8)
# Cosine classifier, whose rows have equal lengths and no bias: multiples of the common mean that are subtracted.
# Features have nearly equal cosines with the common mean, so subtracting it more than once acts as a negative bias.
CENTERINGS = np.arange(0, 65) / 32


@dataclass(frozen=True)
class Imprint:
    """Rows of new classes, and the parameters that were chosen.

    Attributes:
        weight, bias: (k, d) and (k,) float64; a cosine classifier takes no bias.
        scale: length of the rows over the median length of the old ones; 1 for a cosine classifier.
        shift: bias that all rows share, beside the one that centers them.
        centering: multiple of the common mean that was subtracted; 1 for a linear classifier.
        lost, won: on the images that it was chosen by: accuracy that old classes lose, accuracy of new classes (each
            image against the row of the others); averages over classes. None where there were none.
    """

    weight: np.ndarray
    bias: np.ndarray
    scale: float = 1.0
    shift: float = 0.0
    centering: float = 1.0
    lost: float | None = None
    won: float | None = None

    def scores(self, features: np.ndarray, cosine_scale: float | None) -> np.ndarray:
        """Return the logits (n, k) of the new classes; `cosine_scale` is that of a cosine classifier."""
        if cosine_scale is not None:
            return cosine_scale * unit_length(features) @ unit_length(self.weight).T
        return features @ self.weight.T + self.bias

    def wins(self, images: ScoredFeatures, cosine_scale: float | None) -> np.ndarray:
        """Return the new class that beats every old one, (n,), -1 where none does. Ties go to the new class."""
        won = np.empty(len(images), np.int64)
        for part in images.chunks(len(self.weight)):
            scores = self.scores(images.features(part), cosine_scale)
            won[part] = np.where(scores.max(axis=1) >= images.best[part], scores.argmax(axis=1), -1)
        return won


def imprint(
    shots: ScoredFeatures,
    old: ScoredFeatures | None,
    *,
    norm: float,
    cosine_scale: float | None = None,
    max_loss: float = 0.02,
) -> Imprint:
    """Compute rows for the classes of `shots`.

    Scale and shift of a linear classifier's rows (the centering of a cosine one's) maximize the difference of two
    averages over classes: accuracy won on the shots, each against the row that the others of its class make, minus
    accuracy lost on the old images, which with its standard error is at most `max_loss`. The search over shifts is
    exhaustive, since the gains and losses of a scale change at known shifts. Among equals, scale and centering nearest
    to 1 are chosen, then the smallest shift.

    Without old images, half of the shots win at scale 1. Where no class has two shots, `max_loss` / 2 is spent.

    Args:
        shots: images of the new classes; every class from 0 to the largest has some.
        old: images of old classes that the model was not trained on; None: there are none.
        norm: median length of the old rows.
        cosine_scale: that of a cosine classifier; None: a linear one.
        max_loss: fraction, of accuracy on the old images.
    """
    means, has_one_shot = mean_unit_features(shots), np.bincount(shots.labels) == 1
    old = old if old is not None and len(old) else None
    center = feature_center(old, shots)
    centerings = np.ones(1) if cosine_scale is None else CENTERINGS
    voters = shots.at(np.flatnonzero(~has_one_shot[shots.labels]))
    candidates = CandidateScores(means, center, centerings, norm, cosine_scale)
    own = candidates.leave_one_out(voters, np.bincount(shots.labels))
    others = candidates.best(voters, without_own=True)
    # The shift above which an image is won or lost, for a score c * scale + shift of a new class.
    best_of_old = None if old is None else candidates.best(old)
    choices = []
    for number, centering in enumerate(centerings):
        for scale in SCALES if cosine_scale is None else (1.0,):
            won_from = np.where(own[number] >= others[number], voters.best - scale * own[number], np.inf)
            lost_from = lost_weights = np.zeros(0)
            if old is not None and best_of_old is not None:
                lost_from = (old.best - scale * best_of_old[number])[old.correct]
                lost_weights = old.class_weights()[old.correct]
            found = _choose_shift(
                won_from, voters.class_weights(), lost_from, lost_weights, 0 if old is None else len(old), max_loss,
                is_free=cosine_scale is None, is_unscaled=scale == 1.0,
            )  # fmt: skip
            choices.append((found[0], -abs(np.log(scale)) - abs(centering - 1), scale, centering, *found[1:]))
    _, _, scale, centering, shift, lost, won = max(choices, key=lambda choice: choice[:2])
    rows = candidates.rows(centering) * scale
    bias = shift - rows @ center[1]
    return Imprint(
        rows, bias, scale, shift, float(centering), None if old is None else lost, won if len(voters) else None
    )


def cross_fit_imprint(
    shots: ScoredFeatures | None,
    old: ScoredFeatures,
    *,
    norm: float,
    cosine_scale: float | None = None,
    max_loss: float = 0.02,
    folds: int = 5,
    updates: RowUpdates | None = None,
) -> np.ndarray:
    """Return whether each old image is correct with rows that were chosen without it, (n,) bool.

    The images of each class are distributed over the folds; each fold is measured with the rows that the others choose.

    Args:
        shots: shots of new classes; None: there are none.
        old: images of old classes.
        updates: updates of rows of old classes, chosen on the same old images; None: no row changes.
    """
    order = np.argsort(old.labels, kind='stable')
    fold = np.empty(len(old), np.int64)
    fold[order] = np.arange(len(old)) % folds
    correct = old.correct.copy()
    for number in range(folds):
        rows, rest = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
        scored, voters, left = old, shots, max_loss
        if updates is not None:
            choice = updates.choose(rest)
            scored, left = updates.old_at(choice), updates.left(choice, rest)
            voters = None if shots is None else updates.applied(shots, choice, are_new=True)
            correct[rows] = scored.correct[rows]
        if voters is not None:
            chosen = imprint(voters, scored.at(rest), norm=norm, cosine_scale=cosine_scale, max_loss=left)
            correct[rows] &= chosen.wins(scored.at(rows), cosine_scale) < 0
    return correct


def _choose_shift(
    won_from: np.ndarray,
    won_weights: np.ndarray,
    lost_from: np.ndarray,
    lost_weights: np.ndarray,
    num_old: int,
    max_loss: float,
    *,
    is_free: bool,
    is_unscaled: bool,
) -> tuple[float, float, float, float]:
    """Return (gain, shift, lost, won) of the best shift; of shift 0 where it is not free.

    An image is won, or lost, once the shift is above its entry in `won_from` or `lost_from`.
    """
    limits = np.unique(np.concatenate([won_from[np.isfinite(won_from)], lost_from]))
    if not is_free or not len(limits):
        shifts = np.zeros(1)
    else:
        shifts = np.concatenate([limits[:1] - 1, (limits[1:] + limits[:-1]) / 2, limits[-1:] + 1])
    won, lost = _sums_below(won_from, won_weights, shifts), _sums_below(lost_from, lost_weights, shifts)
    allowed = lost + np.sqrt(lost * (1 - lost).clip(0) / max(1, num_old)) <= max_loss
    if not num_old:
        gain = -np.abs(won - 0.5) if is_unscaled else np.full(len(shifts), -np.inf)
    elif not len(won_from):
        gain = np.where(lost <= max_loss / 2, lost, -1 - lost) if is_unscaled else np.full(len(shifts), -np.inf)
    else:
        # Where no shift is allowed, the least loss is the best.
        gain = np.where(allowed, won - lost, -1 - lost)
    best = int(np.argmax(gain))
    return float(gain[best]), float(shifts[best]), float(lost[best]), float(won[best])


def _sums_below(limits: np.ndarray, weights: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    order = np.argsort(limits)
    return np.concatenate([[0.0], np.cumsum(weights[order])])[np.searchsorted(limits[order], shifts)]
