"""What the valid split says of a model, computed once for all parts of the report."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lib.metrics.class_report import ClassTable, class_table, metrics_of
from lib.metrics.per_class import binomial_interval
from lib.metrics.predictions import Answers
from lib.report.data import ReportData

GROUPS = ('many', 'medium', 'few')
ERRORS = {
    'mean_class_error': 'Mean class error',
    'top1': 'Top-1 error',
    'top5': 'Top-5 error',
    'many': 'Error, many',
    'medium': 'Error, medium',
    'few': 'Error, few',
}


@dataclass(frozen=True)
class Measured:
    """Figures of the labelled images of the valid split.

    Attributes:
        rows: (n,) int64 their rows.
        answers: (n,) to them.
        metrics: as metrics_of returns them; without groups where no training counts say which classes those are.
        table: of the classes.
        low, high: (num_classes,) float64 95 % interval of each class's error; 0 and 1 without images.
    """

    rows: np.ndarray
    answers: Answers
    metrics: dict[str, Any]
    table: ClassTable
    low: np.ndarray
    high: np.ndarray

    @property
    def num_classes(self) -> int:
        return len(self.low)

    def error_interval(self, name: str) -> tuple[float, float] | None:
        """Return the 95 % interval of an error (a key of ERRORS); None where it is not known."""
        if name in ('top1', 'top5'):
            if name not in self.metrics:
                return None
            total = len(self.answers)
            low, high = binomial_interval(round((1 - self.metrics[name]) * total), total)
            return float(low), float(high)
        found = self.metrics.get('interval', {}).get(name)
        if found is None:
            return None
        return tuple(found) if name.endswith('error') else (1 - found[1], 1 - found[0])

    def worst(self) -> np.ndarray:
        """Return the classes with a wrong image, int64, the one that is surely worst first.

        Their order is that of the lower end of the error's interval: all of five wrong comes before one of one.
        """
        num_wrong = self.table.images - self.table.right
        order = np.lexsort((-num_wrong, -self.low))
        return order[num_wrong[order] > 0]


def measure(data: ReportData) -> Measured | None:
    """Return the figures of the valid split; None where it has no labelled image."""
    rows = np.flatnonzero(data.answers.labels >= 0)
    if not len(rows):
        return None
    answers = data.answers.at(rows)
    knows_counts = len(data.train_counts) > 0
    num_classes = int(max(answers.labels.max(), answers.predicted.max())) + 1
    num_classes = max(num_classes, len(data.train_counts), len(data.class_names))
    counts = data.train_counts if knows_counts else np.zeros(num_classes, np.int64)
    metrics = metrics_of(answers, np.asarray(counts), parents=data.class_parents or None)
    table = class_table(answers, num_classes)
    low, high = binomial_interval(table.images - table.right, table.images)
    return Measured(rows, answers, metrics if knows_counts else _without_groups(metrics), table, low, high)


def _without_groups(metrics: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in metrics.items() if name not in (*GROUPS, 'head_tail')}
    for name in ('interval', 'calibration'):
        if name in kept:
            kept[name] = {group: value for group, value in kept[name].items() if group not in GROUPS}
    return kept
