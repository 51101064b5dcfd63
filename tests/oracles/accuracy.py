"""Slow metrics: one image at a time, in exact fractions."""

import math
from fractions import Fraction


def metrics(logits, labels, readable, train_counts):
    """Return loss, top1, top5, mean_class_error, many, medium, few; a metric without images is absent.

    logits: rows of numbers; labels: -1 where unknown; readable: False counts as wrong, and has no loss.
    """
    known = [image for image, label in enumerate(labels) if label >= 0]
    if not known:
        return {}
    right1, right5, losses = {}, {}, []
    for image in known:
        scores, label = list(logits[image]), labels[image]
        better = sum(score > scores[label] for score in scores)
        right1[image] = readable[image] and better < 1
        right5[image] = readable[image] and better < 5
        if readable[image]:
            largest = max(scores)
            losses.append(math.log(sum(math.exp(score - largest) for score in scores)) + largest - scores[label])
    of_class = {}
    for image in known:
        of_class.setdefault(labels[image], []).append(right1[image])
    accuracy = {label: Fraction(sum(right), len(right)) for label, right in of_class.items()}
    found = {
        'top1': Fraction(sum(right1.values()), len(known)),
        'top5': Fraction(sum(right5.values()), len(known)),
        'mean_class_error': 1 - sum(accuracy.values()) / len(accuracy),
    }
    if losses:
        found['loss'] = sum(losses) / len(losses)
    for name, belongs in (
        ('many', lambda count: count > 100),
        ('medium', lambda count: 20 <= count <= 100),
        ('few', lambda count: count < 20),
    ):
        group = [value for label, value in accuracy.items() if belongs(train_counts[label])]
        if group:
            found[name] = sum(group) / len(group)
    return {name: float(value) for name, value in found.items()}
