"""Everything that is found out about a data set, and its form in doctor.json and quarantine.json."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from lib.audit import findings
from lib.audit.duplicates import Duplicates, find_duplicates, look_closer_at
from lib.audit.findings import Group
from lib.audit.image_stats import class_statistics, size_statistics
from lib.audit.scan import MISSING, READABLE, Gallery, Scan, scan

REASONS = {
    findings.CONTRADICTION: 'the same picture has another label elsewhere in train',
    findings.LEAK: 'the same picture is in another split',
    findings.NEAR_LEAK: 'nearly the same picture is in another split',
    findings.COPY: 'the same picture is in train before',
}


@dataclass(frozen=True)
class SplitUnderTest:
    """A split and what is expected of it.

    Attributes:
        name: train, valid or test; the first split is the one to train on.
        source: what to call it in messages.
        images: by row.
        names: (num_images,) paths as annotated.
        labels: (num_images,) class of each image, -1 where unknown.
        num_classes: labels are below it.
        enlarged_below: shorter sides below it are enlarged for the model, pixels.
    """

    name: str
    source: str
    images: Any
    names: pa.LargeStringArray
    labels: np.ndarray
    num_classes: int
    enlarged_below: int


@dataclass(frozen=True)
class Checkup:
    """What was found. Rows are numbered through all splits; `entry` tells the place in its own."""

    splits: list[SplitUnderTest]
    gallery: Gallery
    scan: Scan
    duplicates: Duplicates
    min_side: int
    few: int

    @cached_property
    def labels(self) -> np.ndarray:
        """(num_images,) class of each image, -1 where unknown."""
        return np.concatenate([split.labels for split in self.splits])

    @cached_property
    def split_of(self) -> np.ndarray:
        """(num_images,) number of each image's split."""
        return self.gallery.split_of(np.arange(len(self.gallery)))

    @cached_property
    def exact(self) -> list[Group]:
        """Sets of images with the same pixels, the gravest first."""
        return findings.exact_groups(self.duplicates, self.split_of, self.labels)

    @cached_property
    def near(self) -> list[Group]:
        """Sets of images that look the same but differ in pixels, the gravest first."""
        return findings.near_groups(self.duplicates, self.split_of, self.labels)

    @cached_property
    def suspicious(self) -> dict[str, np.ndarray]:
        """{kind: rows} of images that can be read, but hardly be meant."""
        seen, readable = self.scan.seen, self.scan.readable
        kinds = findings.suspicious(seen, readable, self.duplicates.one_colour, self.min_side)
        return {**kinds, 'damaged': np.array(sorted(self.scan.faults), np.int64)}

    @cached_property
    def unreadable(self) -> np.ndarray:
        """Rows of files that are there and are no usable image."""
        return np.flatnonzero((self.scan.seen['state'] != READABLE) & (self.scan.seen['state'] != MISSING))

    @cached_property
    def missing(self) -> np.ndarray:
        """Rows of files that are not there."""
        return np.flatnonzero(self.scan.seen['state'] == MISSING)

    @cached_property
    def verdict(self) -> np.ndarray:
        """(num_images,) as `findings.quarantine` says."""
        readable = self.scan.readable
        return findings.quarantine(self.duplicates, self.split_of, self.labels, readable, self.splits[0].names)

    def entry(self, row: int) -> dict[str, Any]:
        """Return how an image is named: its split, its row there, its path and its class (None where unknown)."""
        split, own = self.gallery.place(row)
        label = int(self.splits[split].labels[own])
        path = self.splits[split].names[own].as_py()
        return {
            'split': self.splits[split].name,
            'row': own,
            'fpath': path,
            'category_id': label if label >= 0 else None,
        }

    def figures(self) -> dict[str, dict[str, Any]]:
        """Return {split: its figures}."""
        found = {}
        for number, split in enumerate(self.splits):
            seen = self.scan.seen[self.gallery.starts[number] : self.gallery.starts[number + 1]]
            readable = seen['state'] == READABLE
            found[split.name] = {
                'source': split.source,
                'images': len(seen),
                'readable': int(readable.sum()),
                'classes': class_statistics(split.labels, split.num_classes, self.few),
                'sizes': size_statistics(seen[readable], split.enlarged_below),
            }
        return found

    def as_json(self) -> dict[str, Any]:
        """Return all findings.

        {"splits": {"train": {"source", "images", "readable", "classes": {...}, "sizes": {...}}, ...},
        "missing", "unreadable": [{an image, "reason"}, ...],
        "suspicious": [{an image, "kind", "width", "height", "reason"}, ...],
        "exact_duplicates", "near_duplicates": [{"leak", "contradiction", "images": [an image, ...]}, ...]},
        where an image is {"split", "row", "fpath", "category_id"}, its class null where unknown, and a kind tiny,
        extreme_ratio, one_colour or damaged.
        """
        return {
            'splits': self.figures(),
            'missing': [self._with_reason(row) for row in self.missing.tolist()],
            'unreadable': [self._with_reason(row) for row in self.unreadable.tolist()],
            'suspicious': [
                {
                    **self.entry(row),
                    'kind': kind,
                    'width': int(self.scan.seen['width'][row]),
                    'height': int(self.scan.seen['height'][row]),
                    'reason': self.scan.faults.get(row, '') if kind == 'damaged' else '',
                }
                for kind, rows in self.suspicious.items()
                for row in rows.tolist()
            ],
            'exact_duplicates': [self._group(group) for group in self.exact],
            'near_duplicates': [self._group(group) for group in self.near],
        }

    def quarantine(self) -> dict[str, list[dict[str, str]]]:
        """Return what DATASET.QUARANTINE takes: {"images": [{"fpath", "split", "reason"}, ...]}."""
        return {
            'images': [
                {
                    'fpath': self.entry(row)['fpath'],
                    'split': self.entry(row)['split'],
                    'reason': self.scan.reasons.get(row) or REASONS[int(self.verdict[row])],
                }
                for row in np.flatnonzero(self.verdict != findings.KEPT).tolist()
            ]
        }

    def _with_reason(self, row: int) -> dict[str, Any]:
        return {**self.entry(row), 'reason': self.scan.reasons[row]}

    def _group(self, group: Group) -> dict[str, Any]:
        images = [self.entry(row) for row in group.rows.tolist()]
        return {'leak': group.leak, 'contradiction': group.contradiction, 'images': images}


def check_up(
    splits: list[SplitUnderTest],
    *,
    min_side: int,
    near_distance: int,
    few: int,
    num_workers: int,
    tell: Callable[[int], object] = lambda count: None,
) -> Checkup:
    """Look at every image of the splits.

    Args:
        min_side: shorter sides below it are suspicious, pixels.
        near_distance: bits in which the perceptual hashes of near duplicates may differ.
        few: classes with fewer images are listed.
        num_workers: processes that read; 0: this one.
        tell: called with the number of images of each finished job.

    Raises:
        UserError: a process was killed.
    """
    gallery = Gallery([split.images for split in splits], [len(split.labels) for split in splits])
    seen = scan(gallery, num_workers=num_workers, tell=tell)
    duplicates = find_duplicates(seen, look_closer_at(gallery, num_workers), near_distance)
    return Checkup(splits, gallery, seen, duplicates, min_side, few)
