"""Losses as their papers write them: float64, one image and one class at a time, plain sums."""

import torch


def softmax(logits: torch.Tensor, weights: list[float]) -> list[torch.Tensor]:
    """weights_c e^{z_c} / sum of the same, for one image; the largest logit is taken off first."""
    top = max(logits.detach().tolist())
    terms = [weight * torch.exp(logit - top) for weight, logit in zip(weights, logits, strict=True)]
    return [term / sum(terms) for term in terms]


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    num_classes = logits.shape[1]
    losses = []
    for row, label in zip(logits, labels.tolist(), strict=True):
        p = softmax(row, [1.0] * num_classes)
        loss = 0.0
        for c in range(num_classes):
            target = label_smoothing / num_classes + (1 - label_smoothing if c == label else 0.0)
            loss = loss - target * torch.log(p[c])
        losses.append(loss)
    return sum(losses) / len(losses)


def focal(logits: torch.Tensor, labels: torch.Tensor, gamma: float) -> torch.Tensor:
    losses = []
    for row, label in zip(logits, labels.tolist(), strict=True):
        p = softmax(row, [1.0] * len(row))[label]
        losses.append(-((1 - p) ** gamma) * torch.log(p))
    return sum(losses) / len(losses)


def balanced_softmax(logits: torch.Tensor, labels: torch.Tensor, class_counts: list[int]) -> torch.Tensor:
    """Images of a class without training images are passed over."""
    losses = []
    for row, label in zip(logits, labels.tolist(), strict=True):
        if class_counts[label] > 0:
            losses.append(-torch.log(softmax(row, [float(count) for count in class_counts])[label]))
    return sum(losses) / len(losses)
