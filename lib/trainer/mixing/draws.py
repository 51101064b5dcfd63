"""The random numbers of mixing: a share and a place for each slot."""

from dataclasses import dataclass

import numpy as np

from lib.runtime.seeding import Purpose, slot_draws

_NUM_DRAWS = 5  # whether it is mixed, two for the share, two for the place


@dataclass(frozen=True)
class MixDraws:
    """Draws how much of each image stays: lambda ~ Beta(alpha, alpha), its own for every slot.

    Attributes:
        seed: of the run.
        alpha: above 0; 1 is uniform, below that one image of a pair tends to take all.
        probability: chance that an image is mixed; else its share is 1.
        end_epoch: first epoch (from 0) without mixing; None: all have it.
    """

    seed: int
    alpha: float
    probability: float = 1.0
    end_epoch: int | None = None

    def is_over(self, epoch: int) -> bool:
        """Whether the epoch is one of the last, which are not mixed."""
        return self.end_epoch is not None and epoch >= self.end_epoch

    def shares_and_places(self, epoch: int, first_slot: int, num_slots: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (num_slots,) shares from 0 to 1 and (num_slots, 2) places, uniform in [0, 1), both float64.

        A last slot without a partner has the share 1.

        Raises:
            ValueError: the batch begins in the middle of a pair.
        """
        if first_slot % 2:
            raise ValueError(f'slots are mixed in pairs, but the batch begins at slot {first_slot}')
        draws = slot_draws(
            self.seed,
            Purpose.MIX,
            epoch=epoch,
            first_slot=first_slot,
            num_slots=num_slots,
            num_draws=_NUM_DRAWS,
        )
        shares = np.where(draws[:, 0] < self.probability, symmetric_beta(self.alpha, draws[:, 1], draws[:, 2]), 1.0)
        shares[num_slots - num_slots % 2 :] = 1.0
        return shares, draws[:, 3:5]


def symmetric_beta(alpha: float, radii: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Return draws of Beta(alpha, alpha), float64, from two uniform numbers in [0, 1) each; exact for every alpha > 0.

    T = sqrt(2a (U^(-1/a) - 1)) cos(2 pi V) is Student's t with 2a degrees of freedom (Bailey, Mathematics of
    Computation 62, 1994), and X = (1 + T / sqrt(2a + T^2)) / 2 is then Beta(a, a). No draw is rejected, so each slot
    needs as many numbers as any other.
    """
    cosines = np.cos(2 * np.pi * angles)
    with np.errstate(over='ignore', divide='ignore'):  # both ends are reached: X is 0, 1/2 or 1 there
        # T^2 / 2a; U is 1 - radii, which is never 0. expm1 keeps the middle apart where alpha is large.
        squares = np.expm1(-np.log1p(-radii) / alpha) * cosines**2
        return (1 + np.copysign(1 / np.sqrt(1 + 1 / squares), cosines)) / 2
