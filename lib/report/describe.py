"""Metrics as lines for people.

What post-hoc methods gain, as a table for a terminal.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lib.audit.findings import Group
from lib.audit.report import Checkup
from lib.inference.retrieval import Retrieval

_COLUMNS = {
    'mean_class_error': 'mean class error',
    'top1': 'top-1',
    'top5': 'top-5',
    'many': 'many',
    'medium': 'medium',
    'few': 'few',
}


def describe_metrics(rows: dict[str, dict[str, float]]) -> list[str]:
    """Return a table, a line a row: accuracies in percent but for the mean class error; what is absent is '-'.

    Nothing is returned when no row has a metric.
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
    """Return the metrics of a prediction; of several views or models, beside those of the first one's plain view."""
    if not plain:
        return describe_metrics({'test': metrics})
    lines = describe_metrics({'one model, one view': plain, 'all together': metrics})
    gain = plain['mean_class_error'] - metrics['mean_class_error']
    if gain <= 0:
        lines.append('all together are no better than one model and one view by mean class error')
    else:
        lines.append(f'all together: mean class error {gain:.1%} lower'.replace('%', ' points'))
    return lines


def describe_tau(tau: dict[str, Any]) -> list[str]:
    """Return what tau.json says, in a few lines."""
    name = {'mean_class_error': 'mean class error', 'top1': 'top-1 accuracy'}[tau['metric']]
    optimum = f'optimum at tau {tau["optimum"]:.3f}: {name} {tau["optimum_value"]:.1%}'
    low, high = tau['stretch']
    if tau['chosen'] is None:
        lines = [f'{optimum}, no better than before: the model is saved unchanged']
    else:
        lines = [
            optimum,
            f'chosen tau {tau["chosen"]:.3f}, the middle of {low:.3f} to {high:.3f} (one standard error)',
        ]
    found = tau.get('cross_fitted')
    if found and tau['chosen'] is not None:
        lines.append(
            f'on images that tau was not chosen on ({found["folds"]} folds): {name} {found[tau["metric"]]:.1%}'
        )
    return lines + ([tau['note']] if tau['note'] else [])


def describe_retrieval(found: Retrieval) -> list[str]:
    """Return a table of retrieval metrics, averaged over images and over classes, and what was left out."""
    lines = []
    if found.images:
        names = list(found.images)
        lines.append(' ' * 14 + ''.join(f'  {name:>11}' for name in names))
        for row, metrics in (('over images', found.images), ('over classes', found.classes)):
            lines.append(f'{row:<14}' + ''.join(f'  {metrics[name]:>11.1%}' for name in names))
    if found.left_out:
        lines.append(f'{found.left_out} images are left out of these: there is none of their class to find')
    return lines


def describe_enrolled(figures: dict[str, Any]) -> list[str]:
    """Return what enroll.json says: accuracies before and after, averaged over classes, and what they were taken on."""
    old, new = figures['old'], figures['new']
    lines = [
        f'{len(figures["classes"])} new classes from {new["num_shots"]} images, {figures["num_classes"]} in all',
        f'{"accuracy":<12}  {"before":>7}  {"after":>7}',
    ]
    if old:
        how = f'{old["num_measured"]} validation images, each by rows chosen without it ({old["folds"]} folds)'
        lines.append(f'{"old classes":<12}  {old["before"]:>7.1%}  {old["after"]:>7.1%}  {how}')
    if 'after' in new:
        how = f'{new["num_measured"]} images that took no part'
        lines.append(f'{"new classes":<12}  {new["before"]:>7.1%}  {new["after"]:>7.1%}  {how}')
    else:
        lines.append('no image of the new classes is left to measure by: ENROLL.PER_CLASS leaves some')
    return lines


def describe_posthoc(found: dict[str, dict[str, Any]]) -> list[str]:
    """Return a line a method, of at most 80 columns; what was fitted goes to a second one where it must.

    `found`: name -> mean_class_error, interval, top1, loss and ece where known, parameters.
    """
    width = max(map(len, found))
    lines = [f'{"":<{width}}  {"mean class error, %":>20}  {"top-1":>6}  {"loss":>6}  {"ECE":>5}  fitted']
    for name, figures in found.items():
        low, high = (100 * end for end in figures['interval'])
        error = f'{100 * figures["mean_class_error"]:.1f} [{low:.1f}, {high:.1f}]'
        loss, ece = (f'{figures[key]:.3f}' if key in figures else '-' for key in ('loss', 'ece'))
        said = '; '.join(f'{key} {_shown(value)}' for key, value in figures['parameters'].items())
        line = f'{name:<{width}}  {error:>20}  {100 * figures["top1"]:>6.1f}  {loss:>6}  {ece:>5}'
        lines.append(f'{line}  {said}' if len(line) + 2 + len(said) <= 80 else line)
        if len(line) + 2 + len(said) > 80:
            lines.append(f'{"":<{width}}    {said}')
    return lines


