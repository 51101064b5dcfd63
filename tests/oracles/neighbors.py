"""Slow search and retrieval metrics: one pair at a time, sorted by Python."""

import math


def nearest_rows(query, gallery, k, metric, own=None):
    """Return the rows of the k nearest, and their similarities or distances."""
    found = []
    for row, other in enumerate(gallery.tolist()):
        if row == own:
            continue
        if metric == 'cosine':
            lengths = math.hypot(*query) * math.hypot(*other)
            value = sum(a * b for a, b in zip(query, other, strict=True)) / lengths if lengths else 0.0
            found.append((-value, row, value))
        else:
            value = math.dist(query, other)
            found.append((value, row, value))
    found.sort()
    return [row for _, row, _ in found[:k]], [value for _, _, value in found[:k]]


def retrieval_of(query, label, gallery, labels, recall_at, metric, own=None):
    """Return the metrics of one query as {name: value}; None where the gallery has no image of its class."""
    num_relevant = sum(other == label for row, other in enumerate(labels) if row != own)
    if label < 0 or not num_relevant:
        return None
    ranked, _ = nearest_rows(query, gallery, len(gallery), metric, own)
    hits = [labels[row] == label for row in ranked]
    precisions = [sum(hits[: i + 1]) / (i + 1) for i in range(num_relevant) if hits[i]]
    return {
        **{f'recall@{k}': float(any(hits[:k])) for k in recall_at},
        'r_precision': sum(hits[:num_relevant]) / num_relevant,
        'map@r': sum(precisions) / num_relevant,
    }
