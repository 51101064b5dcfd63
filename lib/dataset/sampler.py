"""Samplers: the rows of an epoch, in order, as a pure function of (seed, epoch).

A sampling rule maps class counts and the progress of the run to one weight per class; `Sampler` draws rows by these
weights. The other samplers switch between two samplers, fill batches class by class, or pair and repeat rows.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lib.dataset.index import ClassIndex, order_by_class
from lib.runtime.seeding import Purpose, generator

_STEPS_PER_EDGE = 8


class ClassWeights(Protocol):
    """A sampling rule.

    Args:
        counts: (num_classes,) int64, images per class.
        progress: from 0 in the first epoch to 1 in the last.

    Returns:
        (num_classes,) float64, not normalized; 0 for a class without images.
    """

    def __call__(self, counts: np.ndarray, progress: float) -> np.ndarray: ...


class EpochSampler(Protocol):
    """The interface of a sampler."""

    def epoch_rows(self, epoch: int) -> np.ndarray:
        """Return the rows of an epoch, int64, in the order of the epoch's slots."""


def instance_balance(counts: np.ndarray, progress: float) -> np.ndarray:
    """Draw every image equally often: p_c = n_c / N."""
    return counts.astype(np.float64)


def class_balance(counts: np.ndarray, progress: float) -> np.ndarray:
    """Draw every class equally often (Kang et al., ICLR 2020, eq. 1 with q = 0)."""
    return (counts > 0).astype(np.float64)


def square_root(counts: np.ndarray, progress: float) -> np.ndarray:
    """Draw classes in proportion to sqrt(n_c) (Mahajan et al., ECCV 2018; Kang et al., eq. 1 with q = 1/2)."""
    return np.sqrt(counts.astype(np.float64))


def reverse(counts: np.ndarray, progress: float) -> np.ndarray:
    """Draw classes in proportion to N_max / n_c, rare ones most often (Zhou et al., CVPR 2020, eq. 6)."""
    return np.divide(counts.max(), counts, out=np.zeros(len(counts)), where=counts > 0)


def progressive(counts: np.ndarray, progress: float) -> np.ndarray:
    """Move from instance to class balance over the run: (1 - t) p_instance + t p_class (Kang et al., eq. 2)."""
    by_instance = instance_balance(counts, progress) / counts.sum()
    by_class = class_balance(counts, progress) / (counts > 0).sum()
    return (1 - progress) * by_instance + progress * by_class


def effective_number(counts: np.ndarray, progress: float, beta: float = 0.9999) -> np.ndarray:
    """Draw images in proportion to (1 - beta) / (1 - beta^n_c) (Cui et al., CVPR 2019, eq. 3).

    Then p_c is proportional to n_c (1 - beta) / (1 - beta^n_c): instance balance at beta 0, class balance near 1.
    """
    counts = counts.astype(np.float64)
    # 1 - beta^n; expm1 avoids cancellation when beta is near 1.
    denominator = -np.expm1(counts * np.log(beta)) if beta > 0 else np.ones(len(counts))
    return np.divide(counts * (1 - beta), denominator, out=np.zeros(len(counts)), where=counts > 0)


def repeat_factor(counts: np.ndarray, progress: float, threshold: float = 0.001) -> np.ndarray:
    """Draw classes in proportion to n_c max(1, sqrt(t / f_c)), f_c = n_c / N (Gupta et al., CVPR 2019: LVIS)."""
    counts = counts.astype(np.float64)
    frequency = np.maximum(counts, 1) / counts.sum()
    return counts * np.maximum(1, np.sqrt(threshold / frequency))


