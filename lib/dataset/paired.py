"""Plans made of plans: pairs of images from two samplers, or each image several times."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Plan(Protocol):
    """What gives an epoch its rows."""

    def plan(self, epoch: int) -> np.ndarray: ...


@dataclass(frozen=True)
class PairedPlan:
    """Pairs of one image from each of two plans: the first's in even slots, the second's in odd ones.

    Attributes:
        first, second: plans of one length; let them draw from different random streams, or they are not independent.
    """

    first: Plan
    second: Plan

    def plan(self, epoch: int) -> np.ndarray:
        """Return (2 * length,) int64 rows a0, b0, a1, b1, ..."""
        return np.stack([self.first.plan(epoch), self.second.plan(epoch)], axis=1).ravel()


@dataclass(frozen=True)
class RepeatedPlan:
    """Each row of a plan several times in a row: as many slots, so as many views of the image."""

    once: Plan
    times: int

    def plan(self, epoch: int) -> np.ndarray:
        """Return (times * length,) int64 rows a0, a0, a1, a1, ..."""
        return np.repeat(self.once.plan(epoch), self.times)
