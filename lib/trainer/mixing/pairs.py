"""Pairs of a batch: the partner of image i is image i XOR 1."""

import numpy as np
import torch

from lib.loss.targets import Targets


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