@dataclass(frozen=True)
class Sampler:
    """Draws as many rows per epoch as there are images.

    Attributes:
        weights: the sampling rule.
        index: the rows of each class.
        seed: seed of the run.
        max_epoch: epochs in the run, for rules that change over it.
        systematic: draw by systematic sampling, so that the images of a class are repeated equally often; else each
            slot is drawn independently.
        stream: number of the random stream; two samplers of one run with different numbers draw independently.
    """

    weights: ClassWeights
    index: ClassIndex
    seed: int
    max_epoch: int
    systematic: bool = False
    stream: int = 0

    def epoch_rows(self, epoch: int) -> np.ndarray:
        """Return (len(index),) int64 rows in the order of the epoch's slots.

        With instance balance each row occurs once. Otherwise a class is drawn for each slot by its probability, then
        an image of the class uniformly. With systematic sampling each image occurs as often as expected, rounded up
        or down at random.
        """
        random = generator(self.seed, Purpose.PLAN, epoch=epoch, attempt=self.stream)
        if self.weights is instance_balance:
            return random.permutation(self.index.rows)
        weights = self.weights(self.index.class_counts, min(1.0, epoch / max(1, self.max_epoch - 1)))
        draw = _systematic_rows if self.systematic else _independent_rows
        return draw(self.index, weights, random)


def _independent_rows(index: ClassIndex, weights: np.ndarray, random: np.random.Generator) -> np.ndarray:
    edges = np.cumsum(weights)
    drawn = _interval_of(random.random(len(index)) * edges[-1], edges)
    # Rounding may place a draw beyond the last class that has images.
    classes = np.minimum(drawn, np.flatnonzero(index.class_counts)[-1])
    position_in_class = (random.random(len(classes)) * index.class_counts[classes]).astype(np.int64)
    return index.by_class[index.starts[classes] + position_in_class].astype(np.int64)


