"""The doctor's page: what was found, with small pictures side by side, in one HTML file that needs nothing else."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lib.audit import findings
from lib.audit.findings import Group
from lib.audit.report import REASONS, Checkup
from lib.dataset.decode import decode
from lib.report.chart_style import PALETTE
from lib.report.describe import SUSPICIOUS
from lib.report.galleries import thumbnail_url
from lib.report.page import page_environment, thousands
from lib.runtime.files import write_text

MAX_CARDS = 24  # of a finding
MAX_PICTURES = 6  # of a card
MAX_NAMES = 200  # of classes in a list
_MEANING = {
    'missing': 'Listed, but not there. Training stops at such a file.',
    'unreadable': 'No usable image. Training takes another image of the class in its place.',
    'tiny': 'The shorter side is below DOCTOR.MIN_SIDE.',
    'extreme_ratio': f'One side is more than {findings.EXTREME_RATIO:g} times the other.',
    'one_colour': 'No content: often a placeholder for a photo that was taken down.',
    'damaged': 'The decoder got over a fault; part of the picture may be wrong.',
    'exact-leak': 'The very same pixels in more than one split: what is measured was learnt by heart.',
    'exact-labels': 'The very same pixels under several classes: at most one label is right.',
    'exact': 'The very same pixels more than once, in one class and split.',
    'near-leak': 'One photo, encoded, resized, brightened or stamped anew, in more than one split.',
    'near-labels': 'Nearly the same picture under several classes.',
    'near': 'Nearly the same picture more than once, in one class and split.',
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
    """An image on the page; `source` is '' where there is nothing to see."""

    source: str
    split: str
    row: int
    path: str
    class_name: str
    note: str
    quarantined: str


@dataclass(frozen=True)
class FindingCard:
    """Images that belong together; `more` are left out."""

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
    path: str | os.PathLike, checkup: Checkup, *, title: str, command: str, class_names: Sequence[str]
) -> Path:
    """Write the page to `path`, atomically."""
    environment = page_environment()
    environment.filters.update(thousands=thousands, size=_size)
    figures = checkup.figures()
    page = environment.get_template('audit_page.html').render(
        title=title,
        command=command,
        palette=PALETTE,
        figures=figures,
        findings=_findings(checkup, class_names),
        num_images=len(checkup.gallery),
        num_quarantined=int((checkup.verdict != findings.KEPT).sum()),
        few=checkup.few,
        lists=_class_lists(figures, class_names),
    )
    write_text(path, page)
    return Path(path)


def _findings(checkup: Checkup, class_names: Sequence[str]) -> list[Finding]:
    single = {'missing': checkup.missing, 'unreadable': checkup.unreadable, **checkup.suspicious}
    groups: dict[str, list[Group]] = {}
    for name, found in (('exact', checkup.exact), ('near', checkup.near)):
        groups[f'{name}-leak'] = [group for group in found if group.leak]
        groups[f'{name}-labels'] = [group for group in found if group.contradiction and not group.leak]
        groups[name] = [group for group in found if not group.leak and not group.contradiction]
    sets = {key: [np.array([row]) for row in rows] for key, rows in single.items()}
    sets |= {key: [group.rows for group in found] for key, found in groups.items()}
    # Leaks and contradictions first: they spoil results without a sign.
    order = sorted(_TITLES, key=lambda key: ('leak' not in key and 'labels' not in key, list(_TITLES).index(key)))
    return [
        Finding(
            key,
            _TITLES[key],
            _MEANING[key],
            sum(len(rows) for rows in sets[key]),
            [_card(checkup, rows, class_names) for rows in sets[key][:MAX_CARDS]],
            max(len(sets[key]) - MAX_CARDS, 0),
        )
        for key in order
        if sets[key]
    ]


def _card(checkup: Checkup, rows: np.ndarray, class_names: Sequence[str]) -> FindingCard:
    # The first of every split and class, then the others: what differs must be among those that are shown.
    kinds = checkup.split_of[rows] * (checkup.labels.max() + 2) + checkup.labels[rows]
    first = np.unique(kinds, return_index=True)[1]
    order = [*first.tolist(), *np.setdiff1d(np.arange(len(rows)), first).tolist()][:MAX_PICTURES]
    images = [_shown(checkup, int(row), class_names) for row in rows[sorted(order)]]
    return FindingCard(images, len(rows) - len(images))


def _shown(checkup: Checkup, row: int, class_names: Sequence[str]) -> FindingImage:
    entry = checkup.entry(row)
    label = entry['category_id']
    seen = checkup.scan.seen[row]
    note = checkup.scan.reasons.get(row) or checkup.scan.faults.get(row, '')
    if not note:
        note = f'{seen["width"]} x {seen["height"]}'
    verdict = int(checkup.verdict[row])
    reason = '' if verdict == findings.KEPT else REASONS.get(verdict, 'not readable')
    return FindingImage(
        _picture(checkup, row), entry['split'], entry['row'], entry['fpath'],
        '' if label is None else str(class_names[label]), note, reason,
    )  # fmt: skip


def _picture(checkup: Checkup, row: int) -> str:
    if row in checkup.scan.reasons:
        return ''
    try:
        content = checkup.gallery.content(row)
        return thumbnail_url(Image.fromarray(content) if isinstance(content, np.ndarray) else decode(content))
    except Exception:  # gone since: a page is not worth losing over a picture
        return ''


def _class_lists(figures: dict[str, dict[str, Any]], class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the empty and the small classes of each split that has some."""
    found = []
    for split, of_split in figures.items():
        classes = of_split['classes']
        for kind in ('empty', 'few'):
            labels = classes.get(kind, [])
            if labels:
                names = [
                    f'{class_names[label]}' + (f' ({classes["counts"][label]})' if kind == 'few' else '')
                    for label in labels[:MAX_NAMES]
                ]
                found.append({'split': split, 'kind': kind, 'number': len(labels), 'names': names})
    return found


def _size(count: int) -> str:
    return f'{count / 1e6:.1f} MB' if count >= 1e6 else f'{count / 1e3:.0f} kB'
