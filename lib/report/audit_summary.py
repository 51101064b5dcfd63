"""What the doctor found, in a few lines of at most 80 columns."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lib.audit.findings import Group
from lib.audit.report import Checkup

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
