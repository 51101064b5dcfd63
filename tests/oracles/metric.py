"""Losses of pairs and triplets of images by the papers' formulas, pair by pair."""

import math

import torch


def unit(features: torch.Tensor) -> torch.Tensor:
    return features / features.square().sum(dim=1, keepdim=True).sqrt()


def pairs(labels: torch.Tensor, anchor: int) -> tuple[list[int], list[int]]:
    """Return the other images of the class of an image, and the images of other classes."""
    others = [row for row in range(len(labels)) if row != anchor]
    same = [row for row in others if labels[row] == labels[anchor]]
    return same, [row for row in others if row not in same]


def batch_hard_triplet(features: torch.Tensor, labels: torch.Tensor, margin: float = 0.2) -> torch.Tensor:
    """Hermans et al., eq. 5, over the triplets with a loss above 0; images without a positive or negative have none."""
    x, losses = unit(features), []
    for anchor in range(len(labels)):
        same, different = pairs(labels, anchor)
        if same and different:
            farthest = max(
                ((x[anchor] - x[row]).square().sum().sqrt() for row in same), key=lambda distance: distance.detach()
            )
            nearest = min(
                ((x[anchor] - x[row]).square().sum().sqrt() for row in different),
                key=lambda distance: distance.detach(),
            )
            losses.append(margin + farthest - nearest)
    losses = [loss for loss in losses if loss > 0]
    return torch.stack(losses).mean() if losses else features.sum() * 0


def multi_similarity(features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Wang et al., eq. 12, 13 and 15; without a positive or a negative, nothing is mined."""
    alpha, beta, base, epsilon = 2.0, 50.0, 0.5, 0.1
    x = unit(features)
    total = features.sum() * 0
    for anchor in range(len(labels)):
        same, different = pairs(labels, anchor)
        if not same or not different:
            continue
        s = [x[anchor] @ x[row] for row in range(len(labels))]
        positives = [row for row in same if s[row] - epsilon < max(float(s[other]) for other in different)]
        negatives = [row for row in different if s[row] + epsilon > min(float(s[other]) for other in same)]
        total = total + torch.log(1 + sum(torch.exp(-alpha * (s[row] - base)) for row in positives)) / alpha \
            if positives else total  # fmt: skip
        total = total + torch.log(1 + sum(torch.exp(beta * (s[row] - base)) for row in negatives)) / beta \
            if negatives else total  # fmt: skip
    return total / len(labels)


def supervised_contrastive(features: torch.Tensor, labels: torch.Tensor, temperature: float) -> torch.Tensor:
    """Khosla et al., eq. 2, averaged over the images that have a positive."""
    x, losses = unit(features), []
    for anchor in range(len(labels)):
        same, different = pairs(labels, anchor)
        if same:
            denominator = sum(torch.exp(x[anchor] @ x[row] / temperature) for row in same + different)
            terms = [(torch.exp(x[anchor] @ x[row] / temperature) / denominator).log() for row in same]
            losses.append(-sum(terms) / len(same))
    assert all(math.isfinite(float(loss)) for loss in losses)
    return torch.stack(losses).mean() if losses else features.sum() * 0
