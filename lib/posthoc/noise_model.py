"""The probability that a label is wrong, from out-of-fold logits of the K best classes; memory O(n K).

The model of label y of an image x whose true class is j, with logits z of a classifier and cosine similarities s to the
means of classes, both fitted without the image:

    P(j | x) = softmax(tau z + beta s)_j
    P(y | j) = 1 - r_j           if y = j
               r_j q(y | j)      otherwise

EM finds the rate r_j of wrong labels of each class, the confusions q(y | j), tau and beta; the posterior of j given x
and y is the result. It is a soft form of confident learning (Northcutt, Jiang, Chuang, JAIR 2021), which adds 1 to
the count of the pair (y, j) if the probability of j exceeds the mean of class j on its own images. Here the classifier
is calibrated instead of compared with a threshold per class, which flags small classes as a whole.
"""

import numpy as np

from lib.posthoc.out_of_fold import Candidates

LEAST_IMAGES = 3  # of a class whose labels are judged
RATE_PRIOR = 30.0  # images that the rate of a class is worth beforehand

_TEMPERATURES = np.geomspace(0.25, 8, 31)  # tau
_WEIGHTS = np.r_[0:12:1.0, 12:41:4.0]  # beta
_FIRST = 18  # tau = 2: a low one explains wrong labels as doubt of the classifier, from where EM does not come back
_NUM_FOR_STEP = 50_000  # images
_PAIR_PRIOR = 20.0  # images that a row of confusions is worth beforehand
_NUM_FIXED, _MIN_STEPS, _MAX_STEPS, _TOLERANCE = 4, 9, 60, 1e-5
_ROWS = 1 << 16  # images at a time
_NEVER = -1e29  # logits below it belong to classes without images
_LEAST_LOGIT = -1e4  # below the largest one
_TINY = 1e-30


