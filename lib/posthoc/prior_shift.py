"""Classes that come more or less often than in training: their shares, learnt from unlabelled images, put right."""

import numpy as np
import torch

from lib.inference.features import Features
from lib.posthoc.linear_head import Head, logit_batches

_ROUNDS, _SETTLED = 100, 1e-4
_ADDED = 0.5  # images
_LOGITS_KEPT = 2**27  # 512 MB; more are computed anew in every round


@torch.inference_mode()
def fit_prior(
    head: Head, features: Features, rows: np.ndarray, log_prior: torch.Tensor, *, num_rounds: int = _ROUNDS
) -> torch.Tensor:
    """Return the logarithms of the class shares among some images, without their labels (EM: Saerens et al., 2002).

    Each round corrects the posteriors by new over old shares, eq. 2.4, and takes their means for the new shares, eq.
    2.9; the likelihood of the images rises in each. Half an image is added to each class (a Dirichlet prior), so that
    no class vanishes because few images were seen. Ends when the shares change by less than 1e-4 altogether.

    Args:
        head: its softmax must be the posterior under the old shares: a classifier trained on them, calibrated.
        log_prior: (num_classes,) float64, of the old shares; -inf classes stay without any.

    Returns:
        (num_classes,) float64, on the CPU; `head.shifted(result - log_prior)` is the corrected classifier.

    Raises:
        ValueError: no image can be decoded.
    """
    readable = rows[features.readable[rows]]
    if not len(readable):
        raise ValueError('class shares need at least one readable image')
    known = log_prior.isfinite().cpu()
    old = log_prior.to(head.weight.device)
    shares = log_prior.exp().cpu()
    keeps = len(readable) * head.num_classes <= _LOGITS_KEPT
    kept = [logits for logits, _, _ in logit_batches(head, features, readable)] if keeps else None
    for _ in range(num_rounds):
        shift = (shares.log().to(old) - old).where(known.to(old.device), -torch.inf).float()
        sums = torch.zeros(head.num_classes, dtype=torch.float64)
        for logits in kept or (logits for logits, _, _ in logit_batches(head, features, readable)):
            sums += (logits + shift).softmax(dim=1).sum(dim=0).double().cpu()
        sums[known] += _ADDED
        updated = sums / sums.sum()
        change = float((updated - shares).abs().sum())
        shares = updated
        if change < _SETTLED:
            break
    return shares.log()
