"""Every metric of a model on a split, from its answers: O(n + num_classes) time and memory, no matrix of classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lib.metrics.accuracy import metrics_from_counts, shot_groups
from lib.metrics.confidence import reliability
from lib.metrics.confusion import most_confused, tree_metrics
from lib.metrics.intervals import NUM_DRAWS, accuracy_interval
from lib.metrics.predictions import Predictions

NUM_HEAD_TAIL_BINS, NUM_CONFUSIONS = 20, 20


@dataclass(frozen=True)
class ClassTable:
    """What is known of each class, arrays (num_classes,).

    Attributes:
        images, right: int64 labelled images, and those of them that are recognised.
        accuracy: float64; NaN for a class without images.
        precision: float64 share of the predictions of this class that are right; NaN where it is never predicted.
        confidence: float64 mean confidence in whatever is predicted for its readable images; NaN without any.
        mistaken_for: int64 the wrong class that is predicted most often for its images (of several, the smallest
            number); -1 where none is.
        num_mistaken: int64 how often.
    """

    images: np.ndarray
    right: np.ndarray
    accuracy: np.ndarray
    precision: np.ndarray
    confidence: np.ndarray
    mistaken_for: np.ndarray
    num_mistaken: np.ndarray


def class_table(answers: Predictions, num_classes: int) -> ClassTable:
    """Return what the answers say of each class; images labelled -1 do not count.

    Raises:
        ValueError: a label or a prediction is not below num_classes.
    """
    answers = _checked(answers, num_classes)
    labels, predicted, right = answers.labels, answers.predicted, answers.right
    readable = predicted >= 0
    images, hits = np.bincount(labels, minlength=num_classes), np.bincount(labels[right], minlength=num_classes)
    readable_images = np.bincount(labels[readable], minlength=num_classes)
    confidence = np.bincount(labels[readable], answers.confidence[readable], num_classes)
    mistaken_for, num_mistaken = _most_frequent_mistakes(labels, predicted, num_classes)
    return ClassTable(
        images,
        hits,
        _share(hits, images),
        _share(hits, np.bincount(predicted[readable], minlength=num_classes)),
        _share(confidence, readable_images),
        mistaken_for,
        num_mistaken,
    )


def detailed_metrics(
    answers: Predictions,
    train_counts: np.ndarray,
    *,
    parents: Sequence[Sequence[str]] | None = None,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
) -> dict[str, Any]:
    """Return every metric as what JSON can hold; fractions, and what has no image is absent.

    Images labelled -1 do not count. One that could not be decoded is wrong, and has neither confidence nor loss. Of
    predictions alone (lib.metrics.predictions) there is what follows from these.

    Args:
        train_counts: (num_classes,) images a class in the original training set.
        parents: ancestors of each class, root first (classes.json); empty or None for none.
        num_draws, seed: of the bootstrap behind the intervals.

    Returns:
        images, unreadable, classes: how many there are with a label, without a picture, and with images.
        top1, top5, mean_class_error, many, medium, few: as in lib.metrics.accuracy.
        interval: [low, high], 95 %, of mean_class_error, many, medium, few (lib.metrics.intervals).
        macro_precision, macro_recall, macro_f1: means over the classes with images; the precision of a class that is
            never predicted counts as 0.
        loss: mean -ln of the label's probability over readable images; balanced_loss: mean over classes of their means.
        ece, calibration: of all, many, medium, few (lib.metrics.confidence); ece is that of all.
        head_tail: mean accuracy of the classes in bins by training images, the head first: train_images [fewest, most],
            classes, images, accuracy.
        coarse_accuracy, mistake_severity, ...: with parents (lib.metrics.confusion).
        confusions: the most frequent ones: label, predicted, images, share of the label's images, reverse.

    Raises:
        ValueError: a label or a prediction is not below num_classes.
    """
    train_counts = np.asarray(train_counts)
    answers = _checked(answers, len(train_counts))
    if not len(answers):
        return {}
    table = class_table(answers, len(train_counts))
    return {
        'images': len(answers),
        'unreadable': int((answers.predicted < 0).sum()),
        'classes': int((table.images > 0).sum()),
        **metrics_from_counts(table.right, table.images, train_counts),
        **_top5(answers),
        'interval': _intervals(table, train_counts, num_draws, seed),
        **_macro(table),
        **_losses(answers, len(train_counts)),
        **_calibration(answers, train_counts),
        'head_tail': _head_tail(table, train_counts),
        **(tree_metrics(answers.labels, answers.predicted, parents) if parents else {}),
        'confusions': _confusions(answers),
    }


def _checked(answers: Predictions, num_classes: int) -> Predictions:
    largest = max(answers.labels.max(initial=-1), answers.predicted.max(initial=-1))
    if largest >= num_classes:
        raise ValueError(f'answers name class {largest}, but there are {num_classes} classes')
    return answers.labelled()


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
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
    low, high = accuracy_interval(table.right, table.images, **draws)
    intervals = {'mean_class_error': [1 - high, 1 - low]}
    for name, group in shot_groups(train_counts).items():
        if table.images[group].any():
            intervals[name] = list(accuracy_interval(table.right[group], table.images[group], **draws))
    return intervals


def _top5(answers: Predictions) -> dict[str, float]:
    if np.isnan(answers.confidence).all():  # predictions alone
        return {}
    return {'top5': int((answers.best == answers.labels[:, None]).any(axis=1).sum()) / len(answers)}


def _macro(table: ClassTable) -> dict[str, float]:
    seen = table.images > 0
    recall, precision = table.accuracy[seen], np.nan_to_num(table.precision[seen])
    both = recall + precision
    f1 = np.divide(2 * recall * precision, both, out=np.zeros(len(both)), where=both > 0)
    return {
        'macro_precision': float(precision.mean()),
        'macro_recall': float(recall.mean()),
        'macro_f1': float(f1.mean()),
    }


def _losses(answers: Predictions, num_classes: int) -> dict[str, float]:
    known = ~np.isnan(answers.losses)
    if not known.any():
        return {}
    losses, labels = answers.losses[known].astype(np.float64), answers.labels[known]
    images = np.bincount(labels, minlength=num_classes)
    means = _share(np.bincount(labels, losses, num_classes), images)
    return {'loss': float(losses.mean()), 'balanced_loss': float(means[images > 0].mean())}


def _calibration(answers: Predictions, train_counts: np.ndarray) -> dict[str, Any]:
    readable = (answers.predicted >= 0) & ~np.isnan(answers.confidence)
    members = {'all': readable}
    members |= {name: readable & group[answers.labels] for name, group in shot_groups(train_counts).items()}
    found = {
        name: reliability(answers.confidence[rows], answers.right[rows]) for name, rows in members.items() if rows.any()
    }
    return {'ece': found['all']['ece'], 'calibration': found} if found else {}


def _head_tail(table: ClassTable, train_counts: np.ndarray) -> list[dict[str, Any]]:
    seen = np.flatnonzero(table.images)
    order = seen[np.argsort(-train_counts[seen].astype(np.int64), kind='stable')]
    return [
        {
            'train_images': [int(train_counts[some[-1]]), int(train_counts[some[0]])],
            'classes': len(some),
            'images': int(table.images[some].sum()),
            'accuracy': float(table.accuracy[some].mean()),
        }
        for some in np.array_split(order, min(NUM_HEAD_TAIL_BINS, len(order)))
    ]


def _confusions(answers: Predictions) -> list[dict[str, Any]]:
    return [
        {
            'label': pair.label,
            'predicted': pair.predicted,
            'images': len(pair.rows),
            'share': pair.share,
            'reverse': pair.num_reverse,
        }
        for pair in most_confused(answers.labels, answers.predicted, NUM_CONFUSIONS)
    ]
