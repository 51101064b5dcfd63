"""Losses of one image from its float64 logits (num_classes,) and label, in loops, written from the papers."""

import math

import torch


def softmax(logits, weights=None):
    """Return the list of w_c e^{z_c} / sum_j w_j e^{z_j}; weights None: 1. The largest logit is subtracted first."""
    weights = weights or [1.0] * len(logits)
    top = max(z for z, weight in zip(logits.detach().tolist(), weights, strict=True) if weight > 0)
    terms = [weight * torch.exp(z - top) if weight > 0 else z * 0 for weight, z in zip(weights, logits, strict=True)]
    return [term / sum(terms) for term in terms]


def cross_entropy(logits, label, label_smoothing=0.0):
    p = softmax(logits)
    loss = 0.0
    for c in range(len(logits)):
        target = label_smoothing / len(logits) + (1 - label_smoothing if c == label else 0.0)
        loss = loss - target * torch.log(p[c])
    return loss


def focal(logits, label, gamma):
    p = softmax(logits)[label]
    return -((1 - p) ** gamma) * torch.log(p)


def sigmoid_focal(logits, label, gamma):
    loss = 0.0
    for c in range(len(logits)):
        s = 1 / (1 + torch.exp(-logits[c]))
        p_t = s if c == label else 1 - s
        loss = loss - (1 - p_t) ** gamma * torch.log(p_t)
    return loss


def balanced_softmax(logits, label, counts):
    return -torch.log(softmax(logits, [float(count) for count in counts])[label])


def logit_adjustment(logits, label, counts, tau):
    return -torch.log(softmax(logits, [(count / sum(counts)) ** tau for count in counts])[label])


def class_dependent_temperatures(logits, label, counts, gamma):
    return vector_scaling(logits, label, counts, gamma, tau=0.0)


def vector_scaling(logits, label, counts, gamma, tau):
    """Leave classes without images out: their temperature is infinite, or their prior is 0."""
    scaled, weights = [], []
    for z, count in zip(logits, counts, strict=True):
        scaled.append(z * (count / max(counts)) ** gamma)
        weights.append((count / sum(counts)) ** tau if count or not (gamma or tau) else 0.0)
    return -torch.log(softmax(torch.stack(scaled), weights)[label])


def ldam(logits, label, counts, margin, scale):
    smallest = min(count for count in counts if count)
    shifted = list(logits)
    if counts[label]:
        shifted[label] = shifted[label] - scale * margin * (smallest / counts[label]) ** 0.25
    return cross_entropy(torch.stack(shifted), label)


def softmax_equalization(logits, label, counts, tail_fraction, beta):
    """Compute the loss for beta 0 or 1."""
    weights = []
    for c, count in enumerate(counts):
        is_tail = 1 if count / sum(counts) < tail_fraction else 0
        weights.append(1.0 - beta * is_tail * (0 if c == label else 1))
    return -torch.log(softmax(logits, weights)[label])


def label_aware_smoothing(logits, label, counts, head, tail, shape):
    smallest, largest = min(count for count in counts if count), max(counts)
    angle = math.pi / 2
    if largest > smallest:
        angle = math.pi * max(counts[label] - smallest, 0) / (2 * (largest - smallest))
    smoothing = {
        'concave': tail + (head - tail) * math.sin(angle),
        'linear': tail + (head - tail) * angle / (math.pi / 2),
        'convex': head + (head - tail) * math.sin(3 * math.pi / 2 + angle),
    }[shape]
    p = softmax(logits)
    loss = 0.0
    for c in range(len(logits)):
        target = 1 - smoothing if c == label else smoothing / (len(logits) - 1)
        loss = loss - target * torch.log(p[c])
    return loss


def influence_balanced(logits, label, feature, differentiated, alpha=1000.0, epsilon=1e-3):
    p = softmax(logits)
    distance = sum(abs(p[c] - (1.0 if c == label else 0.0)) for c in range(len(logits)))
    influence = distance * sum(abs(h) for h in feature)
    if not differentiated:
        influence = influence.detach()
    return -alpha * torch.log(p[label]) / (influence + epsilon)


def seesaw(logits, label, counts, mitigation, compensation):
    sigma = [s.item() for s in softmax(logits)]
    counts = [max(count, 1) for count in counts]
    weights = []
    for j in range(len(logits)):
        m = (counts[j] / counts[label]) ** mitigation if counts[label] > counts[j] else 1.0
        c = (sigma[j] / sigma[label]) ** compensation if sigma[j] > sigma[label] else 1.0
        weights.append(m * c)
    return -torch.log(softmax(logits, weights)[label])


def generalized_cross_entropy(logits, label, q):
    return (1 - softmax(logits)[label] ** q) / q


def symmetric_cross_entropy(logits, label, forward_weight, reverse_weight):
    p = softmax(logits)
    reverse = 0.0
    for c in range(len(logits)):
        reverse = reverse - p[c] * (0.0 if c == label else -4.0)
    return forward_weight * -torch.log(p[label]) + reverse_weight * reverse


def arcface(logits, label, margin, scale):
    angle = torch.acos(logits[label] / scale)
    shifted = list(logits)
    if angle.item() + margin < math.pi:
        shifted[label] = scale * torch.cos(angle + margin)
    else:
        shifted[label] = shifted[label] - scale * margin * math.sin(margin)
    return cross_entropy(torch.stack(shifted), label)


def margin_by_size(label, counts, smallest, largest):
    """Return a n^-1/4 + b, with a and b from the margins of the smallest and the largest class."""
    sizes = [int(n) for n in counts if n]
    few, many = min(sizes), max(sizes)
    if few == many:
        return smallest
    a = (smallest - largest) / (1 / few**0.25 - 1 / many**0.25)
    b = largest - a / many**0.25
    return a / max(int(counts[label]), few) ** 0.25 + b


def cosface(logits, label, margin, scale):
    shifted = list(logits)
    shifted[label] = shifted[label] - scale * margin
    return cross_entropy(torch.stack(shifted), label)


def weighted(losses, labels, counts, lam=None, image_weights=None, class_weights=None, weighted_mean=True):
    """Return sum v lam w L / sum v lam w (or / sum v lam) over labels whose class has images."""
    total = sum_weighted = sum_unweighted = 0.0
    for i, row in enumerate(labels):
        for k, label in enumerate(row):
            if not counts[label]:
                continue
            unweighted = (lam[i][k] if lam else 1.0) * (image_weights[i] if image_weights else 1.0)
            weight = unweighted * (class_weights[label] if class_weights else 1.0)
            total = total + weight * losses(i, label)
            sum_weighted, sum_unweighted = sum_weighted + weight, sum_unweighted + unweighted
    normalizer = sum_weighted if weighted_mean else sum_unweighted
    return total / normalizer if normalizer else torch.zeros((), dtype=torch.float64)
