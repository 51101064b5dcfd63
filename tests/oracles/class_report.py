"""Slow calibration error, mistake severity and metrics per class: one image at a time."""

from collections import Counter


def calibration_error(confidence, right, num_bins=15):
    """Return the expected calibration error over bins (low, high], the first with its lower end."""
    gap = 0.0
    for index in range(num_bins):
        low, high = index / num_bins, (index + 1) / num_bins
        rows = [i for i, c in enumerate(confidence) if low < c <= high or (index == 0 and c == 0)]
        if rows:
            accuracy = sum(bool(right[i]) for i in rows) / len(rows)
            gap += len(rows) / len(confidence) * abs(accuracy - sum(float(confidence[i]) for i in rows) / len(rows))
    return gap


def severity(parents, label, predicted):
    """Return the height of the lowest common ancestor, a node's height being the longest path down to a class."""
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
    """Return images, correct, accuracy, precision, confidence, mistaken_for, num_mistaken of each class."""
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
