"""New classes out of a few images: rows of a classifier that are imprinted, not trained.

A row is the mean of its class's features of unit length (weight imprinting: Qi et al., Low-Shot Learning with Imprinted
Weights, CVPR 2018), taken from the mean of all classes: features behind a ReLU all point one way, so without that any
image is near to any mean. What is left to choose is how loud the new rows are beside the trained ones.
"""

from dataclasses import dataclass

import numpy as np

from lib.posthoc.candidate_scores import ScoredFeatures, unit_length

_TINY = 1e-12
# Of a linear classifier: lengths of new rows, of the median length of the old ones.
SCALES = 2.0 ** (np.arange(-16, 17) / 8)
# Of a cosine one, whose rows are all as long and have no bias: how far the common mean is taken off. Features have much
# the same cosine with it, so taking it off more than once works as a negative bias.
CENTRINGS = np.arange(0, 65) / 32


@dataclass(frozen=True)
class Imprint:
    """Rows of new classes, and how they were chosen.

    Attributes:
        weight, bias: (k, d) and (k,) float64; a cosine classifier takes no bias.
        scale: length of the rows over the median length of the old ones; 1 for a cosine classifier.
        shift: bias that all rows share, beside that which centres them.
        centring: how far the common mean was taken off; 1 for a linear classifier.
        lost, won: on the images that it was chosen by: accuracy that old classes lose, accuracy of new classes (each
            image against the row of the others); averages over classes. None where there were none.
    """

    weight: np.ndarray
    bias: np.ndarray
    scale: float = 1.0
    shift: float = 0.0
    centring: float = 1.0
    lost: float | None = None
    won: float | None = None

    def scores(self, features: np.ndarray, cosine_scale: float | None) -> np.ndarray:
        """Return the logits (n, k) of new classes; of a cosine classifier with its scale."""
        if cosine_scale is not None:
            return cosine_scale * unit_length(features) @ unit_length(self.weight).T
        return features @ self.weight.T + self.bias

    def wins(self, images: ScoredFeatures, cosine_scale: float | None) -> np.ndarray:
        """Return the new class that beats every old one, (n,), -1 where none does. Ties go to the new class."""
        won = np.empty(len(images), np.int64)
        for part in images.parts(len(self.weight)):
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
    """Return rows for the classes of `shots`.

    Scale and shift of a linear classifier's rows (centring of a cosine one's) are those with the largest difference of
    two averages over classes: accuracy won on the shots, each against the row that the others of its class make, less
    accuracy lost on the old images, which with its standard error is at most `max_loss`. Every shift counts, for a
    scale's gains and losses change at known shifts. Among equals the scale and the centring nearest to 1, then the
    smallest shift.

    Without old images, half of the shots shall win at scale 1. Where no class has two shots, `max_loss` / 2 is spent.

    Args:
        shots: images of the new classes; every class from 0 to the largest has some.
        old: images of old classes that the model was not trained on; None: there are none.
        norm: median length of the old rows.
        cosine_scale: that of a cosine classifier; None: a linear one.
    """
    means, alone = _class_means(shots)
    old = old if old is not None and len(old) else None
    centre = _centre(old, shots, means)
    centrings = np.ones(1) if cosine_scale is None else CENTRINGS
    voters = shots.at(np.flatnonzero(~alone[shots.labels]))
    rivals = CandidateScores(means, centre, centrings, norm, cosine_scale)
    own = rivals.without_itself(voters, np.bincount(shots.labels))
    others = rivals.best(voters, without_own=True)
    # At which shift, for a score c * scale + shift of a new class, an image is won.
    of_old = None if old is None else rivals.best(old)
    choices = []
    for number, centring in enumerate(centrings):
        for scale in SCALES if cosine_scale is None else (1.0,):
            won_from = np.where(own[number] >= others[number], voters.best - scale * own[number], np.inf)
            lost_from = np.zeros(0) if old is None else (old.best - scale * of_old[number])[old.right]
            lost_shares = np.zeros(0) if old is None else old.shares()[old.right]
            found = _choose_shift(
                won_from, voters.shares(), lost_from, lost_shares, 0 if old is None else len(old), max_loss,
                free=cosine_scale is None, matched=scale == 1.0,
            )  # fmt: skip
            choices.append((found[0], -abs(np.log(scale)) - abs(centring - 1), scale, centring, *found[1:]))
    _, _, scale, centring, shift, lost, won = max(choices, key=lambda choice: choice[:2])
    rows = rivals.rows(centring) * scale
    bias = shift - rows @ centre[1]
    return Imprint(
        rows, bias, scale, shift, float(centring), None if old is None else lost, won if len(voters) else None
    )


def cross_fit_imprint(
    shots: ScoredFeatures,
    old: ScoredFeatures,
    *,
    norm: float,
    cosine_scale: float | None = None,
    max_loss: float = 0.02,
    folds: int = 5,
) -> np.ndarray:
    """Return whether each old image is right beside the new classes, (n,) bool, chosen without that image.

    The images of each class are dealt out to the folds; each fold is measured with the rows that the others choose.
    """
    order = np.argsort(old.labels, kind='stable')
    fold = np.empty(len(old), np.int64)
    fold[order] = np.arange(len(old)) % folds
    right = old.right.copy()
    for number in range(folds):
        rows = np.flatnonzero(fold == number)
        rest = old.at(np.flatnonzero(fold != number))
        chosen = imprint(shots, rest, norm=norm, cosine_scale=cosine_scale, max_loss=max_loss)
        right[rows] &= chosen.wins(old.at(rows), cosine_scale) < 0
    return right


