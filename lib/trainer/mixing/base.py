"""Mixing of the images of a batch: the mixer protocol, pairs, the random numbers of each slot, and CutMix's boxes.

The partner of image i is image i XOR 1. `lam` is the papers' lambda: the fraction of an image that remains.
"""

from dataclasses import dataclass, replace
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
        targets: labels of the mixture.
        stage: stage after which the backbone mixes each image's features with its partner's; 0: none.
        lam: (batch,) float32, the fraction of each image's features that remains at that stage.
    """

    images: torch.Tensor
    targets: Targets
    stage: int = 0
    lam: torch.Tensor | None = None

    def select(self, rows: slice) -> 'MixedBatch':
        """Return the images `rows`; pairs stay together if these begin with an even image."""
        if rows == slice(0, len(self.images)):
            return self
        lam = None if self.lam is None else self.lam[rows]
        return MixedBatch(self.images[rows], self.targets.select(rows), self.stage, lam)


def with_image_weights(mixed: MixedBatch, weights: torch.Tensor | None) -> MixedBatch:
    """Return a mixed batch in which each label counts with the weight of the image that it is from.

    Args:
        weights: (slots,) float32, of the images before mixing; None: all 1.
    """
    if weights is None:
        return mixed
    targets = mixed.targets
    # When two slots become one image, the even slot comes first.
    pairs = torch.stack([weights, partners(weights)], dim=1)[:: len(weights) // len(mixed.images)]  # (batch, 2)
    of_labels = pairs if targets.labels.ndim == 2 else pairs[:, 0]
    if targets.weights is not None:  # of BBN, whose images have one label each
        of_labels = of_labels * targets.weights
    return replace(mixed, targets=replace(targets, weights=of_labels))


class Mixer(Protocol):
    """Mixes the batch that begins at slot `first_slot` (even) of an epoch. The partner of a slot is slot XOR 1."""

    def __call__(self, images: torch.Tensor, labels: torch.Tensor, *, epoch: int, first_slot: int) -> MixedBatch: ...


def unmixed(images: torch.Tensor, labels: torch.Tensor, *, epoch: int, first_slot: int) -> MixedBatch:
    """Return the batch unmixed."""
    return MixedBatch(images, Targets(labels))


def partners(values: torch.Tensor) -> torch.Tensor:
    """Return the partner of each entry along the first dimension: neighbors are swapped, an odd last one stays."""
    num_pairs = len(values) // 2
    swapped = values[: 2 * num_pairs].unflatten(0, (num_pairs, 2)).flip(1).flatten(0, 1)
    return swapped if len(values) == 2 * num_pairs else torch.cat([swapped, values[2 * num_pairs :]])


def blend(values: torch.Tensor, lam: torch.Tensor) -> torch.Tensor:
    """Return lam_i * values_i + (1 - lam_i) * partner_i, in the shape and type of `values` (batch, ...).

    Computed in float32 at least, since bfloat16 has too few digits for lam. With lam = 1 values stay exactly the same.
    """
    wide = torch.promote_types(values.dtype, torch.float32)
    weights = lam.to(wide).view(-1, *[1] * (values.ndim - 1))
    return torch.lerp(partners(values).to(wide), values.to(wide), weights).to(values.dtype)


def mixed_targets(labels: torch.Tensor, lam: torch.Tensor) -> Targets:
    """Return lam_i * label_i + (1 - lam_i) * label of the partner, for `lam` (batch,) float32."""
    # In float32 the two always add up to exactly 1.
    return Targets(torch.stack([labels, partners(labels)], dim=1), torch.stack([lam, 1 - lam], dim=1))


def on_device(lam: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return `lam` as float32 on the device, without waiting for it."""
    return torch.from_numpy(lam.astype(np.float32)).to(device, non_blocking=True)


_NUM_DRAWS = 5  # one for whether the image is mixed, two for lam, two for the center


@dataclass(frozen=True)
class MixDraws:
    """Random numbers of mixing: lambda ~ Beta(alpha, alpha) and the center of a box, drawn for every slot.

    Attributes:
        seed: seed of the run.
        alpha: above 0; 1 is uniform, below 1 lambda is mostly near 0 or 1.
        probability: probability that an image is mixed; otherwise its lambda is 1.
        end_epoch: first epoch (from 0) without mixing; None: every epoch mixes.
    """

    seed: int
    alpha: float
    probability: float = 1.0
    end_epoch: int | None = None

    def is_over(self, epoch: int) -> bool:
        """Return whether the epoch is one of the last, which are not mixed."""
        return self.end_epoch is not None and epoch >= self.end_epoch

    def lam_and_centers(self, epoch: int, first_slot: int, num_slots: int) -> tuple[np.ndarray, np.ndarray]:
        """Return lam (num_slots,) from 0 to 1 and centers (num_slots, 2), uniform in [0, 1), both float64.

        A last slot without a partner has lam = 1.

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
        lam = np.where(draws[:, 0] < self.probability, symmetric_beta(self.alpha, draws[:, 1], draws[:, 2]), 1.0)
        lam[num_slots - num_slots % 2 :] = 1.0
        return lam, draws[:, 3:5]


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


def cut_boxes(lam: np.ndarray, centers: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the boxes of CutMix, in whole pixels, and the exact lambda of each.

    r_h = H sqrt(1 - lam), r_w = W sqrt(1 - lam), uniform center (Yun et al., ICCV 2019, eq. 2), clipped to the image.

    Args:
        lam: (batch,) from 0 to 1.
        centers: (batch, 2) from 0 to 1: down, right.

    Returns:
        (batch, 4) int32 top, bottom, left, right, ends excluded; (batch,) float64 fraction of the pixels outside.
    """
    size = np.array([height, width])
    sides = np.rint(np.sqrt(1 - lam)[:, None] * size)
    starts = np.floor(centers * size) - sides // 2
    ends = np.minimum(starts + sides, size)
    starts = np.maximum(starts, 0)
    exact_lam = 1 - np.prod(ends - starts, axis=1) / size.prod()
    return np.stack([starts, ends], axis=2).reshape(-1, 4).astype(np.int32), exact_lam


def paste(images: torch.Tensor, others: torch.Tensor, boxes: np.ndarray) -> torch.Tensor:
    """Return `images` (batch, channels, H, W) with the pixels in their boxes (batch, 4) taken from `others`."""
    top, bottom, left, right = torch.from_numpy(boxes).to(images.device, non_blocking=True)[:, :, None].unbind(1)
    rows = torch.arange(images.shape[2], device=images.device)
    columns = torch.arange(images.shape[3], device=images.device)
    in_rows = (rows >= top) & (rows < bottom)  # (batch, H)
    in_columns = (columns >= left) & (columns < right)  # (batch, W)
    return torch.where((in_rows[:, :, None] & in_columns[:, None, :])[:, None], others, images)
