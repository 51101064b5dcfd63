"""Samplers: the rows of an epoch, in order, as a pure function of (seed, epoch).

Plans made of plans: pairs of images from two samplers, or each image several times.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lib.dataset.index import ClassIndex, order_by_class
from lib.errors import UserError
from lib.runtime.seeding import Purpose, generator

ClassWeights = Callable[[np.ndarray, float], np.ndarray]
_STEPS_AN_EDGE = 8


def instance_balance(counts: np.ndarray, progress: float) -> np.ndarray:
    """Every image equally often: p_c = n_c / N."""
    return counts.astype(np.float64)


def class_balance(counts: np.ndarray, progress: float) -> np.ndarray:
    """Every class equally often (Kang et al., ICLR 2020, eq. 1 with q = 0)."""
    return (counts > 0).astype(np.float64)


def square_root(counts: np.ndarray, progress: float) -> np.ndarray:
    """p_c in proportion to sqrt(n_c) (Mahajan et al., ECCV 2018; Kang et al., eq. 1 with q = 1/2)."""
    return np.sqrt(counts.astype(np.float64))


def reverse(counts: np.ndarray, progress: float) -> np.ndarray:
    """p_c in proportion to N_max / n_c: the rarer, the more often (Zhou et al., CVPR 2020, eq. 6)."""
    return np.divide(counts.max(), counts, out=np.zeros(len(counts)), where=counts > 0)


def progressive(counts: np.ndarray, progress: float) -> np.ndarray:
    """From instance to class balance over the run: (1 - t) p_instance + t p_class (Kang et al., eq. 2)."""
    by_instance = instance_balance(counts, progress) / counts.sum()
    by_class = class_balance(counts, progress) / (counts > 0).sum()
    return (1 - progress) * by_instance + progress * by_class


def effective_number(counts: np.ndarray, progress: float, beta: float = 0.9999) -> np.ndarray:
    """An image is drawn in proportion to (1 - beta) / (1 - beta^n_c) (Cui et al., CVPR 2019, eq. 3).

    So p_c is in proportion to n_c (1 - beta) / (1 - beta^n_c): instance balance at beta 0, class balance near 1.
    """
    counts = counts.astype(np.float64)
    # 1 - beta^n, without cancellation where beta is near 1.
    missing = -np.expm1(counts * np.log(beta)) if beta > 0 else np.ones(len(counts))
    return np.divide(counts * (1 - beta), missing, out=np.zeros(len(counts)), where=counts > 0)


def repeat_factor(counts: np.ndarray, progress: float, threshold: float = 0.001) -> np.ndarray:
    """p_c in proportion to n_c r_c with r_c = max(1, sqrt(t / f_c)), f_c = n_c / N (LVIS: Gupta et al., CVPR 2019)."""
    counts = counts.astype(np.float64)
    frequency = np.maximum(counts, 1) / counts.sum()
    return counts * np.maximum(1, np.sqrt(threshold / frequency))


@dataclass(frozen=True)
class Sampler:
    """Draws as many rows an epoch as there are images.

    Attributes:
        weights: (class counts, progress from 0 to 1) -> weight of each class, not normalised.
        index: which rows belong to which class.
        seed: of the run.
        max_epoch: epochs in the run, for samplers that change over it.
        evenly: spread the rows of a class over its images, instead of drawing each slot independently.
        stream: which of the epoch's plans this is: two samplers of one run draw independently by different numbers.
    """

    weights: ClassWeights
    index: ClassIndex
    seed: int
    max_epoch: int
    evenly: bool = False
    stream: int = 0

    def epoch_rows(self, epoch: int) -> np.ndarray:
        """Return (len(index),) int64 rows in the order of the epoch's slots.

        With instance balance each row comes once. Else a class is drawn for each slot independently by its
        probability, then an image of the class uniformly; or, evenly, each image comes a number of times that is its
        expected one rounded up or down at random.
        """
        random = generator(self.seed, Purpose.PLAN, epoch=epoch, attempt=self.stream)
        if self.weights is instance_balance:
            return random.permutation(self.index.rows)
        weights = self.weights(self.index.class_counts, min(1.0, epoch / max(1, self.max_epoch - 1)))
        return (_evenly if self.evenly else _independently)(self.index, weights, random)


def _independently(index: ClassIndex, weights: np.ndarray, random: np.random.Generator) -> np.ndarray:
    edges = np.cumsum(weights)
    drawn = _interval_of(random.random(len(index)) * edges[-1], edges)
    # Rounding may carry a draw to the very end, past the last class that has images.
    classes = np.minimum(drawn, np.flatnonzero(index.class_counts)[-1])
    place = (random.random(len(classes)) * index.class_counts[classes]).astype(np.int64)
    return index.by_class[index.starts[classes] + place].astype(np.int64)


def _interval_of(points: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return what np.searchsorted(edges, points, side='right') does, four times as fast for millions of points.

    A table over equal steps gives a first guess; only the few points that share their step with an edge are searched.
    """
    bounds = np.concatenate([[-np.inf], edges, [np.inf]])
    num_steps = _STEPS_AN_EDGE * len(edges)
    table = np.searchsorted(edges, np.arange(num_steps + 1) * (edges[-1] / num_steps), side='right')
    found = table[(points * (num_steps / edges[-1])).astype(np.int64)]
    wrong = np.flatnonzero((points < bounds[found]) | (points >= bounds[found + 1]))
    found[wrong] = np.searchsorted(edges, points[wrong], side='right')
    return found


