"""report.json: the figures of the report for programs."""

import json
from typing import Any

from lib.report.class_list import class_columns
from lib.report.data import ReportData
from lib.report.data_statistics import data_statistics
from lib.report.report_metrics import ERRORS, Measured


def report_figures(data: ReportData, measured: Measured | None) -> str:
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
        'data': data_statistics(data, measured),
        'tau': data.tau,
        'config': data.config_text,
        'environment': data.environment_text,
        'history': list(data.history),
    }
    if measured:
        intervals = {name: measured.error_interval(name) for name in ERRORS}
        errors = {name: list(ends) for name, ends in intervals.items() if ends}
        content['valid'] = {**measured.metrics, 'error_interval': errors}
        content['worst'] = measured.worst().tolist()
        content['classes'] = class_columns(data, measured)
    parts = [f'{json.dumps(name)}: {json.dumps(part, ensure_ascii=False)}' for name, part in content.items() if part]
    return '{\n' + ',\n'.join(parts) + '\n}\n'
