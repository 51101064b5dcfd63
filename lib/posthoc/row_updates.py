"""Rows of known classes that move towards further images of them, without training.

A row is taken for a mean of the n images that it was trained on. With m more images, whose mean direction is u (as in
lib/posthoc/imprint.py), it points to (1 - lambda) w / |w| + lambda u with lambda = s m / (n + s m), and its length does
not change; s = 1 is the running mean of nearest-class-mean classifiers (Mensink et al., PAMI 2013). Rows of a linear
classifier share a shift of their biases, too, since classes with few images have low scores. Strength and shift are
chosen on images of all classes and on the new images, each scored without itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lib.inference.neighbors import unit_length
from lib.posthoc.candidate_scores import ScoredFeatures, feature_center, mean_unit_features

STRENGTHS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
_RUNNING_MEAN = STRENGTHS.index(1.0)
_TINY = 1e-12


@dataclass(frozen=True)
class KnownRows:
    """The rows of some classes.

    Attributes:
        classes: (k,) int64, ascending.
        weight: (k, c, d) float64 centers of each class, of which the nearest counts; c is 1 unless a cosine classifier
            has several.
        bias: (k,) float64; zeros where the classifier takes none.
        counts: (k,) int64 images that each was trained on; 0: unknown, taken for as many as it gets.
    """

    classes: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    counts: np.ndarray


class Choice(NamedTuple):
    """The index of a strength in STRENGTHS, and what is added to the biases of all rows."""

    strength: int
    shift: float


_UNCHANGED = Choice(0, 0.0)


@dataclass(frozen=True)
class _Contest:
    """Images, scored by the rows that do not change, and the best score of the rows that do at each strength.

    Attributes:
        top: (len(STRENGTHS), n) float64.
        is_own: (n,) bool: the label is a known class.
        is_first: (len(STRENGTHS), n) bool: of the known classes, that of the label has the best score.
    """

    images: ScoredFeatures
    top: np.ndarray
    is_own: np.ndarray
    is_first: np.ndarray

    def at(self, choice: Choice) -> ScoredFeatures:
        """Return the images, scored with all rows."""
        images, top = self.images, self.top[choice.strength] + choice.shift
        wins = top >= images.best
        correct = np.where(self.is_own, wins & self.is_first[choice.strength], images.correct & ~wins)
        best = np.where(wins, top, images.best)
        return ScoredFeatures(images.source, images.rows, images.labels, best, correct)


class RowUpdates:
    """The rows of known classes at each strength and shift, and what they change.

    Args:
        known: the rows.
        shots: new images of these classes; labels number them, and every class has some.
        old: images of all classes that the model was not trained on, scored without the classes of `known`; None: there
            are none, so the strength is 1 and the shift 0.
        cosine_scale: that of a cosine classifier; None: a linear one.
        max_loss: fraction, of mean class accuracy on the old images.
    """

    def __init__(
        self,
        known: KnownRows,
        shots: ScoredFeatures,
        old: ScoredFeatures | None,
        *,
        cosine_scale: float | None,
        max_loss: float,
    ) -> None:
        old = old if old is not None and len(old) else None
        self._known, self._scale, self._max_loss = known, cosine_scale, max_loss
        self._means, self._num_shots = mean_unit_features(shots), np.bincount(shots.labels)
        self._num_trained = np.where(known.counts > 0, known.counts, self._num_shots)
        self._unit_center, self._center = feature_center(old, shots)
        self._directions = unit_length(self._means - self._unit_center)
        self._lengths = np.linalg.norm(known.weight, axis=2)  # (k, c)
        self._units = unit_length(known.weight)
        k = np.arange(len(known.weight))
        self._nearest = np.einsum('kcd,kd->kc', self._units, self._directions).argmax(axis=1)  # the center that moves
        self._moving = self._units[k, self._nearest]
        self._cosines = np.einsum('kd,kd->k', self._moving, self._directions)
        self._length = self._lengths[k, self._nearest] if cosine_scale is None else np.ones(len(k))
        # Centered features leave this part of a linear score constant, whatever the direction of the row.
        self._constant = known.weight[:, 0] @ self._center + known.bias
        self._voters, self._won_from = self._votes(shots)
        self._old = None if old is None else self._contest(old)

    def choose(self, rows: np.ndarray | None = None) -> Choice:
        """Return the strength and shift that win most shots minus what is lost on old images.

        The search over shifts is exhaustive, since accuracies change only at known shifts. Ties are broken by the
        strength nearest to 1, then by the smallest shift.

        Args:
            rows: rows of the old images that count; None: all.
        """
        if self._old is None:
            return Choice(_RUNNING_MEAN, 0.0)
        images = self._old.images
        rows = np.arange(len(images)) if rows is None else rows
        weights, before = images.at(rows).class_weights(), self._old.at(_UNCHANGED).correct[rows]
        best, chosen = -np.inf, _UNCHANGED
        for strength in sorted(range(len(STRENGTHS)), key=lambda number: abs(number - _RUNNING_MEAN)):
            wins_from = (images.best - self._old.top[strength])[rows]
            is_own, is_first = self._old.is_own[rows], self._old.is_first[strength][rows]
            signs = np.where(is_own, is_first.astype(np.float64), -images.correct[rows].astype(np.float64))
            shifts = self._shifts(np.concatenate([wins_from[signs != 0], self._won_from[strength]]))
            after = weights @ (images.correct[rows] & ~is_own) + _sums_to(wins_from, signs * weights, shifts)
            lost = weights @ before - after
            allowed = lost + np.sqrt(np.clip(lost * (1 - lost), 0, None) / max(1, len(rows))) <= self._max_loss
            if strength == _UNCHANGED.strength:
                allowed[0] = True
            gain = _sums_to(self._won_from[strength], self._voters, shifts) - lost
            gain = np.where(allowed, gain, -np.inf)
            number = int(gain.argmax())
            if gain[number] > best + _TINY:
                best, chosen = float(gain[number]), Choice(strength, float(shifts[number]))
        return chosen

    def left(self, choice: Choice, rows: np.ndarray | None = None) -> float:
        """Return the part of `max_loss` that a choice leaves for new classes.

        Args:
            rows: rows of the old images that count; None: all.
        """
        if self._old is None:
            return self._max_loss
        before, after = self._old.at(_UNCHANGED), self._old.at(choice)
        if rows is not None:
            before, after = before.at(rows), after.at(rows)
        lost = before.class_weights() @ (before.correct.astype(np.float64) - after.correct)
        return max(0.0, self._max_loss - max(0.0, float(lost)))

    @property
    def has_old(self) -> bool:
        """Return whether there are old images."""
        return self._old is not None

    def old_at(self, choice: Choice) -> ScoredFeatures:
        """Return the old images, scored with all rows. Raises: ValueError: there are none."""
        if self._old is None:
            raise ValueError('there are no old images')
        return self._old.at(choice)

    def rows(self, choice: Choice) -> tuple[np.ndarray, np.ndarray]:
        """Return the weight (k, c, d) and the bias (k,) of a choice, both float64."""
        own, new = self._coefficients(STRENGTHS[choice.strength], self._num_shots, self._cosines)
        moved = own[:, None] * self._moving + new[:, None] * self._directions
        if self._scale is not None:  # these have length 1, and the classifier's have their own
            moved *= self._lengths[np.arange(len(moved)), self._nearest][:, None]
        weight = self._known.weight.copy()
        weight[np.arange(len(moved)), self._nearest] = moved
        return weight, self._constant - weight[:, 0] @ self._center + choice.shift

    def applied(self, images: ScoredFeatures, choice: Choice, *, are_new: bool = False) -> ScoredFeatures:
        """Return images, scored with all rows instead of those that do not change.

        Args:
            are_new: the labels are those of new classes.
        """
        return self._contest(images, are_new=are_new).at(choice)

    def _contest(self, images: ScoredFeatures, *, are_new: bool = False) -> _Contest:
        top = np.empty((len(STRENGTHS), len(images)))
        is_first = np.zeros((len(STRENGTHS), len(images)), bool)
        position = np.minimum(np.searchsorted(self._known.classes, images.labels), len(self._known.classes) - 1)
        is_own = (self._known.classes[position] == images.labels) & (not are_new)
        for part in images.chunks(2 * self._units[..., 0].size):
            for strength, scores in enumerate(self._scores(images.features(part))):
                top[strength, part] = scores.max(axis=1)
                is_first[strength, part] = is_own[part] & (scores.argmax(axis=1) == position[part])
        return _Contest(images, top, is_own, is_first)

    def _shifts(self, limits: np.ndarray) -> np.ndarray:
        """Return 0 and, for a linear classifier, a shift between each two positive limits and above the last."""
        limits = np.unique(limits[(limits > 0) & np.isfinite(limits)])
        if self._scale is not None or not len(limits):
            return np.zeros(1)
        return np.concatenate([[0.0], (limits[1:] + limits[:-1]) / 2, limits[-1:] + 1])

    def _scores(self, features: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the scores (n, k) of features (n, d) at each strength; features are multiplied once for all."""
        prepared = self._prepared(features)
        of_centers = (prepared @ self._units.reshape(-1, prepared.shape[1]).T).reshape(-1, *self._lengths.shape)
        k = np.arange(len(self._units))
        of_rows, of_shots = of_centers[:, k, self._nearest], prepared @ self._directions.T
        of_centers[:, k, self._nearest] = -np.inf
        of_others = of_centers.max(axis=2)
        for strength in STRENGTHS:
            own, new = self._coefficients(strength, self._num_shots, self._cosines)
            scores = own * of_rows + new * of_shots
            yield scores + self._constant if self._scale is None else np.maximum(scores, of_others)

    def _votes(self, shots: ScoredFeatures) -> tuple[np.ndarray, np.ndarray]:
        """Return the weights (n,) of shots that are not alone in their class, and the shifts that each is won from.

        These are (len(STRENGTHS), n): each shot is scored without itself; inf where another known class wins it.
        """
        won_from = np.empty((len(STRENGTHS), len(shots)))
        for part in shots.chunks(2 * self._units[..., 0].size):
            features, labels = shots.features(part), shots.labels[part]
            num = self._num_shots[labels]
            means = self._means[labels] * num[:, None] - unit_length(features)
            directions = unit_length(means / np.maximum(num - 1, 1)[:, None] - self._unit_center)
            moving, prepared, n = self._moving[labels], self._prepared(features), np.arange(len(labels))
            of_row, of_shots = (np.einsum('nd,nd->n', prepared, side) for side in (moving, directions))
            of_centers = np.einsum('nd,ncd->nc', prepared, self._units[labels])
            of_centers[n, self._nearest[labels]] = -np.inf
            cosines = np.einsum('nd,nd->n', moving, directions)
            for number, scores in enumerate(self._scores(features)):
                own, new = self._coefficients(STRENGTHS[number], num - 1, cosines, labels)
                moved = own * of_row + new * of_shots
                scores[n, labels] = (
                    moved + self._constant[labels] if self._scale is None else np.maximum(moved, of_centers.max(axis=1))
                )
                is_first = scores.argmax(axis=1) == labels
                won_from[number, part] = np.where(is_first, shots.best[part] - scores[n, labels], np.inf)
        voters = np.flatnonzero(self._num_shots[shots.labels] > 1)
        return shots.at(voters).class_weights(), won_from[:, voters]

    def _coefficients(
        self, strength: float, num_shots: np.ndarray, cosines: np.ndarray, labels: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the multiples of the unit row and of the unit mean of its shots that make up the moved row.

        Args:
            num_shots: (k,), or of the class of each image, (n,).
            cosines: (k,) or (n,) of both directions.
            labels: (n,) classes of the images; None: for all k classes.
        """
        trained, length = self._num_trained, self._length
        if labels is not None:
            trained, length = trained[labels], length[labels]
        fraction = strength * num_shots / (trained + strength * num_shots)
        squares = (1 - fraction) ** 2 + fraction**2 + 2 * fraction * (1 - fraction) * cosines
        factor = length / np.sqrt(np.maximum(squares, _TINY))
        return (1 - fraction) * factor, fraction * factor

    def _prepared(self, features: np.ndarray) -> np.ndarray:
        return features - self._center if self._scale is None else self._scale * unit_length(features)


def _sums_to(limits: np.ndarray, weights: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Return the sum of the weights whose limit is at most each shift."""
    order = np.argsort(limits)
    return np.concatenate([[0.0], np.cumsum(weights[order])])[np.searchsorted(limits[order], shifts, side='right')]
