"""What a mixer is to a training step.

Pairs of a batch: the partner of image i is image i XOR 1.
The random numbers of mixing: a share and a place for each slot.
Boxes of images: where they lie, and one image's box pasted into another.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from lib.loss.targets import Targets
from lib.runtime.seeding import Purpose, slot_draws


@dataclass(frozen=True)
class MixedBatch:
    """A batch after mixing.

    Attributes:
        images: (batch, 3, size, size) float32, mixed where pixels are mixed.
        targets: whose shares are those of the mixture.
        stage: where the backbone is to mix each image's features with its partner's; 0: nowhere.
        shares: (batch,) float32, the own share of each image at that stage.
    """

    images: torch.Tensor
    targets: Targets
    stage: int = 0
    shares: torch.Tensor | None = None

    def part(self, rows: slice) -> 'MixedBatch':
        """Return some of the images; pairs stay together if `rows` begins with an even image."""
        if rows == slice(0, len(self.images)):
            return self
        shares = None if self.shares is None else self.shares[rows]
        return MixedBatch(self.images[rows], self.targets.part(rows), self.stage, shares)


class Mixer(Protocol):
    """Mixes the batch that begins at slot `first_slot` (even) of an epoch. The partner of a slot is slot XOR 1."""

    def __call__(self, images: torch.Tensor, labels: torch.Tensor, *, epoch: int, first_slot: int) -> MixedBatch: ...


def unmixed(images: torch.Tensor, labels: torch.Tensor, *, epoch: int, first_slot: int) -> MixedBatch:
    """Leave a batch as it is."""
    return MixedBatch(images, Targets(labels))


def partners(values: torch.Tensor) -> torch.Tensor:
    """Return, along the first dimension, the partner of each entry: neighbours change places, an odd last one stays."""
    num_pairs = len(values) // 2
    swapped = values[: 2 * num_pairs].unflatten(0, (num_pairs, 2)).flip(1).flatten(0, 1)
    return swapped if len(values) == 2 * num_pairs else torch.cat([swapped, values[2 * num_pairs :]])


def blend(values: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Return share_i * values_i + (1 - share_i) * partner_i, in the shape and type of `values` (batch, ...).

    It is computed in float32 at least: bfloat16 has too few digits for a share. A share of 1 changes nothing.
    """
    wide = torch.promote_types(values.dtype, torch.float32)
    weights = shares.to(wide).view(-1, *[1] * (values.ndim - 1))
    return torch.lerp(partners(values).to(wide), values.to(wide), weights).to(values.dtype)


def shared_labels(labels: torch.Tensor, shares: torch.Tensor) -> Targets:
    """Return targets of images that keep `shares` (batch,) float32 of themselves and have the rest of their partner."""
    # In float32 the two always add up to exactly 1.
    return Targets(torch.stack([labels, partners(labels)], dim=1), torch.stack([shares, 1 - shares], dim=1))


def on_device(shares: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return `shares` as float32 on the device, without waiting for it."""
    return torch.from_numpy(shares.astype(np.float32)).to(device, non_blocking=True)


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


def cut_boxes(shares: np.ndarray, places: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a box an image that leaves about its share, and the share that it leaves exactly.

    r_h = H sqrt(1 - l), r_w = W sqrt(1 - l), centre uniform (Yun et al., ICCV 2019, eq. 2), in whole pixels; what
    sticks out of the image is cut off.

    Args:
        shares: (batch,) l, from 0 to 1.
        places: (batch, 2) of the centre, from 0 to 1: down, right.

    Returns:
        (batch, 4) int32 top, bottom, left, right, ends not included; (batch,) float64 share of pixels outside.
    """
    size = np.array([height, width])
    sides = np.rint(np.sqrt(1 - shares)[:, None] * size)
    starts = np.floor(places * size) - sides // 2
    ends = np.minimum(starts + sides, size)
    starts = np.maximum(starts, 0)
    left_over = 1 - np.prod(ends - starts, axis=1) / size.prod()
    return np.stack([starts, ends], axis=2).reshape(-1, 4).astype(np.int32), left_over


def paste(images: torch.Tensor, others: torch.Tensor, boxes: np.ndarray) -> torch.Tensor:
    """Return `images` (batch, channels, H, W) with the pixels in their boxes (batch, 4) taken from `others`."""
    top, bottom, left, right = torch.from_numpy(boxes).to(images.device, non_blocking=True)[:, :, None].unbind(1)
    rows = torch.arange(images.shape[2], device=images.device)
    columns = torch.arange(images.shape[3], device=images.device)
    in_rows = (rows >= top) & (rows < bottom)  # (batch, H)
    in_columns = (columns >= left) & (columns < right)  # (batch, W)
    return torch.where((in_rows[:, :, None] & in_columns[:, None, :])[:, None], others, images)
