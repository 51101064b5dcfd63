"""The balanced contrastive loss and distillation as their papers write them: float64, one pair at a time."""

import torch


def balanced_contrastive(
    embeddings: torch.Tensor, prototypes: torch.Tensor, labels: torch.Tensor, temperature: float
) -> torch.Tensor:
    """For each image: every class's other members and prototype are averaged in the sum below the line."""
    labels, losses = labels.tolist(), []
    for i, own in enumerate(labels):
        below, positives = 0.0, []
        for c in range(len(prototypes)):
            members = [embeddings[k] for k in range(len(labels)) if labels[k] == c and k != i] + [prototypes[c]]
            below = below + sum(torch.exp(embeddings[i] @ one / temperature) for one in members) / len(members)
            if c == own:
                positives = members
        losses.append(
            -sum(torch.log(torch.exp(embeddings[i] @ one / temperature) / below) for one in positives) / len(positives)
        )
    return sum(losses) / len(losses)


def distillation(logits: torch.Tensor, teacher: torch.Tensor, temperature: float, power: float) -> torch.Tensor:
    """T^2 sum_c t_c ln(t_c / s_c), with t the teacher's probabilities to a power, normalised."""
    losses = []
    for ours, theirs in zip(logits, teacher, strict=True):
        s = torch.exp(ours / temperature) / torch.exp(ours / temperature).sum()
        t = (torch.exp(theirs / temperature) / torch.exp(theirs / temperature).sum()) ** power
        t = t / t.sum()
        losses.append(sum(t[c] * torch.log(t[c] / s[c]) for c in range(len(t))))
    return temperature**2 * sum(losses) / len(losses)
