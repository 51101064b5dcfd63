"""The page of tools/doctor.py: all findings of an audit with thumbnails, in one self-contained HTML file."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lib.audit import findings
from lib.audit.findings import DuplicateGroup
from lib.audit.report import REASONS, AuditReport
from lib.dataset.decode import decode
from lib.report.describe import SUSPICIOUS
from lib.report.galleries import thumbnail_url
from lib.report.page import PALETTE, page_environment, thousands
from lib.runtime.files import write_text
from lib.runtime.text import size_text

MAX_CARDS = 24  # per finding
MAX_IMAGES = 6  # per card
MAX_NAMES = 200  # class names per list
_MEANING = {
    'missing': 'Listed in the annotations, but the file does not exist. Training stops at such a file.',
    'unreadable': 'Not a readable image. Training replaces it by another image of the class.',
    'tiny': 'The shorter side is below DOCTOR.MIN_SIDE.',
    'extreme_ratio': f'One side is more than {findings.EXTREME_RATIO:g} times the other.',
    findings.SINGLE_COLOR: 'All pixels have the same color: often a placeholder for a removed photo.',
    'damaged': 'The decoder recovered from an error; part of the image may be wrong.',
    'exact-leak': 'Identical pixels in more than one split: the model is evaluated on images that it was trained on.',
    'exact-labels': 'Identical pixels in several classes: at most one label is correct.',
    'exact': 'Identical pixels more than once, in one class and split.',
    'near-leak': 'One photo in more than one split, re-encoded, resized, brightened or with a stamp.',
    'near-labels': 'Nearly identical images in several classes.',
    'near': 'Nearly identical images in one class and split.',
}
_TITLES = {
    'missing': 'Missing',
    'unreadable': 'Unreadable',
    **{kind: words.capitalize() for kind, words in SUSPICIOUS.items()},
    'exact-leak': 'Exact copies across splits',
    'exact-labels': 'Exact copies across classes',
    'exact': 'Exact copies',
    'near-leak': 'Near copies across splits',
    'near-labels': 'Near copies across classes',
    'near': 'Near copies',
}


@dataclass(frozen=True)
class FindingImage:
    """An image on the page; `source` is its data: URL, '' if the image cannot be opened."""

    source: str
    split: str
    row: int
    path: str
    class_name: str
    note: str
    quarantined: str


@dataclass(frozen=True)
class FindingCard:
    """Images that are copies of each other, or a single image; `more` images are left out."""

    images: list[FindingImage]
    more: int


@dataclass(frozen=True)
class Finding:
    """One kind of finding; `num_more` cards are left out."""

    key: str
    title: str
    meaning: str
    num_images: int
    cards: list[FindingCard]
    num_more: int


def write_audit_page(
    path: str | os.PathLike, report: AuditReport, *, title: str, command: str, class_names: Sequence[str]
) -> Path:
    """Write the page to `path`, atomically."""
    environment = page_environment()
    environment.filters.update(thousands=thousands, size=size_text)
    splits = report.split_statistics()
    page = environment.get_template('audit_page.html').render(
        title=title,
        command=command,
        palette=PALETTE,
        splits=splits,
        findings=_findings(report, class_names),
        num_images=len(report.images),
        num_quarantined=int((report.verdicts != findings.KEEP).sum()),
        few=report.few,
        lists=_class_lists(splits, class_names),
    )
    write_text(path, page)
    return Path(path)


def _findings(report: AuditReport, class_names: Sequence[str]) -> list[Finding]:
    single = {'missing': report.missing, 'unreadable': report.unreadable, **report.suspicious}
    groups: dict[str, list[DuplicateGroup]] = {}
    for name, copies in (('exact', report.exact), ('near', report.near)):
        groups[f'{name}-leak'] = [group for group in copies if group.leak]
        groups[f'{name}-labels'] = [group for group in copies if group.contradiction and not group.leak]
        groups[name] = [group for group in copies if not group.leak and not group.contradiction]
    sets = {key: [np.array([row]) for row in rows] for key, rows in single.items()}
    sets |= {key: [group.rows for group in of_kind] for key, of_kind in groups.items()}
    # Leaks and contradictions first: they change results without any error message.
    order = sorted(_TITLES, key=lambda key: ('leak' not in key and 'labels' not in key, list(_TITLES).index(key)))
    return [
        Finding(
            key,
            _TITLES[key],
            _MEANING[key],
            sum(len(rows) for rows in sets[key]),
            [_card(report, rows, class_names) for rows in sets[key][:MAX_CARDS]],
            max(len(sets[key]) - MAX_CARDS, 0),
        )
        for key in order
        if sets[key]
    ]


def _card(report: AuditReport, rows: np.ndarray, class_names: Sequence[str]) -> FindingCard:
    # The first image of every split and class, then the others, so that the card shows every split and class.
    kinds = report.split_of[rows] * (report.labels.max() + 2) + report.labels[rows]
    first = np.unique(kinds, return_index=True)[1]
    order = [*first.tolist(), *np.setdiff1d(np.arange(len(rows)), first).tolist()][:MAX_IMAGES]
    images = [_finding_image(report, int(row), class_names) for row in rows[sorted(order)]]
    return FindingCard(images, len(rows) - len(images))


def _finding_image(report: AuditReport, row: int, class_names: Sequence[str]) -> FindingImage:
    entry = report.entry(row)
    label = entry['category_id']
    stats = report.scan.stats[row]
    note = report.scan.errors.get(row) or report.scan.warnings.get(row, '')
    if not note:
        note = f'{stats["width"]} x {stats["height"]}'
    verdict = int(report.verdicts[row])
    reason = '' if verdict == findings.KEEP else REASONS.get(verdict, 'unreadable')
    return FindingImage(
        _thumbnail(report, row), entry['split'], entry['row'], entry['fpath'],
        '' if label is None else str(class_names[label]), note, reason,
    )  # fmt: skip


def _thumbnail(report: AuditReport, row: int) -> str:
    if row in report.scan.errors:
        return ''
    try:
        content = report.images.content(row)
        return thumbnail_url(Image.fromarray(content) if isinstance(content, np.ndarray) else decode(content))
    except Exception:  # the file has changed since the scan: a missing thumbnail must not cost the page
        return ''


def _class_lists(splits: dict[str, dict[str, Any]], class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the empty and the small classes of each split."""
    lists = []
    for split, statistics in splits.items():
        classes = statistics['classes']
        for kind in ('empty', 'few'):
            labels = classes.get(kind, [])
            if labels:
                names = [
                    f'{class_names[label]}' + (f' ({classes["counts"][label]})' if kind == 'few' else '')
                    for label in labels[:MAX_NAMES]
                ]
                lists.append({'split': split, 'kind': kind, 'number': len(labels), 'names': names})
    return lists
