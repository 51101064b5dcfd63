"""Balanced contrastive loss."""

import torch
import torch.nn.functional as F
from torch import nn

_NONE = torch.finfo(torch.float32).min / 2  # a logit that takes no part: its exponential is 0, and no NaN comes of it


class BalancedContrastive(nn.Module):
    """Balanced contrastive loss (BCL: Zhu et al., CVPR 2022), the mean over the batch of

        L_i = -1/|P_i| sum_{p in P_i} ln(e^{s_ip} / sum_c 1/|A_ic| sum_{k in A_ic} e^{s_ik}),  s_ik = x_i . x_k / T

    A_ic are the images of class c in the batch and its prototype, without image i itself: all classes are there
    (class-complement), and weigh the same whatever the number of their images (class-averaging). P_i is A_ic of the
    image's own class c. As in its authors' code, image i is left out of its class before that is averaged.

    Embeddings (batch, width) and prototypes (num_classes, width) of length 1, labels int64 (batch,) -> a scalar,
    computed in float32 (or float64, if given) under autocast, too. The largest tensor is (batch, num_classes).

    Args:
        temperature: T.
    """

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, embeddings: torch.Tensor, prototypes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(embeddings.device.type, enabled=False):
            dtype = torch.promote_types(embeddings.dtype, torch.float32)
            embeddings, prototypes = embeddings.to(dtype), prototypes.to(dtype)
            scaled = embeddings / self.temperature
            counts = torch.zeros(len(prototypes), dtype=dtype, device=labels.device)
            counts.index_add_(0, labels, torch.ones_like(labels, dtype=dtype))
            own = counts[labels]  # (batch,): |P_i|, the others of the class and its prototype
            # Every term goes with -ln |A_ic|, which is 1 more than the images of a class, but for the own class.
            among_prototypes = F.linear(scaled, prototypes, -torch.log1p(counts)).logsumexp(dim=1)
            to_own_prototype = (scaled * prototypes[labels]).sum(dim=1)
            to_images = scaled @ embeddings.T  # (batch, batch)
            same = labels[:, None] == labels
            itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
            weights = torch.where(same, own[:, None], 1 + own)
            among_images = (to_images - weights.log()).masked_fill(itself, _NONE).logsumexp(dim=1)
            # The own prototype's weight above was 1 / (n + 1), not 1 / n: the rest of it is 1 / (n (n + 1)).
            rest = to_own_prototype - (own * (own + 1)).log()
            normaliser = torch.stack([among_prototypes, among_images, rest]).logsumexp(dim=0)
            positives = to_images.masked_fill(~same | itself, 0).sum(dim=1) + to_own_prototype
            return (normaliser - positives / own).mean()
