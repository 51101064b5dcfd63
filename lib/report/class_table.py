"""The table of all classes (columns for report.json, data for the page's script, rows for print) and report.json."""

import json
from typing import Any

import numpy as np
from markupsafe import Markup

from lib.report.class_charts import data_statistics
from lib.report.report_metrics import ERRORS, ReportData, ReportMetrics

NUM_STATIC = 20  # rows of the table that needs no script
_LESS_THAN = '\\u003c'


def class_columns(data: ReportData, metrics: ReportMetrics) -> dict[str, list[Any]]:
    """Return the columns of the class table as lists (num_classes,); None for unknown values.

    `error` and its 95 % interval (`error_low`, `error_high`) are fractions from 0 to 1.
    """
    table, has_images = metrics.table, metrics.table.images > 0
    counts = np.asarray(data.train_counts)

    def or_none(values: np.ndarray) -> list[float | None]:
        return [round(value, 4) if valid else None for value, valid in zip(values.tolist(), has_images, strict=True)]

    columns: dict[str, list[Any]] = {'name': [data.name_of(label) for label in range(metrics.num_classes)]}
    if len(data.class_parents):
        columns['parents'] = [list(parents) for parents in data.class_parents]
    if len(counts):
        columns['train_images'] = counts.tolist()
    return columns | {
        'images': table.images.tolist(),
        'right': table.correct.tolist(),
        'error': or_none(1 - np.nan_to_num(table.accuracy)),
        'error_low': or_none(metrics.low),
        'error_high': or_none(metrics.high),
        'mistaken_for': [int(label) if label >= 0 else None for label in table.mistaken_for.tolist()],
        'num_mistaken': table.num_mistaken.tolist(),
    }


def class_data(data: ReportData, metrics: ReportMetrics) -> Markup:
    """Return the columns for the page's script as JSON without '<', so that it can be inserted into a <script>.

    Compact: names only if there are any, each chain of parents once, bounds of intervals in tenths of a percent.
    """
    table, counts = metrics.table, np.asarray(data.train_counts)
    content: dict[str, Any] = {
        'images': table.images.tolist(),
        'right': table.correct.tolist(),
        'low': np.rint(1000 * metrics.low).astype(int).tolist(),
        'high': np.rint(1000 * metrics.high).astype(int).tolist(),
        'mistaken': table.mistaken_for.tolist(),
        'times': table.num_mistaken.tolist(),
    }
    if len(data.class_names):
        content['names'] = [data.name_of(label) for label in range(metrics.num_classes)]
    if len(counts):
        content['train'] = counts.tolist()
    if len(data.class_parents):
        chains: dict[str, int] = {}
        content['parent'] = [chains.setdefault(_chain(parents), len(chains)) for parents in data.class_parents]
        content['chains'] = list(chains)
    text = json.dumps(content, ensure_ascii=False, separators=(',', ':'))
    return Markup(text.replace('<', _LESS_THAN))


def static_rows(data: ReportData, metrics: ReportMetrics) -> list[dict[str, Any]]:
    """Return at most NUM_STATIC worst classes, each with its label and the columns of class_columns."""
    table, counts = metrics.table, data.train_counts
    return [
        {
            'label': int(label),
            'name': data.name_of(int(label)),
            'train_images': int(counts[label]) if len(counts) else None,
            'images': int(table.images[label]),
            'right': int(table.correct[label]),
            'error': float(1 - table.accuracy[label]),
            'interval': (float(metrics.low[label]), float(metrics.high[label])),
            'mistaken_for': data.name_of(int(table.mistaken_for[label])) if table.mistaken_for[label] >= 0 else '',
            'num_mistaken': int(table.num_mistaken[label]),
        }
        for label in metrics.worst()[:NUM_STATIC]
    ]


def _chain(parents: Any) -> str:
    return ' › '.join(map(str, parents))


def report_json(data: ReportData, metrics: ReportMetrics | None) -> str:
    """Return the content of report.json, one line per part; parts without data are left out.

    Parts: title, command, notes, config, environment; summary (best and last epoch), history; data (data_statistics);
    corrections (as in TrainingSet); valid (detailed_metrics, and the 95 % error_interval of each error); worst (labels
    of the classes with a misclassified image, worst first); classes (class_columns); tau (tau.json). Fractions are from
    0 to 1.
    """
    content: dict[str, Any] = {
        'title': data.title,
        'command': data.command,
        'notes': list(data.notes),
        'summary': data.summary,
        'data': data_statistics(data, metrics),
        'corrections': data.corrections,
        'tau': data.tau,
        'open_set': data.open_set,
        'config': data.config_text,
        'environment': data.environment_text,
        'history': list(data.history),
    }
    if metrics:
        intervals = {name: metrics.error_interval(name) for name in ERRORS}
        errors = {name: list(ends) for name, ends in intervals.items() if ends}
        content['valid'] = {**metrics.overall, 'error_interval': errors}
        content['worst'] = metrics.worst().tolist()
        content['classes'] = class_columns(data, metrics)
    parts = [f'{json.dumps(name)}: {json.dumps(part, ensure_ascii=False)}' for name, part in content.items() if part]
    return '{\n' + ',\n'.join(parts) + '\n}\n'
