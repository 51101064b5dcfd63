"""A run's report: one self-contained HTML file."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from lib.dataset.corrections import describe_counts
from lib.report.chart_style import inline_svg, new_panel, styled
from lib.report.charts import METRICS, curve_panels, draw_panel, draw_tau
from lib.report.class_charts import data_statistics, draw_class_sizes, draw_error_by_count, draw_reliability
from lib.report.class_table import class_data, report_json, static_rows
from lib.report.galleries import ThumbnailBudget, fit_page, make_class_cards
from lib.report.page import PALETTE, between, inline_script, page_environment, percent, points, thousands
from lib.report.report_metrics import (
    GROUPS,
    ReportData,
    ReportMetrics,
    compute_report_metrics,
    group_rows,
    run_facts,
    summary_cards,
    tau_rows,
)
from lib.runtime.files import replace_together, write_text
from lib.runtime.log import LOGGER

MAX_BYTES = 5_000_000


@dataclass(frozen=True)
class Chart:
    """A chart with its heading and caption."""

    title: str
    svg: Markup
    caption: str = ''


def write_report(
    path: str | os.PathLike, data: ReportData, *, max_bytes: float = MAX_BYTES, json_too: bool = False
) -> Path:
    """Write the report of a run to `path`, atomically. The same data gives the same bytes.

    Args:
        max_bytes: size limit; thumbnails are left out from the end of the page on until the file fits.
        json_too: also write the metrics as JSON, to `path` with the suffix .json.
    """
    path, metrics = Path(path), compute_report_metrics(data)
    page = _fit_size(max_bytes, path, data, _renderer(data, metrics), make_class_cards(metrics))
    with replace_together(path.parent):
        write_text(path, page)
        if json_too:
            write_text(path.with_suffix('.json'), report_json(data, metrics))
    return path


def _fit_size(max_bytes: float, path: Path, data: ReportData, render: Callable, make_cards: Callable) -> str:
    """Return the page with as many thumbnails as fit into `max_bytes`."""
    if data.open_image is None:
        return render(make_cards(None), 0)
    page = fit_page(
        lambda budget: render(make_cards(budget), budget.num_left_out), ThumbnailBudget(data.open_image), max_bytes
    )
    num_bytes = len(page.encode())
    if num_bytes > max_bytes:
        LOGGER.warning(
            '%s takes %.1f MB without images, more than REPORT.MAX_MB %g', path, num_bytes / 1e6, max_bytes / 1e6
        )
    return page


def _renderer(data: ReportData, metrics: ReportMetrics | None) -> Callable[[dict, int], str]:
    """Return a function that renders the page from its cards and the number of images left out.

    All other parts of the page are computed once, here.
    """
    environment = page_environment()
    environment.filters.update(percent=percent, points=points, thousands=thousands, between=between)
    environment.globals.update(name_of=data.name_of, describe_counts=describe_counts)
    script, script_hash = inline_script('classes.js')
    parts = {
        'data': data,
        'best_epoch': (data.summary.get('best') or {}).get('epoch'),
        'last_epoch': (data.summary.get('last') or {}).get('epoch'),
        'palette': PALETTE,
        'metrics': metrics,
        'facts': run_facts(data, metrics),
        'cards': summary_cards(data, metrics),
        'curves': _curves(data),
        'by_count': _by_count(data, metrics),
        'groups': group_rows(data, metrics),
        'calibration': _calibration(metrics),
        'statistics': data_statistics(data, metrics),
        'sizes': _sizes(data),
        'rows': static_rows(data, metrics) if metrics else [],
        'class_data': class_data(data, metrics) if metrics else '',
        'script': script,
        'script_hash': script_hash,
        'tau': _tau_chart(data.tau),
        'tau_rows': tau_rows(data.tau),
    }
    template = environment.get_template('run_page.html')

    def render(cards: dict[str, Any], num_left_out: int) -> str:
        return template.render(**parts, **cards, num_left_out=num_left_out)

    return render


def _curves(data: ReportData) -> list[Chart]:
    best_epoch = (data.summary.get('best') or {}).get('epoch')
    charts = []
    with styled():
        for panel in curve_panels(data.history):
            figure, axes = new_panel()
            draw_panel(axes, panel, best_epoch)
            names = ', '.join(series.label for series in panel.series)
            charts.append(Chart(panel.title, inline_svg(figure, f'{panel.title} by epoch: {names}')))
    return charts


def _by_count(data: ReportData, metrics: ReportMetrics | None) -> Chart | None:
    if not metrics or not len(data.train_counts):
        return None
    with styled():
        figure, axes = new_panel()
        counts, predictions = np.asarray(data.train_counts), metrics.predictions
        num_classes, num_dots = draw_error_by_count(axes, counts, predictions.labels, predictions.predicted)
        svg = inline_svg(figure, 'Error of each class against its number of training images')
    drawn = f'{thousands(num_classes)} classes in {thousands(num_dots)} dots'
    caption = f'{drawn}; larger, darker dots stand for more classes.'
    return Chart('Error by training images', svg, caption)


def _calibration(metrics: ReportMetrics | None) -> list[Chart]:
    """Return the reliability diagrams of all images and of the groups."""
    calibration = metrics.overall.get('calibration', {}) if metrics else {}
    titles = {('all',): 'All valid images', tuple(name for name in GROUPS if name in calibration): 'By class size'}
    charts = []
    with styled():
        for names, title in titles.items():
            if names and all(name in calibration for name in names):
                figure, axes = new_panel()
                draw_reliability(axes, calibration, names)
                charts.append(Chart(title, inline_svg(figure, f'Accuracy against confidence: {", ".join(names)}')))
    return charts


def _sizes(data: ReportData) -> Chart | None:
    if not np.any(np.asarray(data.train_counts) > 0):
        return None
    with styled():
        figure, axes = new_panel()
        draw_class_sizes(axes, np.asarray(data.train_counts))
        return Chart('Class sizes', inline_svg(figure, 'Histogram of training images per class'))


def _tau_chart(tau: dict[str, Any] | None) -> Chart | None:
    if not tau or not tau.get('curve', {}).get('value'):
        return None
    with styled():
        figure, axes = new_panel()
        draw_tau(axes, tau)
        name = METRICS.get(tau['metric'], tau['metric'])
        return Chart(f'Valid {name} against tau', inline_svg(figure, f'Valid {name} as a function of tau'))
