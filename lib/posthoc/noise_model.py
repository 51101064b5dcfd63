"""The probability that a label is wrong, from out-of-fold logits of the K best classes; memory O(n K).

The model of label y of an image x whose true class is j:

    P(j | x) = softmax(tau z + beta s + gamma log v)_j, of ClassProbabilities
    P(y | j) = 1 - r_j           if y = j
               r_j q(y | j)      otherwise

EM finds the rate r_j of wrong labels of each class, the confusions q(y | j), tau, beta and gamma; the posterior of j
given x and y is the result. It is a soft form of confident learning (Northcutt, Jiang, Chuang, JAIR 2021), which adds 1
to the count of the pair (y, j) if the probability of j exceeds the mean of class j on its own images. Here the
classifier is calibrated instead of compared with a threshold per class, which flags small classes as a whole.
"""

import numpy as np
import torch

from lib.posthoc.class_probabilities import CHUNK, FIRST, NEVER, ClassProbabilities
from lib.posthoc.out_of_fold import Candidates

LEAST_IMAGES = 3  # of a class whose labels are judged
RATE_PRIORS = (5.0, 10.0, 20.0, 40.0, 80.0)  # images that the rate of a class may be worth beforehand

_NUM_FOR_STEP = 50_000  # images
_PAIR_PRIOR = 20.0  # images that a row of confusions is worth beforehand
_NUM_COUNTS = 2  # of votes
_NUM_FIXED, _MIN_STEPS, _MIN_AFTER_COUNT, _MAX_STEPS, _TOLERANCE = 4, 9, 4, 60, 1e-5
_TINY = 1e-30


