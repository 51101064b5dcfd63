"""A run's report: one HTML file that needs nothing but itself."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from lib.evaluation.confusion import ConfusedPair, most_confused
from lib.report.canvas import PALETTE, inline_svg, new_panel, styled
from lib.report.curves import curve_panels, draw_panel
from lib.report.data import ReportData
from lib.report.error_by_count import draw_error_by_count
from lib.report.page import page_environment
from lib.report.photos import PairPhotos, pair_photos
from lib.report.summary import dataset_facts, group_rows, percent, points, summary_cards, tau_rows, thousands
from lib.report.tau_curve import METRICS, draw_tau
from lib.runtime.files import write_text

NUM_PAIRS = 10


@dataclass(frozen=True)
class Chart:
    """A chart with its heading and a sentence on how to read it."""

    title: str
    svg: Markup
    caption: str = ''


@dataclass(frozen=True)
class Pair:
    """A confused pair with what the page says about it."""

    label: str
    predicted: str
    pair: ConfusedPair
    photos: PairPhotos | None


def write_report(path: str | os.PathLike, data: ReportData) -> Path:
    """Write the report of a run to `path`, atomically. The same data gives the same bytes."""
    environment = page_environment()
    environment.filters.update(percent=percent, points=points, thousands=thousands)
    known = np.asarray(data.labels) >= 0
    labels = np.asarray(data.labels)[known]
    predicted = np.asarray(data.predicted)[known]
    page = environment.get_template('template.html').render(
        data=data,
        best_epoch=(data.summary.get('best') or {}).get('epoch'),
        last_epoch=(data.summary.get('last') or {}).get('epoch'),
        palette=PALETTE,
        facts=dataset_facts(data, labels, predicted),
        cards=summary_cards(data, labels, predicted),
        curves=_curves(data),
        by_count=_by_count(data, labels, predicted),
        groups=group_rows(data, labels, predicted),
        pairs=_pairs(data, np.flatnonzero(known), labels, predicted),
        tau=_tau_chart(data.tau),
        tau_rows=tau_rows(data.tau),
    )
    write_text(path, page)
    return Path(path)


def _curves(data: ReportData) -> list[Chart]:
    best_epoch = (data.summary.get('best') or {}).get('epoch')
    charts = []
    with styled():
        for panel in curve_panels(data.history):
            figure, axes = new_panel()
            draw_panel(axes, panel, best_epoch)
            names = ', '.join(series.label for series in panel.series)
            charts.append(Chart(panel.title, inline_svg(figure, f'{panel.title} over the epochs: {names}')))
    return charts


def _by_count(data: ReportData, labels: np.ndarray, predicted: np.ndarray) -> Chart | None:
    if not len(labels) or not len(data.train_counts):
        return None
    with styled():
        figure, axes = new_panel()
        num_classes, num_dots = draw_error_by_count(axes, np.asarray(data.train_counts), labels, predicted)
        svg = inline_svg(figure, 'Error of each class against its number of training images')
    drawn = f'{thousands(num_classes)} classes in {thousands(num_dots)} dots'
    caption = f'{drawn}; a larger, fuller dot stands for more classes.'
    return Chart('Error by training images', svg, caption)


def _pairs(data: ReportData, rows: np.ndarray, labels: np.ndarray, predicted: np.ndarray) -> list[Pair]:
    def name(label: int) -> str:
        return str(data.class_names[label]) if label < len(data.class_names) else f'class {label}'

    def open_row(place: int) -> Image.Image:
        return data.open_image(int(rows[place]))

    return [
        Pair(
            name(pair.label),
            name(pair.predicted),
            pair,
            pair_photos(pair, labels, predicted, open_row) if data.open_image else None,
        )
        for pair in most_confused(labels, predicted, NUM_PAIRS)
    ]


def _tau_chart(tau: dict[str, Any] | None) -> Chart | None:
    if not tau or not tau.get('curve', {}).get('value'):
        return None
    with styled():
        figure, axes = new_panel()
        draw_tau(axes, tau)
        name = METRICS.get(tau['metric'], tau['metric'])
        return Chart(f'Valid {name} for every tau', inline_svg(figure, f'Valid {name} as a function of tau'))
