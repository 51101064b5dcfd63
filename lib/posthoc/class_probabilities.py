"""The probability of each class of an image, from all that is known without the image and its label; memory O(n K).

With logits z of a classifier, cosine similarities s to the means of classes, and fractions v of the votes of neighbors:

    P(j | x) = softmax(tau z + beta s + gamma log v)_j
"""

import numpy as np

from lib.posthoc.class_neighbors import log_votes, votes_for_classes
from lib.posthoc.out_of_fold import Candidates

_GRID = (np.geomspace(0.25, 8, 31), np.r_[0:12:1.0, 12:41:4.0], np.arange(0, 3.1, 0.25))  # tau, beta, gamma
FIRST = (18, 0, 0)  # tau = 2: a low one explains wrong labels as doubt of the classifier, from where EM does not return
CHUNK = 1 << 16  # images at a time
NEVER = -1e29  # logits below it belong to classes without images
_LEAST_LOGIT = -1e4  # below the largest one


class ClassProbabilities:
    """P(j | x) of the candidates and the labels of n images, at any weights tau, beta and gamma.

    Weights are steps on a grid, so that they can be improved a step at a time.
    """

    def __init__(self, candidates: Candidates) -> None:
        self._candidates, n = candidates, len(candidates)
        self._votes = np.zeros((n, 0), np.float16)
        self._has_similarities = bool(np.isfinite(candidates.similarities).any())
        self._top, self._rest = np.zeros(n, np.float32), np.zeros((2, n), np.float32)
        for start in range(0, n, CHUNK):
            self._measure_rest(slice(start, start + CHUNK))

    def count_votes(self, trust: np.ndarray) -> bool:
        """Count the votes of neighbors, each by the trust (n,) in its label; return False without neighbors."""
        given = self._candidates
        if given.neighbors.shape[1]:
            near = given.neighbors, given.neighbor_similarities
            self._votes = votes_for_classes(*near, given.labels, given.classes, trust)
        return bool(given.neighbors.shape[1])

    def votes_for_labels(self) -> np.ndarray:
        """Return the fraction of the votes of neighbors for each label, (n,) float32; nan without neighbors."""
        if not self._votes.size:
            return np.full(len(self._votes), np.nan, np.float32)
        return np.where(self._candidates.neighbors[:, 0] < 0, np.nan, self._votes[:, -1]).astype(np.float32)

    def weights(self, step: tuple[int, int, int]) -> tuple[float, float, float]:
        """Return tau, beta and gamma at a step of the grid."""
        tau, beta, gamma = (float(values[number]) for values, number in zip(_GRID, step, strict=True))
        return tau, beta, gamma

    def steps_around(self, step: tuple[int, int, int]) -> list[tuple[int, int, int]]:
        """Return this step and those with another weight of one kind; similarities and votes only if there are any."""
        tau, beta, gamma = step
        steps = [(tau + d, beta, gamma) for d in (0, -1, 1)]
        steps += [(tau, beta + d, gamma) for d in (-1, 1)] if self._has_similarities else []
        steps += [(tau, beta, gamma + d) for d in (-1, 1)] if self._votes.size else []
        lengths = tuple(len(values) for values in _GRID)
        return [step for step in steps if all(0 <= at < end for at, end in zip(step, lengths, strict=True))]

    def at(
        self, rows: slice | np.ndarray, weights: tuple[float, float, float]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return P(j | x) of the candidates but the label (m, K), of the label (m,), and of all others together (m,).

        The log-sum of the other classes is log(number) at tau = 0 and known at 1 and 2: a parabola, which is exact for
        logits with a normal distribution, bounded by all of them being as large as the last candidate's.
        Their similarity is taken to be the least of the candidates, and they have no votes.

        Args:
            rows: m images.
            weights: tau, beta and gamma of the module.
        """
        tau, beta, gamma = weights
        top = self._top[rows].astype(np.float64)
        logits, own = self._known(rows)
        logits, own = logits - top[:, None], own - top
        number = self._candidates.num_classes - 1 - np.isfinite(logits).sum(axis=1)
        zero = np.log(np.maximum(number, 1))
        last = np.clip(self._candidates.logits[rows, -1] - top, _LEAST_LOGIT, 0)
        one = np.minimum(self._rest[0, rows], zero + last)
        two = np.clip(self._rest[1, rows], 2 * one - zero, np.maximum(one + last, 2 * one - zero))
        curve = (two - 2 * one + zero) / 2
        log_rest = np.minimum(zero + tau * (one - zero - curve) + tau * tau * curve, zero + tau * last)
        if tau > 2:
            log_rest = np.minimum(log_rest, two + (tau - 2) * last)
        likely, is_label = tau * logits, tau * own
        if beta:
            similar = np.nan_to_num(self._candidates.similarities[rows])
            own_similarity = self._candidates.own_similarity[rows]
            own_similarity = np.where(np.isnan(own_similarity), similar.min(axis=1), own_similarity)
            most = np.maximum(similar.max(axis=1), own_similarity)
            likely += beta * (similar - most[:, None])
            is_label += beta * (own_similarity - most)
            log_rest += beta * (similar.min(axis=1) - most)
        if gamma:
            votes = gamma * log_votes(self._votes[rows])
            most = votes.max(axis=1)
            likely += votes[:, :-1] - most[:, None]
            is_label += votes[:, -1] - most
            log_rest += gamma * log_votes(np.zeros(1, np.float16)) - most
        likely, is_label = np.exp(likely), np.exp(is_label)
        rest = np.where(number > 0, np.exp(log_rest), 0)
        whole = likely.sum(axis=1) + is_label + rest
        return likely / whole[:, None], is_label / whole, rest / whole

    def _measure_rest(self, part: slice) -> None:
        """Store the log-sums at tau = 1 and 2 of the classes that are neither a candidate nor the label."""
        logits, own = self._known(part)
        top = np.maximum(logits.max(axis=1), own)
        top = np.where(np.isfinite(top), top, 0)
        self._top[part] = top
        for number, log_sum in enumerate((self._candidates.log_sum, self._candidates.log_sum_2)):
            tau = number + 1
            whole = np.exp(log_sum[part].astype(np.float64) - tau * top)
            known = np.exp(tau * (logits - top[:, None])).sum(axis=1) + np.exp(tau * (own - top))
            self._rest[number, part] = np.log(np.maximum(whole - known, 1e-9))

    def _known(self, rows: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the logits of the candidates, -inf for the label's class, and those of the label, float64."""
        given = self._candidates
        is_other = (given.classes[rows] != given.labels[rows, None]) & (given.logits[rows] > NEVER)
        return np.where(is_other, given.logits[rows], -np.inf).astype(np.float64), given.own[rows].astype(np.float64)
