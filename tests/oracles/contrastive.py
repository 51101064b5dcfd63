"""Balanced contrastive loss and distillation in loops over pairs, float64, written from the papers."""

import torch


def balanced_contrastive(
    embeddings: torch.Tensor, prototypes: torch.Tensor, labels: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Average, per image, the other members and the prototype of each class in the denominator."""
    labels, losses = labels.tolist(), []
    for i, label in enumerate(labels):
        denominator, positives = 0.0, []
        for c in range(len(prototypes)):
            members = [embeddings[k] for k in range(len(labels)) if labels[k] == c and k != i] + [prototypes[c]]
            denominator = denominator + sum(torch.exp(embeddings[i] @ one / temperature) for one in members) / len(
                members
            )
            if c == label:
                positives = members
        losses.append(
            -sum(torch.log(torch.exp(embeddings[i] @ one / temperature) / denominator) for one in positives)
            / len(positives)
        )
    return sum(losses) / len(losses)


def distillation(logits: torch.Tensor, teacher: torch.Tensor, temperature: float, power: float) -> torch.Tensor:
    """Return T^2 sum_c t_c ln(t_c / s_c), averaged over the batch; t: renormalized powers of teacher probabilities."""
    losses = []
    for z_student, z_teacher in zip(logits, teacher, strict=True):
        s = torch.exp(z_student / temperature) / torch.exp(z_student / temperature).sum()
        t = (torch.exp(z_teacher / temperature) / torch.exp(z_teacher / temperature).sum()) ** power
        t = t / t.sum()
        losses.append(sum(t[c] * torch.log(t[c] / s[c]) for c in range(len(t))))
    return temperature**2 * sum(losses) / len(losses)