def _shown(value: Any) -> str:
    if isinstance(value, list):
        numbers = [number for number in value if number is not None]
        if not numbers:
            return 'none'
        low, high = min(numbers), max(numbers)
        return f'{low:.2f}' if f'{low:.2f}' == f'{high:.2f}' else f'{low:.2f}-{high:.2f}'
    return f'{value:,}' if isinstance(value, int) else f'{value:.2f}'


_WIDTH = 80
# Kinds of suspicious images, in words.
SUSPICIOUS = {
    'tiny': 'tiny',
    'extreme_ratio': 'extreme ratio',
    'one_colour': 'one colour',
    'damaged': 'damaged, but readable',
}


def describe_audit(checkup: Checkup, folder: Path, num_quarantined: int) -> list[str]:
    """Return the lines to print: figures of the splits, findings with an example each, and what was written."""
    lines = []
    for name, figures in checkup.figures().items():
        lines += _split_lines(name, figures)
    lines += ['', f'{"found":<34}{"images":>9}   example']
    for title, rows in _findings(checkup):
        example = _example(checkup, int(rows[0]), _WIDTH - 46) if len(rows) else ''
        lines.append(f'{title:<34}{len(rows):>9,}   {example}'.rstrip())
    lines += ['', f'{folder}/', '  doctor.html      to look at', '  doctor.json      all findings']
    share = num_quarantined / max(len(checkup.splits[0].labels), 1)
    lines.append(f'  quarantine.json  {num_quarantined:,} training images ({share:.1%})')
    if num_quarantined:
        lines.append(f'to train without them: --DATASET_QUARANTINE {folder / "quarantine.json"}')
    return lines


def _split_lines(name: str, figures: dict[str, Any]) -> list[str]:
    lines = [f'{name:<6} {figures["images"]:,} images{_classes(figures["classes"])}']
    sizes = figures['sizes']
    if sizes:
        width, height, size = sizes['width'], sizes['height'], sizes['bytes']
        formats = ', '.join(f'{key} {count:,}' for key, count in sizes['formats'].items())
        lines.append(f'       width {_spread(width)}, height {_spread(height)} (5, 50, 95 %)')
        lines.append(f'       {_bytes(size["median"])} a file; {formats}')
        if sizes['enlarged']:
            lines.append(f'       {sizes["enlarged"]:,} are enlarged: shorter than {sizes["enlarged_below"]} pixels')
    return lines


def _classes(classes: dict[str, Any]) -> str:
    if not classes:
        return ''
    filled = classes['num_classes'] - len(classes['empty'])
    text = f', {filled:,} classes of {classes["smallest"]:,} to {classes["largest"]:,}'
    notes = [f'{len(classes[key]):,} {word}' for key, word in (('few', 'small'), ('empty', 'empty')) if classes[key]]
    return f'{text} (x {classes["imbalance"]:.1f}){"; " if notes else ""}{", ".join(notes)}'


def _findings(checkup: Checkup) -> list[tuple[str, Sequence[int] | np.ndarray]]:
    return [
        ('missing', checkup.missing),
        ('unreadable', checkup.unreadable),
        *((SUSPICIOUS[kind], rows) for kind, rows in checkup.suspicious.items()),
        *_duplicates('exact copies', checkup.exact),
        *_duplicates('near copies', checkup.near),
    ]


def _duplicates(name: str, groups: list[Group]) -> list[tuple[str, np.ndarray]]:
    def rows(chosen: list[Group]) -> np.ndarray:
        return np.concatenate([np.zeros(0, np.int64), *(group.rows for group in chosen)])

    return [
        (name, rows(groups)),
        ('  across splits (leaks)', rows([group for group in groups if group.leak])),
        ('  across classes (contradictions)', rows([group for group in groups if group.contradiction])),
    ]


def _example(checkup: Checkup, row: int, width: int) -> str:
    """Return the end of an image's path, or its name and the beginning of the reason."""
    path, reason = checkup.entry(row)['fpath'], checkup.scan.reasons.get(row, '')
    text = f'{Path(path).name}: {reason}' if reason else path
    text = ''.join(char if char.isprintable() else '?' for char in text)
    if len(text) <= width:
        return text
    return f'{text[: width - 3]}...' if reason else f'...{text[3 - width :]}'


def _spread(percentiles: dict[str, int]) -> str:
    values = list(percentiles.values())
    return f'{values[0]:,}' if values[0] == values[-1] else '/'.join(f'{value:,}' for value in values)


def _bytes(count: int) -> str:
    return f'{count / 1e6:.1f} MB' if count >= 1e6 else f'{count / 1e3:.0f} kB'
