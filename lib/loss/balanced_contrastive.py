"""Balanced contrastive loss."""

import torch
import torch.nn.functional as F
from torch import nn

_NONE = torch.finfo(torch.float32).min / 2  # a masked logit: its exponential is 0, without NaN


class BalancedContrastive(nn.Module):
    """Balanced contrastive loss (BCL: Zhu et al., CVPR 2022), the mean over the batch of

        L_i = -1/|P_i| sum_{p in P_i} ln(e^{s_ip} / sum_c 1/|A_ic| sum_{k in A_ic} e^{s_ik}),  s_ik = x_i . x_k / T

    A_ic are the images of class c in the batch and its prototype, without image i itself: every class takes part
    (class-complement) with the same weight, whatever the number of its images (class-averaging). P_i is A_ic of the
    class c of image i. As in its authors' code, image i is left out of its class before averaging.

    Unit-length embeddings (batch, width) and prototypes (num_classes, width), labels int64 (batch,) -> a scalar,
    computed in float32 (float64 for float64 inputs) even under autocast. The largest tensor is (batch, num_classes).

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
            num_positives = counts[labels]  # (batch,): |P_i|, the other images of the class and its prototype
            # Every term gets -ln |A_ic|: the images of class c plus 1, except for the class of image i.
            lse_prototypes = F.linear(scaled, prototypes, -torch.log1p(counts)).logsumexp(dim=1)
            to_class_prototype = (scaled * prototypes[labels]).sum(dim=1)
            to_images = scaled @ embeddings.T  # (batch, batch)
            same = labels[:, None] == labels
            is_self = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
            weights = torch.where(same, num_positives[:, None], 1 + num_positives)
            lse_images = (to_images - weights.log()).masked_fill(is_self, _NONE).logsumexp(dim=1)
            # The class prototype had the weight 1 / (n + 1) above instead of 1 / n: the remainder is 1 / (n (n + 1)).
            remainder = to_class_prototype - (num_positives * (num_positives + 1)).log()
            normalizer = torch.stack([lse_prototypes, lse_images, remainder]).logsumexp(dim=0)
            positives = to_images.masked_fill(~same | is_self, 0).sum(dim=1) + to_class_prototype
            return (normalizer - positives / num_positives).mean()