def _interval_of(points: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return np.searchsorted(edges, points, side='right'), four times as fast for millions of points.

    A table over equal steps gives a first guess; only the few points that share their step with an edge are searched.
    """
    bounds = np.concatenate([[-np.inf], edges, [np.inf]])
    num_steps = _STEPS_PER_EDGE * len(edges)
    table = np.searchsorted(edges, np.arange(num_steps + 1) * (edges[-1] / num_steps), side='right')
    intervals = table[(points * (num_steps / edges[-1])).astype(np.int64)]
    wrong = np.flatnonzero((points < bounds[intervals]) | (points >= bounds[intervals + 1]))
    intervals[wrong] = np.searchsorted(edges, points[wrong], side='right')
    return intervals


def _systematic_rows(index: ClassIndex, weights: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Draw rows by systematic sampling.

    The images are put in random order, each as an interval whose length is its expected number of draws. It is drawn
    once for every mark that falls into its interval; marks are at distance 1 from a random start. So the draws add up
    to len(index) exactly.
    """
    counts = index.class_counts
    draws_per_image = np.divide(weights, counts, out=np.zeros(len(counts)), where=counts > 0)
    rows = random.permutation(index.by_class)  # 32-bit rows are shuffled faster; any initial order is valid
    ends = np.cumsum(draws_per_image[index.labels[rows]])
    ends *= len(rows) / ends[-1]
    marks = np.floor(ends + random.random()).astype(np.int64)
    marks[-1] = len(rows)  # exact in spite of rounding
    repeated = np.repeat(rows, np.diff(marks, prepend=0))
    random.shuffle(repeated)
    return repeated.astype(np.int64)


@dataclass(frozen=True)
class SwitchingSampler:
    """One sampler before `switch_epoch`, another one from it on (deferred re-sampling: two stages in one run)."""

    first: EpochSampler
    second: EpochSampler
    switch_epoch: int

    def epoch_rows(self, epoch: int) -> np.ndarray:
        """Return the rows of the sampler that is active in this epoch."""
        return (self.second if epoch >= self.switch_epoch else self.first).epoch_rows(epoch)


class TooFewClasses(Exception):
    """A batch needs more classes than have images.

    Attributes:
        batch_size: images in the batch.
        num_needed, num_present: classes that the batch needs, and classes that have images.
    """

    def __init__(self, batch_size: int, num_needed: int, num_present: int) -> None:
        super().__init__(f'a batch of {batch_size} images needs {num_needed} classes, but {num_present} have images')
        self.batch_size, self.num_needed, self.num_present = batch_size, num_needed, num_present


@dataclass(frozen=True)
class ClassBatches:
    """Batches of a few classes with several images each, for losses that compare images with each other.

    Every class that has images occurs equally often (give or take one), at most once per batch. A class yields its
    images in a shuffled order and starts over when all are used: no image occurs twice in a batch unless its class has
    fewer than `images_per_class`. Images of one class are adjacent.

    Attributes:
        index: the rows of each class.
        seed: seed of the run.
        batch_size: images per batch.
        images_per_class: images of a class in a batch; divides batch_size.
    """

    index: ClassIndex
    seed: int
    batch_size: int
    images_per_class: int

    def __post_init__(self) -> None:
        """Raise TooFewClasses when a batch needs more classes than have images."""
        num_present = int(np.count_nonzero(self.index.class_counts))
        if self._classes_per_batch > num_present:
            raise TooFewClasses(min(self.batch_size, len(self.index)), self._classes_per_batch, num_present)

    @property
    def _classes_per_batch(self) -> int:
        return -(-min(self.batch_size, len(self.index)) // self.images_per_class)

    def epoch_rows(self, epoch: int) -> np.ndarray:
        """Return (len(index),) int64 rows in the order of the epoch's slots."""
        random = generator(self.seed, Purpose.PLAN, epoch=epoch)
        index, per_class = self.index, self.images_per_class
        classes = np.flatnonzero(index.class_counts)
        num_turns = -(-len(index) // (per_class * self._classes_per_batch)) * self._classes_per_batch
        turns = _turns(classes, num_turns, self._classes_per_batch, random)
        # Every class occurs once per round, so this many of its images were used in earlier rounds.
        num_used = np.arange(num_turns) // len(classes) * per_class
        positions = (num_used[:, None] + np.arange(per_class)) % index.class_counts[turns][:, None]
        slots = (index.starts[turns][:, None] + positions).ravel()[: len(index)]  # (num_turns * per_class,), cut
        return _shuffled_in_classes(index, random)[slots].astype(np.int64)


def _turns(classes: np.ndarray, num_turns: int, per_batch: int, random: np.random.Generator) -> np.ndarray:
    """Return (num_turns,) classes: shuffled rounds of all classes, without a class twice in one batch."""
    turns = np.empty(num_turns, np.int64)
    for start in range(0, num_turns, len(classes)):
        order = random.permutation(classes)
        num_in_batch = start % per_batch
        if num_in_batch:  # the round starts within a batch: swap classes that this batch already has with later ones
            repeated = np.isin(order, turns[start - num_in_batch : start])
            rest = per_batch - num_in_batch
            clashing, free = np.flatnonzero(repeated[:rest]), rest + np.flatnonzero(~repeated[rest:])
            free = free[: len(clashing)]
            order[clashing], order[free] = order[free], order[clashing]
        turns[start : start + len(order)] = order[: num_turns - start]
    return turns


def _shuffled_in_classes(index: ClassIndex, random: np.random.Generator) -> np.ndarray:
    """Return by_class with the rows of each class in random order."""
    rows = random.permutation(index.by_class)
    return rows[order_by_class(index.labels[rows], index.num_classes)]


@dataclass(frozen=True)
class PairedSampler:
    """Pairs of one row from each of two samplers: the first's in even slots, the second's in odd ones.

    Attributes:
        first, second: samplers of equal length; with different random streams, or they are not independent.
    """

    first: EpochSampler
    second: EpochSampler

    def epoch_rows(self, epoch: int) -> np.ndarray:
        """Return (2 * length,) int64 rows a0, b0, a1, b1, ..."""
        return np.stack([self.first.epoch_rows(epoch), self.second.epoch_rows(epoch)], axis=1).ravel()


@dataclass(frozen=True)
class RepeatedSampler:
    """Each row of a sampler `times` times in succession: as many slots, so as many views of the image."""

    sampler: EpochSampler
    times: int

    def epoch_rows(self, epoch: int) -> np.ndarray:
        """Return (times * length,) int64 rows a0, a0, a1, a1, ..."""
        return np.repeat(self.sampler.epoch_rows(epoch), self.times)