class CandidateScores:
    """Scores of new classes before scale and shift, for every centring: norm * u . (f - centre), or scaled cosines."""

    def __init__(
        self,
        means: np.ndarray,
        centre: tuple[np.ndarray, np.ndarray],
        centrings: np.ndarray,
        norm: float,
        cosine_scale: float | None,
    ) -> None:
        self._means, (self._of_units, self._of_features) = means, centre
        self._centrings, self._norm, self._is_cosine = centrings, norm, cosine_scale is not None
        self._factor = norm if cosine_scale is None else cosine_scale

    def rows(self, centring: float) -> np.ndarray:
        """Return the rows (k, d), `norm` long."""
        return self._norm * unit_length(self._means - centring * self._of_units)

    def best(self, images: ScoredFeatures, *, without_own: bool = False) -> np.ndarray:
        """Return the largest score of each image, (centrings, n); -inf where no other class is left."""
        found = np.empty((len(self._centrings), len(images)))
        for part in images.parts(len(self._means)):
            features = self._prepared(images.features(part))
            # Features are multiplied once, whatever the number of centrings.
            of_means, of_centre = features @ self._means.T, features @ self._of_units
            for number, centring in enumerate(self._centrings):
                lengths = np.linalg.norm(self._means - centring * self._of_units, axis=1)
                scores = of_means - centring * of_centre[:, None]
                scores *= self._factor / np.maximum(lengths, _TINY)
                if without_own:
                    scores[np.arange(len(scores)), images.labels[part]] = -np.inf
                found[number, part] = scores.max(axis=1)
        return found

    def without_itself(self, shots: ScoredFeatures, counts: np.ndarray) -> np.ndarray:
        """Return the score of each shot's own class, (centrings, n), whose mean the shot took no part in."""
        own = np.empty((len(self._centrings), len(shots)))
        for part in shots.parts():
            features, labels = shots.features(part), shots.labels[part]
            num = counts[labels][:, None]
            means = (self._means[labels] * num - unit_length(features)) / (num - 1)
            features = self._prepared(features)
            for number, centring in enumerate(self._centrings):
                rows = unit_length(means - centring * self._of_units)
                own[number, part] = self._factor * (features * rows).sum(axis=1)
        return own

    def _prepared(self, features: np.ndarray) -> np.ndarray:
        return unit_length(features) if self._is_cosine else features - self._of_features


def _choose_shift(
    won_from: np.ndarray,
    won_shares: np.ndarray,
    lost_from: np.ndarray,
    lost_shares: np.ndarray,
    num_old: int,
    max_loss: float,
    *,
    free: bool,
    matched: bool,
) -> tuple[float, float, float, float]:
    """Return (gain, shift, lost, won) of the best shift; of 0 where it is not free.

    An image is won, or lost, once the shift is above its place in `won_from` or `lost_from`.
    """
    places = np.unique(np.concatenate([won_from[np.isfinite(won_from)], lost_from]))
    if not free or not len(places):
        shifts = np.zeros(1)
    else:
        shifts = np.concatenate([places[:1] - 1, (places[1:] + places[:-1]) / 2, places[-1:] + 1])
    won, lost = _sums_below(won_from, won_shares, shifts), _sums_below(lost_from, lost_shares, shifts)
    allowed = lost + np.sqrt(lost * (1 - lost).clip(0) / max(1, num_old)) <= max_loss
    if not num_old:
        gain = -np.abs(won - 0.5) if matched else np.full(len(shifts), -np.inf)
    elif not len(won_from):
        gain = np.where(lost <= max_loss / 2, lost, -1 - lost) if matched else np.full(len(shifts), -np.inf)
    else:
        # Where nothing is allowed, the least loss is the best.
        gain = np.where(allowed, won - lost, -1 - lost)
    best = int(np.argmax(gain))
    return float(gain[best]), float(shifts[best]), float(lost[best]), float(won[best])


def _sums_below(places: np.ndarray, shares: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    order = np.argsort(places)
    return np.concatenate([[0.0], np.cumsum(shares[order])])[np.searchsorted(places[order], shifts)]


def _class_means(shots: ScoredFeatures) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean unit features (k, d) and which classes have one shot alone, (k,) bool."""
    counts = np.bincount(shots.labels)
    sums = np.zeros((len(counts), shots.source.shape[1]))
    for part in shots.parts():
        np.add.at(sums, shots.labels[part], unit_length(shots.features(part)))
    return sums / counts[:, None], counts == 1


def _centre(old: ScoredFeatures | None, shots: ScoredFeatures, means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the means of unit features and of features over old images; over the shots where there are none."""
    images = shots if old is None else old
    if old is None and len(means) == 1:
        return np.zeros(means.shape[1]), np.zeros(means.shape[1])  # a class less its own mean would be nothing
    sums = np.zeros((2, means.shape[1]))
    for part in images.parts():
        features = images.features(part)
        sums += np.stack([unit_length(features).sum(axis=0), features.sum(axis=0)])
    return sums[0] / len(images), sums[1] / len(images)
