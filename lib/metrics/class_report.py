"""Every metric of a model on a split, overall and per class: O(n + num_classes) time and memory, no class matrix."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lib.metrics.accuracy import compute_metrics, count_per_class, shot_groups
from lib.metrics.confidence import reliability
from lib.metrics.confusion import most_confused, tree_metrics
from lib.metrics.intervals import NUM_DRAWS, accuracy_interval
from lib.metrics.predictions import Predictions

NUM_HEAD_TAIL_BINS, NUM_CONFUSIONS = 20, 20


@dataclass(frozen=True)
class ClassTable:
    """Metrics per class, arrays (num_classes,).

    Attributes:
        images, correct: int64 labeled images, and those of them that are predicted correctly.
        accuracy: float64; NaN for a class without images.
        precision: float64 fraction of the predictions of this class that are correct; NaN where it is never predicted.
        confidence: float64 mean confidence of the predictions for its readable images; NaN without any.
        mistaken_for: int64 the wrong class that is predicted most often for its images (of several, the smallest
            number); -1 where there is no mistake.
        num_mistaken: int64 images predicted as that class.
    """

    images: np.ndarray
    correct: np.ndarray
    accuracy: np.ndarray
    precision: np.ndarray
    confidence: np.ndarray
    mistaken_for: np.ndarray
    num_mistaken: np.ndarray


def class_table(predictions: Predictions, num_classes: int) -> ClassTable:
    """Compute the metrics of each class; images labeled -1 do not count.

    Raises:
        ValueError: a label or a prediction is not below num_classes.
    """
    predictions = _labeled(predictions, num_classes)
    labels, predicted, correct = predictions.labels, predictions.predicted, predictions.correct
    readable = predicted >= 0
    hits, images = count_per_class(labels, correct, num_classes)
    readable_images = np.bincount(labels[readable], minlength=num_classes)
    confidence = np.bincount(labels[readable], predictions.confidence[readable], num_classes)
    mistaken_for, num_mistaken = _most_frequent_mistakes(labels, predicted, num_classes)
    return ClassTable(
        images,
        hits,
        _divide(hits, images),
        _divide(hits, np.bincount(predicted[readable], minlength=num_classes)),
        _divide(confidence, readable_images),
        mistaken_for,
        num_mistaken,
    )


def detailed_metrics(
    predictions: Predictions,
    train_counts: np.ndarray,
    *,
    parents: Sequence[Sequence[str]] | None = None,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
) -> dict[str, Any]:
    """Compute every metric, as JSON values: fractions; a metric without images is absent.

    Images labeled -1 do not count. An image that could not be decoded is wrong, and has neither confidence nor loss.
    Without probabilities, the metrics that need them are absent.

    Args:
        train_counts: (num_classes,) images per class in the original training set.
        parents: ancestors of each class, root first (classes.json); empty or None for none.
        num_draws, seed: number of draws and seed of the bootstrap behind the intervals.

    Returns:
        images, unreadable, classes: labeled images, those that cannot be decoded, and classes with images.
        top1, top5, mean_class_error, many, medium, few: as in lib.metrics.accuracy.
        interval: [low, high], 95 %, of mean_class_error, many, medium, few (lib.metrics.intervals).
        macro_precision, macro_recall, macro_f1: means over the classes with images; the precision of a class that is
            never predicted counts as 0.
        loss: mean cross entropy over readable images; balanced_loss: mean over classes of their means.
        ece, calibration: ece and calibration of all, many, medium, few (lib.metrics.confidence); ece is that of all.
        head_tail: mean accuracy of the classes in bins by training images, the head first: train_images [fewest, most],
            classes, images, accuracy.
        coarse_accuracy, mistake_severity, ...: with parents (lib.metrics.confusion).
        confusions: the most frequent ones: label, predicted, images, share of the label's images, reverse.

    Raises:
        ValueError: a label or a prediction is not below num_classes.
    """
    train_counts = np.asarray(train_counts)
    predictions = _labeled(predictions, len(train_counts))
    if not len(predictions):
        return {}
    table = class_table(predictions, len(train_counts))
    metrics = compute_metrics(predictions, train_counts)
    loss = {'loss': metrics.pop('loss')} if 'loss' in metrics else {}
    top5 = {'top5': metrics.pop('top5')} if 'top5' in metrics else {}
    return {
        'images': len(predictions),
        'unreadable': int((predictions.predicted < 0).sum()),
        'classes': int((table.images > 0).sum()),
        **metrics,
        **top5,
        'interval': _intervals(table, train_counts, num_draws, seed),
        **_macro(table),
        **loss,
        **_balanced_loss(predictions, len(train_counts)),
        **_calibration(predictions, train_counts),
        'head_tail': _head_tail(table, train_counts),
        **(tree_metrics(predictions.labels, predictions.predicted, parents) if parents else {}),
        'confusions': _confusions(predictions),
    }


def _labeled(predictions: Predictions, num_classes: int) -> Predictions:
    largest = max(predictions.labels.max(initial=-1), predictions.predicted.max(initial=-1))
    if largest >= num_classes:
        raise ValueError(f'class {largest} is labeled or predicted, but there are {num_classes} classes')
    return predictions.labeled()


def _divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return part / whole, NaN where whole is 0."""
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def _most_frequent_mistakes(
    labels: np.ndarray, predicted: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    wrong = (labels != predicted) & (predicted >= 0)
    pairs, counts = np.unique(labels[wrong] * num_classes + predicted[wrong], return_counts=True)
    of_class = pairs // num_classes
    order = np.lexsort((pairs, -counts, of_class))
    classes, first = np.unique(of_class[order], return_index=True)
    mistaken_for, num_mistaken = np.full(num_classes, -1, np.int64), np.zeros(num_classes, np.int64)
    mistaken_for[classes] = pairs[order][first] % num_classes
    num_mistaken[classes] = counts[order][first]
    return mistaken_for, num_mistaken


def _intervals(table: ClassTable, train_counts: np.ndarray, num_draws: int, seed: int) -> dict[str, list[float]]:
    draws = {'num_draws': num_draws, 'seed': seed}
    low, high = accuracy_interval(table.correct, table.images, **draws)
    intervals = {'mean_class_error': [1 - high, 1 - low]}
    for name, group in shot_groups(train_counts).items():
        if table.images[group].any():
            intervals[name] = list(accuracy_interval(table.correct[group], table.images[group], **draws))
    return intervals


def _macro(table: ClassTable) -> dict[str, float]:
    present = table.images > 0
    recall, precision = table.accuracy[present], np.nan_to_num(table.precision[present])
    total = recall + precision
    f1 = np.divide(2 * recall * precision, total, out=np.zeros(len(total)), where=total > 0)
    return {
        'macro_precision': float(precision.mean()),
        'macro_recall': float(recall.mean()),
        'macro_f1': float(f1.mean()),
    }


def _balanced_loss(predictions: Predictions, num_classes: int) -> dict[str, float]:
    known = ~np.isnan(predictions.losses)
    if not known.any():
        return {}
    losses, labels = predictions.losses[known].astype(np.float64), predictions.labels[known]
    images = np.bincount(labels, minlength=num_classes)
    means = _divide(np.bincount(labels, losses, num_classes), images)
    return {'balanced_loss': float(means[images > 0].mean())}


def _calibration(predictions: Predictions, train_counts: np.ndarray) -> dict[str, Any]:
    readable = (predictions.predicted >= 0) & ~np.isnan(predictions.confidence)
    members = {'all': readable}
    members |= {name: readable & group[predictions.labels] for name, group in shot_groups(train_counts).items()}
    calibration = {
        name: reliability(predictions.confidence[rows], predictions.correct[rows])
        for name, rows in members.items()
        if rows.any()
    }
    return {'ece': calibration['all']['ece'], 'calibration': calibration} if calibration else {}


def _head_tail(table: ClassTable, train_counts: np.ndarray) -> list[dict[str, Any]]:
    present = np.flatnonzero(table.images)
    order = present[np.argsort(-train_counts[present].astype(np.int64), kind='stable')]
    return [
        {
            'train_images': [int(train_counts[some[-1]]), int(train_counts[some[0]])],
            'classes': len(some),
            'images': int(table.images[some].sum()),
            'accuracy': float(table.accuracy[some].mean()),
        }
        for some in np.array_split(order, min(NUM_HEAD_TAIL_BINS, len(order)))
    ]


def _confusions(predictions: Predictions) -> list[dict[str, Any]]:
    return [
        {
            'label': pair.label,
            'predicted': pair.predicted,
            'images': len(pair.rows),
            'share': pair.fraction,
            'reverse': pair.num_reverse,
        }
        for pair in most_confused(predictions.labels, predictions.predicted, NUM_CONFUSIONS)
    ]