def _evenly(index: ClassIndex, weights: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Systematic sampling: in random order the images lie side by side, each as long as it is expected to come; marks
    at distance 1 from a random start say how often it does. So the numbers of times add up to len(index) exactly.
    """
    counts = index.class_counts
    an_image = np.divide(weights, counts, out=np.zeros(len(counts)), where=counts > 0)
    rows = random.permutation(index.by_class)  # 32-bit, which makes shuffling faster; any order will do
    ends = np.cumsum(an_image[index.labels[rows]])
    ends *= len(rows) / ends[-1]
    marks = np.floor(ends + random.random()).astype(np.int64)
    marks[-1] = len(rows)  # whatever rounding made of it
    planned = np.repeat(rows, np.diff(marks, prepend=0))
    random.shuffle(planned)
    return planned.astype(np.int64)


@dataclass(frozen=True)
class SwitchingSampler:
    """One sampler up to an epoch, another from it on (two-stage training in one run)."""

    first: 'Sampler | ClassBatches'
    second: 'Sampler | ClassBatches'
    switch_epoch: int

    def epoch_rows(self, epoch: int) -> np.ndarray:
        """Return the rows of the sampler whose turn it is."""
        return (self.second if epoch >= self.switch_epoch else self.first).epoch_rows(epoch)


@dataclass(frozen=True)
class ClassBatches:
    """Batches of a few classes with several images each, as losses that compare images want them.

    Every class that has images comes equally often (give or take one), once a batch at most. A class hands out its
    images in a shuffled order, and begins it again when it is through: none comes twice in a batch unless the class is
    smaller than that. Images of one class stand side by side.

    Attributes:
        index: which rows belong to which class.
        seed: of the run.
        batch_size: images a batch.
        images_per_class: images of a class in a batch; divides batch_size.
    """

    index: ClassIndex
    seed: int
    batch_size: int
    images_per_class: int

    def __post_init__(self) -> None:
        """Raises: UserError when a batch would need more classes than there are."""
        present = np.count_nonzero(self.index.class_counts)
        if self._classes_per_batch > present:
            raise UserError(
                f'SAMPLER.IMAGES_PER_CLASS is {self.images_per_class}, so a batch of '
                f'{min(self.batch_size, len(self.index))} images needs {self._classes_per_batch} classes, but only '
                f'{present} have images; make it larger, or TRAIN.BATCH_SIZE smaller'
            )

    @property
    def _classes_per_batch(self) -> int:
        return -(-min(self.batch_size, len(self.index)) // self.images_per_class)

    def epoch_rows(self, epoch: int) -> np.ndarray:
        """Return (len(index),) int64 rows in the order of the epoch's slots."""
        random = generator(self.seed, Purpose.PLAN, epoch=epoch)
        index, each = self.index, self.images_per_class
        classes = np.flatnonzero(index.class_counts)
        num_turns = -(-len(index) // (each * self._classes_per_batch)) * self._classes_per_batch
        turns = _turns(classes, num_turns, self._classes_per_batch, random)
        # How many of its images a class has handed out before: every class comes once a round.
        before = np.arange(num_turns) // len(classes) * each
        places = (before[:, None] + np.arange(each)) % index.class_counts[turns][:, None]  # (num_turns, each)
        slots = (index.starts[turns][:, None] + places).ravel()[: len(index)]
        return _shuffled_in_classes(index, random)[slots].astype(np.int64)


def _turns(classes: np.ndarray, num_turns: int, per_batch: int, random: np.random.Generator) -> np.ndarray:
    """Return (num_turns,) classes: rounds of all of them, each shuffled, so that no batch has a class twice."""
    turns = np.empty(num_turns, np.int64)
    for start in range(0, num_turns, len(classes)):
        order = random.permutation(classes)
        begun = start % per_batch
        if begun:  # the round begins within a batch: classes that the batch has change places with later ones
            taken = np.isin(order, turns[start - begun : start])
            rest = per_batch - begun
            clashing, free = np.flatnonzero(taken[:rest]), rest + np.flatnonzero(~taken[rest:])
            free = free[: len(clashing)]
            order[clashing], order[free] = order[free], order[clashing]
        turns[start : start + len(order)] = order[: num_turns - start]
    return turns


def _shuffled_in_classes(index: ClassIndex, random: np.random.Generator) -> np.ndarray:
    """Return by_class with the rows of each class in random order."""
    rows = random.permutation(index.by_class)
    return rows[order_by_class(index.labels[rows], index.num_classes)]


class Plan(Protocol):
    """What gives an epoch its rows."""

    def epoch_rows(self, epoch: int) -> np.ndarray: ...


@dataclass(frozen=True)
class PairedSampler:
    """Pairs of one image from each of two plans: the first's in even slots, the second's in odd ones.

    Attributes:
        first, second: plans of one length; let them draw from different random streams, or they are not independent.
    """

    first: Plan
    second: Plan

    def epoch_rows(self, epoch: int) -> np.ndarray:
        """Return (2 * length,) int64 rows a0, b0, a1, b1, ..."""
        return np.stack([self.first.epoch_rows(epoch), self.second.epoch_rows(epoch)], axis=1).ravel()


@dataclass(frozen=True)
class RepeatedSampler:
    """Each row of a plan several times in a row: as many slots, so as many views of the image."""

    once: Plan
    times: int

    def epoch_rows(self, epoch: int) -> np.ndarray:
        """Return (times * length,) int64 rows a0, a0, a1, a1, ..."""
        return np.repeat(self.once.epoch_rows(epoch), self.times)
