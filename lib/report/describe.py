"""Tables and lines for the terminal: metrics, tau, retrieval, enrolled classes, post-hoc methods, an audit."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lib.audit.findings import SINGLE_COLOR, DuplicateGroup
from lib.audit.report import AuditReport
from lib.dataset.image_format import HEIC_HINT
from lib.errors import printable
from lib.inference.retrieval import Retrieval
from lib.metrics.confidence import HALF, summarize_confidence
from lib.metrics.predictions import Predictions
from lib.runtime.text import count_of, size_text

_COLUMNS = {
    'mean_class_error': 'mean class error',
    'top1': 'top-1',
    'top5': 'top-5',
    'many': 'many',
    'medium': 'medium',
    'few': 'few',
}

_WIDTH = 80
# Kind of suspicious images -> its name in the table.
SUSPICIOUS = {
    'tiny': 'tiny',
    'extreme_ratio': 'extreme ratio',
    SINGLE_COLOR: 'single color',
    'damaged': 'damaged, but readable',
}


def describe_metrics(rows: dict[str, dict[str, float]]) -> list[str]:
    """Return a table of metrics in percent, one line per row; a missing metric is '-'.

    All columns but the mean class error are accuracies. Without any metric, the table is empty.
    """
    columns = [name for name in _COLUMNS if any(name in metrics for metrics in rows.values())]
    if not columns:
        return []
    width = max(len(name) for name in rows)
    lines = [' ' * width + ''.join(f'  {_COLUMNS[name]:>7}' for name in columns)]
    for row, metrics in rows.items():
        cells = [f'{metrics[name]:.1%}' if name in metrics else '-' for name in columns]
        lines.append(
            f'{row:<{width}}'
            + ''.join(f'  {cell:>{max(7, len(_COLUMNS[name]))}}' for name, cell in zip(columns, cells, strict=True))
        )
    return lines


def describe_prediction(metrics: dict[str, float], plain: dict[str, float]) -> list[str]:
    """Return the metrics of a prediction; `plain`: those of the first model with one view, if there are several."""
    if not plain:
        return describe_metrics({'test': metrics})
    lines = describe_metrics({'one model, one view': plain, 'average': metrics})
    gain = plain['mean_class_error'] - metrics['mean_class_error']
    if gain <= 0:
        lines.append('averaging does not lower the mean class error of one model, one view')
    else:
        lines.append(f'averaging: mean class error {gain:.1%} lower'.replace('%', ' points'))
    return lines


def describe_confidence(predictions: Predictions, threshold: float | None) -> list[str]:
    """Return the number of images, their mean confidence, and how many are below a threshold or cannot be decoded.

    `threshold`: probability below which the model abstains; None: none was chosen.
    """
    summary = summarize_confidence(predictions, threshold)
    mean = f'{summary.mean:.1%}' if summary.num_readable else '-'
    unreadable = f', {summary.num_unreadable:,} unreadable' if summary.num_unreadable else ''
    lines = [f'{count_of(len(predictions), "image")}, mean confidence {mean}{unreadable}']
    if threshold is None:
        lines.append(f'{summary.num_below:,} below {HALF:.0%} (a threshold for abstention: --TEST_ABSTAIN_ERROR 0.05)')
    elif np.isfinite(threshold):
        lines.append(f'{summary.num_below:,} below the abstention threshold {threshold:.1%}')
    else:
        lines.append(f'{summary.num_below:,} below the abstention threshold: no threshold holds the target error')
    return lines


def describe_tau(tau: dict[str, Any]) -> list[str]:
    """Return the optimum, the chosen tau and the cross-fitted metric of tau.json, one per line."""
    name = {'mean_class_error': 'mean class error', 'top1': 'top-1 accuracy'}[tau['metric']]
    optimum = f'optimum at tau {tau["optimum"]:.3f}: {name} {tau["optimum_value"]:.1%}'
    low, high = tau['stretch']
    if tau['chosen'] is None:
        lines = [optimum, 'no tau is better than the classifier as it is: the model is saved unchanged']
    else:
        lines = [
            optimum,
            f'chosen tau {tau["chosen"]:.3f}, the middle of {low:.3f} to {high:.3f} (one standard error)',
        ]
    cross_fitted = tau.get('cross_fitted')
    if cross_fitted and tau['chosen'] is not None:
        value = cross_fitted[tau['metric']]
        lines.append(f'cross-fitted, with tau from the other folds: {name} {value:.1%} ({cross_fitted["folds"]} folds)')
    return lines + ([tau['note']] if tau['note'] else [])


def describe_retrieval(results: Mapping[str, Retrieval]) -> list[str]:
    """Return a table of retrieval metrics, averaged over images and over classes, and the number of skipped images.

    `results`: of the same images by name of the search; the name of a single one is not shown.
    """
    lines = []
    first = next(iter(results.values()))
    labels = {name: f'{name} ' if len(results) > 1 else '' for name in results}
    width = len('over classes') + max(map(len, labels.values()))
    if first.images:
        widths = {name: 2 + max(len(name), len('100.0%')) for name in first.images}
        lines.append(' ' * width + ''.join(f'{name:>{column}}' for name, column in widths.items()))
        for over in ('images', 'classes'):
            for search, retrieval in results.items():
                metrics = getattr(retrieval, over)
                row = f'{labels[search]}over {over}'
                cells = (f'{metrics[name]:>{column}.1%}' for name, column in widths.items())
                lines.append(f'{row:<{width}}' + ''.join(cells))
    if first.left_out:
        images = '1 image is' if first.left_out == 1 else f'{first.left_out} images are'
        lines.append(f'{images} left out: the gallery has no image of their class')
    return lines


def describe_enrolled(metrics: dict[str, Any]) -> list[str]:
    """Return the mean class accuracies of enroll.json before and after, and the images that they are computed on."""
    old, new, known = metrics['old'], metrics['new'], metrics['known']
    num_known = known.get('num_classes', 0)
    changes = [
        f'{count_of(number, f"{kind} class", f"{kind} classes")} from {count_of(of_kind["num_shots"], "image")}'
        for kind, of_kind, number in (('new', new, len(metrics['classes']) - num_known), ('known', known, num_known))
        if of_kind
    ]
    if metrics['retired']:
        changes.append(count_of(len(metrics['retired']), 'class retired', 'classes retired'))
    lines = [
        ', '.join([*changes, f'{metrics["num_classes"]} classes in total']),
        f'{"accuracy":<13}  {"before":>7}  {"after":>7}',
    ]
    folds = f', cross-fitted ({old["folds"]} folds)' if old else ''
    rows = (
        ('old', old, 'validation image', folds),
        ('new', new, 'held-out image', ''),
        ('known', known, 'held-out image', ''),
    )
    for name, one, image, note in rows:
        if 'after' in one:
            images = count_of(one['num_measured'], image) + note
            lines.append(f'{f"{name} classes":<13}  {one["before"]:>7.1%}  {one["after"]:>7.1%}  {images}')
    if any(one and 'after' not in one for one in (new, known)):
        lines.append('new images: none is held out to measure them; ENROLL.PER_CLASS leaves some')
    return lines


def describe_posthoc(results: dict[str, dict[str, Any]]) -> list[str]:
    """Return one line per method, of at most 80 columns; fitted parameters that do not fit follow on a second line.

    `results`: name -> mean_class_error, interval, top1, parameters, and loss and ece if known.
    """
    width = max(map(len, results))
    lines = [f'{"":<{width}}  {"mean class error, %":>20}  {"top-1":>6}  {"loss":>6}  {"ECE":>5}  fitted']
    for name, metrics in results.items():
        low, high = (100 * end for end in metrics['interval'])
        error = f'{100 * metrics["mean_class_error"]:.1f} [{low:.1f}, {high:.1f}]'
        loss, ece = (f'{metrics[key]:.3f}' if key in metrics else '-' for key in ('loss', 'ece'))
        fitted = '; '.join(f'{key} {_parameter_text(value)}' for key, value in metrics['parameters'].items())
        line = f'{name:<{width}}  {error:>20}  {100 * metrics["top1"]:>6.1f}  {loss:>6}  {ece:>5}'
        lines.append(f'{line}  {fitted}' if len(line) + 2 + len(fitted) <= 80 else line)
        if len(line) + 2 + len(fitted) > 80:
            lines.append(f'{"":<{width}}    {fitted}')
    return lines


def _parameter_text(value: Any) -> str:
    if isinstance(value, list):
        numbers = [number for number in value if number is not None]
        if not numbers:
            return 'none'
        low, high = min(numbers), max(numbers)
        return f'{low:.2f}' if f'{low:.2f}' == f'{high:.2f}' else f'{low:.2f}-{high:.2f}'
    return f'{value:,}' if isinstance(value, int) else f'{value:.2f}'


def describe_audit(report: AuditReport, folder: Path, num_quarantined: int) -> list[str]:
    """Return the statistics of the splits, the findings with one example each, and the files written.

    Lines have at most 80 columns, except for long paths of files.
    """
    lines = []
    for name, statistics in report.split_statistics().items():
        lines += _split_lines(name, statistics)
    lines += ['', f'{"finding":<34}{"images":>9}   example']
    for title, rows in _findings(report):
        example = _example(report, int(rows[0]), _WIDTH - 46) if len(rows) else ''
        lines.append(f'{title:<34}{len(rows):>9,}   {example}'.rstrip())
    num_heic = sum(HEIC_HINT in reason for reason in report.scan.errors.values())
    if num_heic:
        lines.append(f'{count_of(num_heic, "unreadable image is", "unreadable images are")} HEIC; {HEIC_HINT}')
    lines += ['', f'{folder}/', '  doctor.html      report with images', '  doctor.json      all findings']
    fraction = num_quarantined / max(len(report.splits[0].labels), 1)
    images = 'training image' if num_quarantined == 1 else 'training images'
    lines.append(f'  quarantine.json  {num_quarantined:,} {images} ({fraction:.1%})')
    if num_quarantined:
        lines.append(f'to train without them: --DATASET_QUARANTINE {folder / "quarantine.json"}')
    return lines


def _split_lines(name: str, statistics: dict[str, Any]) -> list[str]:
    lines = [f'{name:<6} {count_of(statistics["images"], "image")}{_class_text(statistics["classes"])}']
    sizes = statistics['sizes']
    if sizes:
        width, height, size = sizes['width'], sizes['height'], sizes['bytes']
        formats = ', '.join(f'{key} {count:,}' for key, count in sizes['formats'].items())
        lines.append(f'       width {_spread(width)}, height {_spread(height)} (5, 50, 95 %)')
        lines.append(f'       {size_text(size["median"])} per file; {formats}')
        if sizes['enlarged']:
            lines.append(f'       {sizes["enlarged"]:,} upscaled (shorter side below {sizes["enlarged_below"]} pixels)')
    return lines


def _class_text(classes: dict[str, Any]) -> str:
    if not classes:
        return ''
    nonempty = classes['num_classes'] - len(classes['empty'])
    text = f', {count_of(nonempty, "class", "classes")} of {classes["smallest"]:,} to {classes["largest"]:,}'
    notes = [f'{len(classes[key]):,} {word}' for key, word in (('few', 'small'), ('empty', 'empty')) if classes[key]]
    return f'{text} (x {classes["imbalance"]:.1f}){"; " if notes else ""}{", ".join(notes)}'


def _findings(report: AuditReport) -> list[tuple[str, Sequence[int] | np.ndarray]]:
    return [
        ('missing', report.missing),
        ('unreadable', report.unreadable),
        *((SUSPICIOUS[kind], rows) for kind, rows in report.suspicious.items()),
        *_duplicates('exact copies', report.exact),
        *_duplicates('near copies', report.near),
    ]


def _duplicates(name: str, groups: list[DuplicateGroup]) -> list[tuple[str, np.ndarray]]:
    def rows(chosen: list[DuplicateGroup]) -> np.ndarray:
        return np.concatenate([np.zeros(0, np.int64), *(group.rows for group in chosen)])

    return [
        (name, rows(groups)),
        ('  across splits (leaks)', rows([group for group in groups if group.leak])),
        ('  across classes (contradictions)', rows([group for group in groups if group.contradiction])),
    ]


def _example(report: AuditReport, row: int, width: int) -> str:
    """Return the end of an image's path; if it is unreadable, its file name and the beginning of the reason."""
    path, reason = report.entry(row)['fpath'], report.scan.errors.get(row, '')
    text = f'{Path(path).name}: {reason}' if reason else path
    text = printable(text)
    if len(text) <= width:
        return text
    return f'{text[: width - 3]}...' if reason else f'...{text[3 - width :]}'


def _spread(percentiles: dict[str, int]) -> str:
    values = list(percentiles.values())
    return f'{values[0]:,}' if values[0] == values[-1] else '/'.join(f'{value:,}' for value in values)