class NoiseModel:
    """The model of the head of this file, fitted by EM to the images that can be judged.

    Each image is left out of the confusions that it is judged by. A confusion without another example has the
    probability of its prior: a mixture of any class, and of classes between which the classifier is in doubt.

    Attributes:
        is_judged: (n,) bool: the class of the label has LEAST_IMAGES images or more, and the logits are finite.
        error: (n,) float32 posterior probability that the label is wrong; 0 where not judged.
        rate: mean of it.
        class_rate: (num_classes,) r of the module.
        likeness: weight of classes that look alike in the prior of confusions.
    """

    def __init__(self, candidates: Candidates) -> None:
        self._given, n = candidates, len(candidates)
        finite = np.isfinite(candidates.log_sum) & np.isfinite(candidates.log_sum_2) & (candidates.own > _NEVER)
        sizes = np.bincount(candidates.labels, minlength=candidates.num_classes)
        self.is_judged = finite & (sizes[candidates.labels] >= LEAST_IMAGES) & (candidates.num_classes > 1)
        self._chunks = [slice(start, start + _ROWS) for start in range(0, n, _ROWS)]
        self._uniform = 1 / max(1, candidates.num_classes - 1)
        self._step, self.rate, self.likeness = (_FIRST, 0), 0.1, 0.5
        self.class_rate = np.full(candidates.num_classes, self.rate, np.float32)
        self.error = np.zeros(n, np.float32)
        self._posterior = np.zeros(candidates.classes.shape, np.float32)
        self._top, self._rest = np.zeros(n, np.float32), np.zeros((2, n), np.float32)
        for part in self._chunks:
            self._measure_rest(part)
        self._has_similarities = bool(np.isfinite(candidates.similarities).any())
        self._pair, num_pairs = _repeated_pairs(candidates)
        self._pair_sum, self._class_sum = np.zeros(num_pairs), np.zeros(candidates.num_classes)
        self._alike = self._soft_confusions()
        judged = np.flatnonzero(self.is_judged)
        if len(judged) > _NUM_FOR_STEP:
            judged = np.sort(np.random.default_rng(0).choice(judged, _NUM_FOR_STEP, replace=False))
        self._sample = judged

    @property
    def temperature(self) -> float:
        """The inverse temperature tau."""
        return float(_TEMPERATURES[self._step[0]])

    @property
    def similarity_weight(self) -> float:
        """The factor beta of similarities."""
        return float(_WEIGHTS[self._step[1]])

    def fit(self) -> list[float]:
        """Run EM until the mean log-likelihood of the labels grows by less than 1e-5; return it for each step."""
        history: list[float] = []
        while self.is_judged.any() and len(history) < _MAX_STEPS:
            if len(history) >= _NUM_FIXED:
                self._improve_step()
            history.append(self.step())
            if len(history) > _MIN_STEPS and abs(history[-1] - history[-2]) < _TOLERANCE:
                break
        return history

    def step(self) -> float:
        """Compute the posterior, then rates and confusions from it; return the mean log-likelihood before."""
        pair_sum, class_sum = np.zeros_like(self._pair_sum), np.zeros_like(self._class_sum)
        right_sum, total, any_class, alike = np.zeros_like(self._class_sum), 0.0, 0.0, 0.0
        for part in self._chunks:
            labels, classes = self._given.labels[part], self._given.classes[part]
            prior, strength = self._prior(part)
            right, wrong, elsewhere, spread = self._joint(part, self._step)
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
        rate = (class_sum + RATE_PRIOR * self.rate) / (class_sum + right_sum + RATE_PRIOR)
        self.class_rate = rate.astype(np.float32)
        self.likeness = float((alike + 1e-3) / (alike + any_class + 2e-3))
        return float(total / num_judged)

    def proposals(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the most likely class other than the label (n,) int32, -1 for none, and its probability (n,)."""
        best, every = self._posterior.argmax(axis=1), np.arange(len(self._posterior))
        probability = self._posterior[every, best]
        return np.where(probability > 0, self._given.classes[every, best], -1).astype(np.int32), probability

    def _improve_step(self) -> None:
        """Take the next higher or lower tau or beta where it explains the labels of the sample better."""
        tau, beta = self._step
        steps = [self._step, (tau - 1, beta), (tau + 1, beta), (tau, beta - 1), (tau, beta + 1)]
        most = len(_TEMPERATURES), len(_WEIGHTS) if self._has_similarities else 1
        steps = [step for step in steps if all(0 <= number < end for number, end in zip(step, most, strict=True))]
        sums = np.zeros(len(steps))
        for rows in np.array_split(self._sample, max(1, len(self._sample) // _ROWS)):
            for number, step in enumerate(steps):
                right, wrong, elsewhere, _ = self._joint(rows, step)
                whole = np.maximum(right + wrong.sum(axis=1) + elsewhere, _TINY)
                sums[number] += np.log(whole, dtype=np.float64).sum()
        self._step = steps[int(sums.argmax())]

    def _joint(
        self, rows: slice | np.ndarray, step: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return P(y, true class | x): the label (m,), each other candidate (m, K), any further class (m,); and q."""
        likely, own, rest = self._probabilities(rows, _TEMPERATURES[step[0]], _WEIGHTS[step[1]])
        labels, classes = self._given.labels[rows], self._given.classes[rows]
        prior, strength = self._prior(rows)
        spread = (self._others(rows) + _PAIR_PRIOR * prior) / strength
        right = (1 - self.class_rate[labels]) * own
        wrong = self.class_rate[classes] * likely * spread
        return right, wrong, rest * (self.rate * (1 - self.likeness) * self._uniform), spread

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
            likely, own, rest = self._probabilities(part, 1.0, 0.0)
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

    def _measure_rest(self, part: slice) -> None:
        """Store the log-sums at tau = 1 and 2 of the classes that are neither a candidate nor the label."""
        logits, own = self._known(part)
        top = np.maximum(logits.max(axis=1), own)
        top = np.where(np.isfinite(top), top, 0)
        self._top[part] = top
        for number, log_sum in enumerate((self._given.log_sum, self._given.log_sum_2)):
            tau = number + 1
            whole = np.exp(log_sum[part].astype(np.float64) - tau * top)
            known = np.exp(tau * (logits - top[:, None])).sum(axis=1) + np.exp(tau * (own - top))
            self._rest[number, part] = np.log(np.maximum(whole - known, 1e-9))

    def _known(self, rows: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the logits of the candidates, -inf for the label's class, and those of the label, float64."""
        given = self._given
        is_other = (given.classes[rows] != given.labels[rows, None]) & (given.logits[rows] > _NEVER)
        return np.where(is_other, given.logits[rows], -np.inf).astype(np.float64), given.own[rows].astype(np.float64)

    def _probabilities(
        self, rows: slice | np.ndarray, tau: float, beta: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return softmax(tau z + beta s) of the candidates but the label (m, K), the label (m,), and all others (m,).

        The log-sum of the other classes is log(number) at tau = 0 and known at 1 and 2: a parabola, which is exact for
        logits with a normal distribution, bounded by all of them being as large as the last candidate's.
        Their similarity is taken to be the least of the candidates.
        """
        top = self._top[rows].astype(np.float64)
        logits, own = self._known(rows)
        logits, own = logits - top[:, None], own - top
        number = self._given.num_classes - 1 - np.isfinite(logits).sum(axis=1)
        zero = np.log(np.maximum(number, 1))
        last = np.clip(self._given.logits[rows, -1] - top, _LEAST_LOGIT, 0)
        one = np.minimum(self._rest[0, rows], zero + last)
        two = np.clip(self._rest[1, rows], 2 * one - zero, np.maximum(one + last, 2 * one - zero))
        curve = (two - 2 * one + zero) / 2
        log_rest = np.minimum(zero + tau * (one - zero - curve) + tau * tau * curve, zero + tau * last)
        if tau > 2:
            log_rest = np.minimum(log_rest, two + (tau - 2) * last)
        likely, is_label = tau * logits, tau * own
        if beta:
            similar = np.nan_to_num(self._given.similarities[rows])
            own_similarity = self._given.own_similarity[rows]
            own_similarity = np.where(np.isnan(own_similarity), similar.min(axis=1), own_similarity)
            most = np.maximum(similar.max(axis=1), own_similarity)
            likely += beta * (similar - most[:, None])
            is_label += beta * (own_similarity - most)
            log_rest += beta * (similar.min(axis=1) - most)
        likely, is_label = np.exp(likely), np.exp(is_label)
        rest = np.where(number > 0, np.exp(log_rest), 0)
        whole = likely.sum(axis=1) + is_label + rest
        return likely / whole[:, None], is_label / whole, rest / whole


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
