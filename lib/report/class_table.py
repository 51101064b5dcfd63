"""report.json: the figures of the report for programs.

The table of all classes: as data for the page's script, as rows for paper, and as columns for report.json.
"""

import json
from typing import Any

import numpy as np
from markupsafe import Markup

from lib.report.class_charts import data_statistics
from lib.report.report_metrics import ERRORS, ReportData, ReportMetrics

NUM_STATIC = 20  # rows of the table that needs no script
_LESS_THAN = '\\u003c'


def class_columns(data: ReportData, metrics: ReportMetrics) -> dict[str, list[Any]]:
    """Return what is known of each class as lists (num_classes,), None where it is not.

    Fractions from 0 to 1: error and its 95 % interval (error_low, error_high).
    """
    table, has_images = metrics.table, metrics.table.images > 0
    counts = np.asarray(data.train_counts)

    def where_measured(values: np.ndarray) -> list[float | None]:
        return [round(value, 4) if known else None for value, known in zip(values.tolist(), has_images, strict=True)]

    columns: dict[str, list[Any]] = {'name': [data.name_of(label) for label in range(metrics.num_classes)]}
    if len(data.class_parents):
        columns['parents'] = [list(parents) for parents in data.class_parents]
    if len(counts):
        columns['train_images'] = counts.tolist()
    return columns | {
        'images': table.images.tolist(),
        'right': table.right.tolist(),
        'error': where_measured(1 - np.nan_to_num(table.accuracy)),
        'error_low': where_measured(metrics.low),
        'error_high': where_measured(metrics.high),
        'mistaken_for': [int(label) if label >= 0 else None for label in table.mistaken_for.tolist()],
        'num_mistaken': table.num_mistaken.tolist(),
    }


def class_data(data: ReportData, metrics: ReportMetrics) -> Markup:
    """Return the columns for the page's script as JSON that can stand in a <script>: it holds no '<'.

    Compact: names only where there are any, each chain of parents once, ends of intervals in tenths of a percent.
    """
    table, counts = metrics.table, np.asarray(data.train_counts)
    content: dict[str, Any] = {
        'images': table.images.tolist(),
        'right': table.right.tolist(),
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
    """Return the worst classes, NUM_STATIC at most: columns as in class_columns, and label."""
    table, counts = metrics.table, data.train_counts
    return [
        {
            'label': int(label),
            'name': data.name_of(int(label)),
            'train_images': int(counts[label]) if len(counts) else None,
            'images': int(table.images[label]),
            'right': int(table.right[label]),
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
    """Return the content of report.json, a line a part; a part without its data is left out.

    title, command, notes, config, environment; summary (best and last epoch), history; data (data_statistics); valid
    (metrics_of, and error_interval of each error, 95 %); worst (numbers of the classes with a mistake, the worst
    first); classes (class_columns); tau (tau.json). Fractions from 0 to 1.
    """
    content: dict[str, Any] = {
        'title': data.title,
        'command': data.command,
        'notes': list(data.notes),
        'summary': data.summary,
        'data': data_statistics(data, metrics),
        'tau': data.tau,
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