class NoiseModel:
    """The model of the head of this file, fitted by EM to the images that can be judged.

    Each image is left out of the confusions that it is judged by. A confusion without another example has the
    probability of its prior: a mixture of any class, and of classes between which the classifier is in doubt.

    Attributes:
        is_judged: (n,) bool: the class of the label has LEAST_IMAGES images or more, and the logits are finite.
        error: (n,) float32 posterior probability that the label is wrong; 0 where not judged.
        rate: mean of the errors.
        class_rate: (num_classes,) r of the module.
        rate_prior: images that the rate of a class is worth beforehand, one of RATE_PRIORS.
        likeness: weight of classes that look alike in the prior of confusions.
    """

    def __init__(self, candidates: Candidates) -> None:
        self._given, n = candidates, len(candidates)
        finite = np.isfinite(candidates.log_sum) & np.isfinite(candidates.log_sum_2) & (candidates.own > NEVER)
        sizes = np.bincount(candidates.labels, minlength=candidates.num_classes)
        self.is_judged = finite & (sizes[candidates.labels] >= LEAST_IMAGES) & (candidates.num_classes > 1)
        self._chunks = [slice(start, start + CHUNK) for start in range(0, n, CHUNK)]
        self._uniform = 1 / max(1, candidates.num_classes - 1)
        self._step, self.rate, self.likeness = FIRST, 0.1, 0.5
        self.class_rate = np.full(candidates.num_classes, self.rate, np.float32)
        self.rate_prior = RATE_PRIORS[-1]
        self.error = np.zeros(n, np.float32)
        self._posterior = np.zeros(candidates.classes.shape, np.float32)
        self._predicted = ClassProbabilities(candidates)
        self._pair, num_pairs = _repeated_pairs(candidates)
        self._pair_sum, self._class_sum = np.zeros(num_pairs), np.zeros(candidates.num_classes)
        self._alike = self._soft_confusions()
        judged = np.flatnonzero(self.is_judged)
        if len(judged) > _NUM_FOR_STEP:
            judged = np.sort(np.random.default_rng(0).choice(judged, _NUM_FOR_STEP, replace=False))
        self._sample = judged

    @property
    def weights(self) -> tuple[float, float, float]:
        """The inverse temperature tau, and the factors beta of similarities and gamma of the votes of neighbors."""
        return self._predicted.weights(self._step)

    @property
    def agreement(self) -> np.ndarray:
        """Fraction of the votes of neighbors for each label, (n,) float32; nan without neighbors."""
        return self._predicted.votes_for_labels()

    def fit(self) -> list[float]:
        """Run EM, count the votes of neighbors by the probability that their labels are right, and run it again, twice.

        EM ends when the mean log-likelihood of the labels changes by less than 1e-5.

        Returns:
            The mean log-likelihood before each step.
        """
        history = self._run(num_fixed=_NUM_FIXED, min_steps=_MIN_STEPS)
        for _ in range(_NUM_COUNTS if history else 0):
            if self._predicted.count_votes(1 - self.error):
                history += self._run(num_fixed=0, min_steps=_MIN_AFTER_COUNT)
        return history

    def _run(self, num_fixed: int, min_steps: int) -> list[float]:
        """Run EM; the weights are those of before for `num_fixed` steps."""
        history: list[float] = []
        while self.is_judged.any() and len(history) < _MAX_STEPS:
            if len(history) >= num_fixed:
                self._improve_weights()
            history.append(self.step())
            if len(history) > min_steps and abs(history[-1] - history[-2]) < _TOLERANCE:
                break
        return history

    def step(self) -> float:
        """Compute the posterior, then rates and confusions from it; return the mean log-likelihood before."""
        pair_sum, class_sum = np.zeros_like(self._pair_sum), np.zeros_like(self._class_sum)
        right_sum, total, any_class, alike = np.zeros_like(self._class_sum), 0.0, 0.0, 0.0
        for part in self._chunks:
            labels, classes = self._given.labels[part], self._given.classes[part]
            prior, strength = self._prior(part)
            right, wrong, elsewhere, spread = self._joint(part)
            whole = np.maximum(right + wrong.sum(axis=1) + elsewhere, _TINY)
            judged = self.is_judged[part]
            wrong = np.where(judged[:, None], wrong / whole[:, None], 0)
            self.error[part] = np.where(judged, 1 - right / whole, 0).clip(0, 1)
            total += np.log(whole[judged], dtype=np.float64).sum()
            from_prior = wrong * (_PAIR_PRIOR / (strength * np.maximum(spread, _TINY)))
            is_alike = from_prior * self.likeness * self._alike[part]
            alike += is_alike.sum(dtype=np.float64)
            any_class += (from_prior * prior - is_alike).sum(dtype=np.float64)
            any_class += (elsewhere / whole)[judged].sum(dtype=np.float64)
            np.add.at(pair_sum, self._pair[part].ravel(), wrong.ravel())
            class_sum += np.bincount(classes.ravel(), wrong.ravel(), len(class_sum))
            right_sum += np.bincount(labels, np.where(judged, 1 - self.error[part], 0), len(class_sum))
            self._posterior[part] = wrong
        pair_sum[0] = 0
        self._pair_sum, self._class_sum = pair_sum, class_sum
        num_judged = int(self.is_judged.sum())
        self.rate = float(self.error.sum(dtype=np.float64)) / num_judged
        self._update_rates(class_sum, right_sum)
        self.likeness = float((alike + 1e-3) / (alike + any_class + 2e-3))
        return float(total / num_judged)

    def proposals(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the most likely class other than the label (n,) int32, -1 for none, and its probability (n,)."""
        best, every = self._posterior.argmax(axis=1), np.arange(len(self._posterior))
        probability = self._posterior[every, best]
        return np.where(probability > 0, self._given.classes[every, best], -1).astype(np.int32), probability

    def _improve_weights(self) -> None:
        """Take the next higher or lower tau, beta or gamma where it predicts the true classes of the sample better.

        Their posterior is the target, as in the M step of EM: the likelihood of the labels would rather take noise for
        doubt of the classifier, at a low tau.
        """
        self._step = max(self._predicted.steps_around(self._step), key=self._fit_of)

    def _fit_of(self, step: tuple[int, int, int]) -> float:
        """Return the expected log-likelihood of the true classes of the sample at a step of the weights."""
        total, weights = 0.0, self._predicted.weights(step)
        for rows in np.array_split(self._sample, max(1, len(self._sample) // CHUNK)):
            wrong, right = self._posterior[rows], 1 - self.error[rows]
            target = wrong, right, np.maximum(1 - right - wrong.sum(axis=1), 0)
            for mass, predicted in zip(target, self._predicted.at(rows, weights), strict=True):
                total += float((mass * np.log(np.maximum(predicted, _TINY))).sum())
        return total

    def _joint(self, rows: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return P(y, true class | x): the label (m,), each other candidate (m, K), any further class (m,); and q."""
        likely, own, rest = self._predicted.at(rows, self.weights)
        labels, classes = self._given.labels[rows], self._given.classes[rows]
        prior, strength = self._prior(rows)
        spread = (self._others(rows) + _PAIR_PRIOR * prior) / strength
        right = (1 - self.class_rate[labels]) * own
        wrong = self.class_rate[classes] * likely * spread
        return right, wrong, rest * (self.rate * (1 - self.likeness) * self._uniform), spread

    def _update_rates(self, wrong: np.ndarray, right: np.ndarray) -> None:
        """Compute the rates from the images of each true class whose labels are wrong and right, (num_classes,) each.

        The rate of all is the mean of a beta distribution of rates; how many images it is worth makes the counts
        likeliest: few if noise is concentrated in some classes.
        """
        mean = np.clip(self.rate, 1e-4, 1 - 1e-4)
        fits = [
            _log_beta(wrong + images * mean, right + images * (1 - mean)).sum()
            - len(wrong) * _log_beta(images * mean, images * (1 - mean))
            for images in RATE_PRIORS
        ]
        self.rate_prior = RATE_PRIORS[int(np.argmax(fits))]
        rate = (wrong + self.rate_prior * self.rate) / (wrong + right + self.rate_prior)
        self.class_rate = rate.astype(np.float32)

    def _others(self, rows: slice | np.ndarray) -> np.ndarray:
        """Return the number of other images with this label and true class, (m, K)."""
        return np.maximum(self._pair_sum[self._pair[rows]] - self._posterior[rows], 0).astype(np.float32)

    def _prior(self, rows: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the prior of q and the number of other images, with the prior's, of its row; (m, K) each."""
        prior = (1 - self.likeness) * self._uniform + self.likeness * self._alike[rows]
        others = self._class_sum[self._given.classes[rows]] - self._posterior[rows]
        return prior, (np.maximum(others, 0) + _PAIR_PRIOR).astype(np.float32)

    def _soft_confusions(self) -> np.ndarray:
        """Return q by the classifier's doubts, (n, K) float32: the mass of j on images labeled y over all mass of j."""
        alike = np.zeros_like(self._posterior)
        pair_sum, class_sum = np.zeros_like(self._pair_sum), np.zeros_like(self._class_sum)
        for part in self._chunks:
            likely, own, rest = self._predicted.at(part, (1.0, 0.0, 0.0))
            self.is_judged[part] &= np.isfinite(likely.sum(axis=1) + own + rest)
            alike[part] = np.where(self.is_judged[part, None], likely, 0)
            np.add.at(pair_sum, self._pair[part].ravel(), alike[part].ravel())
            np.add.at(class_sum, self._given.classes[part].ravel(), alike[part].ravel())
        pair_sum[0] = 0
        for part in self._chunks:
            others = np.maximum(pair_sum[self._pair[part]] - alike[part], 0)
            mass = np.maximum(class_sum[self._given.classes[part]] - alike[part], 1e-9)
            alike[part] = np.minimum(others / mass, 1)
        return alike


def _log_beta(a: np.ndarray | float, b: np.ndarray | float) -> np.ndarray:
    """Return the logarithm of the beta function."""
    first, second = torch.as_tensor(a), torch.as_tensor(b)
    return (first.lgamma() + second.lgamma() - (first + second).lgamma()).numpy()


def _repeated_pairs(candidates: Candidates) -> tuple[np.ndarray, int]:
    """Number the pairs (candidate, label) that several images have from 1; (n, K) int32, 0 for others; and one more."""
    keys = candidates.classes.astype(np.int64).ravel()
    keys *= candidates.num_classes
    keys += np.repeat(candidates.labels, candidates.classes.shape[1])
    order = np.argsort(keys, kind='stable')
    keys = keys[order]
    is_first = np.r_[True, keys[1:] != keys[:-1]] if len(keys) else np.zeros(0, bool)
    is_repeated = ~is_first
    is_repeated[:-1] |= ~is_first[1:]
    numbers = np.cumsum(is_first & is_repeated, dtype=np.int32)
    pair = np.zeros(len(keys), np.int32)
    pair[order] = np.where(is_repeated, numbers, 0)
    return pair.reshape(candidates.classes.shape), int(numbers.max(initial=0)) + 1
