"""Samplers: the rows of an epoch, in order, as a pure function of (seed, epoch)."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lib.dataset.index import ProductIndex
from lib.runtime.seeding import Purpose, generator

ClassWeights = Callable[[np.ndarray, float], np.ndarray]


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


@dataclass(frozen=True)
class Sampler:
    """Draws as many rows an epoch as there are images.

    Attributes:
        weights: (class counts, progress from 0 to 1) -> weight of each class, not normalised.
        index: which rows belong to which class.
        seed: of the run.
        max_epoch: epochs in the run, for samplers that change over it.
    """

    weights: ClassWeights
    index: ProductIndex
    seed: int
    max_epoch: int

    def plan(self, epoch: int) -> np.ndarray:
        """Return (len(index),) rows in the order of the epoch's slots.

        With instance balance each row comes once. Else a class is drawn for each slot independently by its
        probability, then an image of the class uniformly.
        """
        random = generator(self.seed, Purpose.PLAN, epoch=epoch)
        if self.weights is instance_balance:
            return random.permutation(self.index.rows)
        counts = self.index.class_counts
        progress = min(1.0, epoch / max(1, self.max_epoch - 1))
        edges = np.cumsum(self.weights(counts, progress))
        drawn = np.searchsorted(edges, random.random(len(self.index)) * edges[-1], side='right')
        # Rounding may carry a draw to the very end, past the last class that has images.
        classes = np.minimum(drawn, np.flatnonzero(counts)[-1])
        place = (random.random(len(classes)) * counts[classes]).astype(np.int64)
        return self.index.by_class[self.index.starts[classes] + place]


@dataclass(frozen=True)
class SwitchingSampler:
    """One sampler up to an epoch, another from it on (two-stage training in one run)."""

    first: Sampler
    second: Sampler
    switch_epoch: int

    def plan(self, epoch: int) -> np.ndarray:
        """Return the rows of the sampler whose turn it is."""
        return (self.second if epoch >= self.switch_epoch else self.first).plan(epoch)
