"""Calibration, mistakes in a tree and per-class figures, one image at a time: slow and obvious."""

from collections import Counter


def calibration_error(confidence, right, num_bins=15):
    """Expected calibration error over bins (low, high], the first with its lower end."""
    gap = 0.0
    for place in range(num_bins):
        low, high = place / num_bins, (place + 1) / num_bins
        rows = [i for i, c in enumerate(confidence) if low < c <= high or (place == 0 and c == 0)]
        if rows:
            accuracy = sum(bool(right[i]) for i in rows) / len(rows)
            gap += len(rows) / len(confidence) * abs(accuracy - sum(float(confidence[i]) for i in rows) / len(rows))
    return gap


def severity(parents, label, predicted):
    """Height of the lowest common ancestor, a node's height being the longest way down to a class."""
    if label == predicted:
        return 0
    paths = [(*chain, f'class {number}') for number, chain in enumerate(parents)]
    common = 0
    while paths[label][common] == paths[predicted][common]:
        common += 1
    prefix = paths[label][:common]
    return max(
        len(path) - common
        for path, chain in zip(paths, parents, strict=True)
        if path[:common] == prefix and (common or chain)
    )


def class_rows(labels, predicted, confidence, num_classes):
    """Of each class: images, right, accuracy, precision, confidence, mistaken_for, num_mistaken; None for no number."""
    rows = []
    for number in range(num_classes):
        own = [i for i, label in enumerate(labels) if label == number]
        right = sum(predicted[i] == number for i in own)
        claimed = sum(p == number and label >= 0 for p, label in zip(predicted, labels, strict=True))
        sure = [float(confidence[i]) for i in own if predicted[i] >= 0]
        wrong = Counter(int(predicted[i]) for i in own if predicted[i] not in (number, -1))
        mistaken_for, times = min(wrong.items(), key=lambda item: (-item[1], item[0]), default=(-1, 0))
        rows.append(
            (
                len(own),
                right,
                right / len(own) if own else None,
                right / claimed if claimed else None,
                sum(sure) / len(sure) if sure else None,
                mistaken_for,
                times,
            )
        )
    return rows
