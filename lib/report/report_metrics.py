"""What the valid split says of a model, computed once for all parts of the report.

What a report is made from.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from lib.metrics.class_report import ClassTable, class_table, metrics_of
from lib.metrics.intervals import binomial_interval
from lib.metrics.predictions import Answers, predictions_alone

_NO_ROWS = np.zeros(0, np.int64)


@dataclass
class ReportData:
    """What a report shows; a part without its data is left out.

    Attributes:
        history: objects of metrics.jsonl.
        summary: {'best': {'epoch': 7, metrics}, 'last': {...}} of the valid split; figures that `answers` give as well
            are taken from these.
        class_names: (num_classes,); numbers where it is empty.
        class_parents: (num_classes,) ancestors of each class, root first; empty when unknown.
        train_counts: (num_classes,) int64, of the original training set; empty when unknown.
        answers: of the model to the valid split.
        open_image: row of the valid split -> RGB image; may raise.
        tau: content of tau.json.
        is_rebalanced: whether the answers are those of the re-balanced model.
        notes: warnings.
    """

    title: str
    command: str = ''
    history: Sequence[dict[str, Any]] = ()
    summary: dict[str, dict[str, Any]] = field(default_factory=dict)
    class_names: Sequence[str] = ()
    class_parents: Sequence[Sequence[str]] = ()
    train_counts: np.ndarray = field(default_factory=_NO_ROWS.copy)
    answers: Answers = field(default_factory=lambda: predictions_alone(_NO_ROWS, _NO_ROWS))
    open_image: Callable[[int], Image.Image] | None = None
    tau: dict[str, Any] | None = None
    is_rebalanced: bool = False
    config_text: str = ''
    environment_text: str = ''
    notes: Sequence[str] = ()

    def name_of(self, label: int) -> str:
        """Return what to call a class."""
        return str(self.class_names[label]) if label < len(self.class_names) else f'class {label}'


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
class ReportMetrics:
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


def compute_report_metrics(data: ReportData) -> ReportMetrics | None:
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
    return ReportMetrics(rows, answers, metrics if knows_counts else _without_groups(metrics), table, low, high)


def _without_groups(metrics: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in metrics.items() if name not in (*GROUPS, 'head_tail')}
    for name in ('interval', 'calibration'):
        if name in kept:
            kept[name] = {group: value for group, value in kept[name].items() if group not in GROUPS}
    return kept
