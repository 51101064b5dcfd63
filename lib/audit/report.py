"""Audit of all splits of a data set, and its results as in doctor.json and quarantine.json."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa

from lib.audit import findings
from lib.audit.duplicates import Duplicates, find_duplicates
from lib.audit.findings import DuplicateGroup
from lib.audit.image_stats import class_statistics, size_statistics
from lib.audit.scan import MISSING, READABLE, ColorScan, ConcatImages, Scan, scan, scan_colors
from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.runtime.column_store import ColumnStore

REASONS = {
    findings.CONTRADICTION: 'the same image has another label elsewhere in train',
    findings.LEAK: 'the same image is in another split',
    findings.NEAR_LEAK: 'nearly the same image is in another split',
    findings.COPY: 'the same image is in train before',
}


@dataclass(frozen=True)
class AuditSplit:
    """A split to be audited.

    Attributes:
        name: train, valid or test; the first split is the training split.
        source: its name in messages.
        images: by row.
        names: (num_images,) paths as in the annotations.
        labels: (num_images,) class of each image, -1 if unknown.
        num_classes: labels are below it.
        enlarged_below: images whose shorter side is below it (pixels) are upscaled for the model.
    """

    name: str
    source: str
    images: Any
    names: pa.LargeStringArray
    labels: np.ndarray
    num_classes: int
    enlarged_below: int


@dataclass(frozen=True)
class AuditReport:
    """Results of an audit. Row numbers run through all splits; `entry` gives the row within the split."""

    splits: list[AuditSplit]
    images: ConcatImages
    scan: Scan
    duplicates: Duplicates
    min_side: int
    few: int

    @cached_property
    def labels(self) -> np.ndarray:
        """(num_images,) class of each image, -1 if unknown."""
        return np.concatenate([split.labels for split in self.splits])

    @cached_property
    def split_of(self) -> np.ndarray:
        """(num_images,) split index of each image."""
        return self.images.split_of(np.arange(len(self.images)))

    @cached_property
    def exact(self) -> list[DuplicateGroup]:
        """Groups of images with the same pixels, the most severe first."""
        return findings.exact_groups(self.duplicates, self.split_of, self.labels)

    @cached_property
    def near(self) -> list[DuplicateGroup]:
        """Groups of near duplicates, the most severe first."""
        return findings.near_groups(self.duplicates, self.split_of, self.labels)

    @cached_property
    def suspicious(self) -> dict[str, np.ndarray]:
        """{kind: rows} of readable images that are probably mistakes."""
        stats, readable = self.scan.stats, self.scan.readable
        kinds = findings.suspicious(stats, readable, self.duplicates.single_color, self.min_side)
        return {**kinds, 'damaged': np.array(sorted(self.scan.warnings), np.int64)}

    @cached_property
    def unreadable(self) -> np.ndarray:
        """Rows of files that exist, but are not readable images."""
        return np.flatnonzero((self.scan.stats['state'] != READABLE) & (self.scan.stats['state'] != MISSING))

    @cached_property
    def missing(self) -> np.ndarray:
        """Rows of files that do not exist."""
        return np.flatnonzero(self.scan.stats['state'] == MISSING)

    @cached_property
    def verdicts(self) -> np.ndarray:
        """(num_images,) as returned by `findings.quarantine_verdicts`."""
        readable = self.scan.readable
        return findings.quarantine_verdicts(self.duplicates, self.split_of, self.labels, readable, self.splits[0].names)

    def entry(self, row: int) -> dict[str, Any]:
        """Return the image as in doctor.json: its split, row within the split, path, and class (None if unknown)."""
        index, split_row = self.images.locate(row)
        split = self.splits[index]
        label = int(split.labels[split_row])
        return {
            'split': split.name,
            'row': split_row,
            'fpath': split.names[split_row].as_py(),
            'category_id': label if label >= 0 else None,
        }

    def split_statistics(self) -> dict[str, dict[str, Any]]:
        """Return {split: its statistics}."""
        statistics = {}
        for index, split in enumerate(self.splits):
            stats = self.scan.stats[self.images.starts[index] : self.images.starts[index + 1]]
            readable = stats['state'] == READABLE
            statistics[split.name] = {
                'source': split.source,
                'images': len(stats),
                'readable': int(readable.sum()),
                'classes': class_statistics(split.labels, split.num_classes, self.few),
                'sizes': size_statistics(stats[readable], split.enlarged_below),
            }
        return statistics

    def as_json(self) -> dict[str, Any]:
        """Return all findings.

        {"splits": {"train": {"source", "images", "readable", "classes": {...}, "sizes": {...}}, ...},
        "missing", "unreadable": [{an image, "reason"}, ...],
        "suspicious": [{an image, "kind", "width", "height", "reason"}, ...],
        "exact_duplicates", "near_duplicates": [{"leak", "contradiction", "images": [an image, ...]}, ...]},
        where an image is {"split", "row", "fpath", "category_id"}, its class null if unknown, and a kind is a key of
        `suspicious`.
        """
        return {
            'splits': self.split_statistics(),
            'missing': [self._with_reason(row) for row in self.missing.tolist()],
            'unreadable': [self._with_reason(row) for row in self.unreadable.tolist()],
            'suspicious': [
                {
                    **self.entry(row),
                    'kind': kind,
                    'width': int(self.scan.stats['width'][row]),
                    'height': int(self.scan.stats['height'][row]),
                    'reason': self.scan.warnings.get(row, '') if kind == 'damaged' else '',
                }
                for kind, rows in self.suspicious.items()
                for row in rows.tolist()
            ],
            'exact_duplicates': [self._group(group) for group in self.exact],
            'near_duplicates': [self._group(group) for group in self.near],
        }

    def quarantine(self) -> dict[str, list[dict[str, str]]]:
        """Return the content of a DATASET.QUARANTINE file: {"images": [{"fpath", "split", "reason"}, ...]}."""
        return {
            'images': [
                {
                    'fpath': self.entry(row)['fpath'],
                    'split': self.entry(row)['split'],
                    'reason': self.scan.errors.get(row) or REASONS[int(self.verdicts[row])],
                }
                for row in np.flatnonzero(self.verdicts != findings.KEEP).tolist()
            ]
        }

    def _with_reason(self, row: int) -> dict[str, Any]:
        return {**self.entry(row), 'reason': self.scan.errors[row]}

    def _group(self, group: DuplicateGroup) -> dict[str, Any]:
        images = [self.entry(row) for row in group.rows.tolist()]
        return {'leak': group.leak, 'contradiction': group.contradiction, 'images': images}


def audit_splits(
    splits: list[AuditSplit],
    *,
    min_side: int,
    near_distance: int,
    few: int,
    num_workers: int,
    progress: Callable[[int], object] = lambda count: None,
    group: ProcessGroup = SINGLE_PROCESS,
    store: ColumnStore | None = None,
) -> AuditReport | None:
    """Decode every image of the splits and compare the images.

    Ranks share the images that are decoded; the main rank compares, and the others return None.

    Args:
        min_side: images whose shorter side is below it (pixels) are suspicious.
        near_distance: maximum number of bits in which the perceptual hashes of near duplicates differ.
        few: classes with fewer images are listed.
        num_workers: number of reading processes of each rank; 0: read in this process.
        progress: called with the number of images of each finished task.
        store: as in `scan`.

    Raises:
        UserError: a process was killed.
    """
    images = ConcatImages([split.images for split in splits], [len(split.labels) for split in splits])
    result = scan(images, num_workers=num_workers, progress=progress, group=group, store=store)
    scan_rows = partial(scan_colors, images, num_workers=num_workers, group=group)

    def scan_on_all(rows: np.ndarray) -> ColorScan:
        return scan_rows(group.broadcast_object(rows))

    if not group.is_main:
        while len(rows := group.broadcast_object(np.zeros(0, np.int64))):
            scan_rows(rows)
        return None
    duplicates = find_duplicates(result, scan_on_all, near_distance)
    group.broadcast_object(np.zeros(0, np.int64))  # so that the other ranks return
    return AuditReport(splits, images, result, duplicates, min_side, few)
