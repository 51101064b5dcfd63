"""Learnable weight scaling on kept features (LWS: Kang et al., Decoupling, ICLR 2020, eq. 6)."""

import numpy as np
import torch

from lib.inference.features import Features
from lib.posthoc.linear_head import Head

_STEPS, _BATCH, _RATE = 300, 256, 0.02


def fit_scales(
    head: Head, features: Features, rows: np.ndarray, *, seed: int = 0, num_steps: int = _STEPS
) -> torch.Tensor:
    """Return a scale of the logits a class, (num_classes,) float32 on the classifier's device.

    Class-balanced sampling as in the paper: each draw takes a class, then one of its images; cross entropy; Adam on the
    logarithms of the scales, which keeps them above 0, at a rate that falls to 0 along a cosine. A class that has no
    image among the rows changes as a rival alone.

    Args:
        rows: labelled, readable ones count.
        seed: of the draws; the same give the same scales on one device.

    Raises:
        ValueError: no image counts.
    """
    rows = rows[(features.labels[rows] >= 0) & features.readable[rows]]
    if not len(rows):
        raise ValueError('scales need at least one readable, labelled image')
    labels = features.labels[rows]
    order = np.argsort(labels, kind='stable')
    present, first, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    rng = np.random.default_rng(seed)
    device = head.weight.device
    logs = torch.zeros(head.num_classes, device=device, requires_grad=True)
    optimizer = torch.optim.Adam([logs], lr=_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for _ in range(num_steps):
        drawn = rng.integers(len(present), size=_BATCH)
        places = first[drawn] + (rng.random(_BATCH) * sizes[drawn]).astype(np.int64)
        chosen = rows[order[places]]
        values = torch.from_numpy(np.array(features.values[chosen])).to(device)
        with torch.no_grad():
            logits = head.logits(values)
        loss = torch.nn.functional.cross_entropy(
            logits * logs.exp(), torch.from_numpy(features.labels[chosen]).to(device)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return logs.detach().exp()
