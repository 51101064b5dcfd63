"""Audits of synthetic and real photos with planted faults: all of them must be found, and nothing else."""

import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from lib.audit import scan as audit_scan
from lib.audit.findings import SINGLE_COLOR
from lib.audit.report import AuditReport, AuditSplit, audit_splits
from lib.audit.scan import ConcatImages
from lib.dataset.images import ArrayImages, FileImages
from lib.runtime import column_store
from lib.runtime.column_store import open_or_create
from tests.audit.synthetic import NEAR_COPIES, UNREADABLE, encode, jpeg_with_extra_bytes, synthetic_image

CLASSES = 8


@dataclass
class Planted:
    """Files under `root`, and their names and labels per split."""

    root: Path
    names: dict[str, list[str]] = field(default_factory=lambda: {'train': [], 'valid': [], 'test': []})
    labels: dict[str, list[int]] = field(default_factory=lambda: {'train': [], 'valid': [], 'test': []})

    def add(self, split: str, name: str, label: int, data: bytes | None) -> str:
        """Write a file (None: write nothing) and list it in the split."""
        name = f'{split}/{name}'
        if data is not None:
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / name).write_bytes(data)
        self.names[split].append(name)
        self.labels[split].append(label)
        return name

    def audit(self, num_workers: int = 0) -> AuditReport:
        splits = []
        for split, names in self.names.items():
            paths = pa.array(names, pa.large_string())
            labels = np.array(self.labels[split], np.int32)
            splits.append(AuditSplit(split, split, FileImages(paths, str(self.root)), paths, labels, CLASSES, 64))
        return audit_splits(splits, min_side=32, near_distance=5, few=3, num_workers=num_workers)


@dataclass
class Expected:
    """Expected findings: names of single images; sets of names of copies."""

    unreadable: set[str] = field(default_factory=set)
    suspicious: set[tuple[str, str]] = field(default_factory=set)
    exact: dict[frozenset, tuple[bool, bool]] = field(default_factory=dict)
    near: dict[frozenset, tuple[bool, bool]] = field(default_factory=dict)
    quarantined: set[str] = field(default_factory=set)


def plant(planted: Planted, photos: list[Image.Image]) -> Expected:
    """Plant every kind of fault, each on other photos."""
    expected = Expected()
    unused = iter(range(len(photos)))
    originals = [encode(photo, quality=90) for photo in photos]

    def listed(split: str = 'train') -> tuple[int, str, int]:
        number = next(unused)
        label = number % CLASSES
        return number, planted.add(split, f'{number}.jpg', label, originals[number]), label

    for name, data in UNREADABLE.items():
        expected.unreadable.add(planted.add('train', name, 0, data))
    (planted.root / 'train/folder.jpg').mkdir()
    expected.unreadable.add(planted.add('train', 'folder.jpg', 0, None))
    expected.quarantined |= {*expected.unreadable, planted.add('train', 'missing.jpg', 0, None)}
    planted.add('valid', 'empty.jpg', 0, b'')
    expected.unreadable.add('valid/empty.jpg')

    dot = planted.add('train', 'dot.png', 1, encode(Image.new('RGB', (1, 1), 'red'), 'PNG'))
    expected.suspicious |= {('tiny', dot), (SINGLE_COLOR, dot)}
    strip = planted.add('train', 'strip.jpg', 1, encode(synthetic_image(999).resize((500, 40))))
    expected.suspicious.add(('extreme_ratio', strip))
    gray = planted.add('train', 'gray.jpg', 2, encode(Image.new('RGB', (90, 70), (201, 200, 200))))
    expected.suspicious.add((SINGLE_COLOR, gray))
    expected.suspicious.add(('damaged', planted.add('train', 'odd.jpg', 1, jpeg_with_extra_bytes())))

    number, first, label = listed()
    copy = planted.add('train', 'copy.jpg', label, originals[number])
    expected.exact[frozenset({first, copy})] = (False, False)
    expected.quarantined.add(copy)
    number, first, label = listed()
    other = planted.add('train', 'other.jpg', (label + 1) % CLASSES, with_metadata(originals[number]))
    expected.exact[frozenset({first, other})] = (False, True)
    expected.quarantined |= {first, other}
    for split in ('valid', 'test'):
        number, first, label = listed()
        expected.exact[frozenset({first, planted.add(split, 'leak.jpg', label, originals[number])})] = (True, False)
        expected.quarantined.add(first)

    for change, copied in NEAR_COPIES.items():
        for split, shift in (('train', 0), ('train', 1), ('valid', 0)):
            number, first, label = listed()
            near = planted.add(split, f'{change} {number}.jpg', (label + shift) % CLASSES, copied(photos[number]))
            expected.near[frozenset({first, near})] = (split != 'train', shift > 0)
            if split != 'train':
                expected.quarantined.add(first)
    for number in unused:
        split = ('train', 'valid', 'test')[number % 3]
        planted.add(split, f'{number}.jpg', number % CLASSES, originals[number])
    return expected


def with_metadata(jpeg: bytes) -> bytes:
    """Insert a comment after the start of the file."""
    comment = b'bought in a shop'
    return jpeg[:2] + b'\xff\xfe' + (len(comment) + 2).to_bytes(2, 'big') + comment + jpeg[2:]


def groups_of(found: list[dict]) -> dict[frozenset, tuple[bool, bool]]:
    return {
        frozenset(image['fpath'] for image in group['images']): (group['leak'], group['contradiction'])
        for group in found
    }


def check(report: AuditReport, expected: Expected) -> None:
    assert SINGLE_COLOR == 'one_colour', 'the format of doctor.json does not change'
    found = report.as_json()
    assert {image['fpath'] for image in found['unreadable']} == expected.unreadable
    assert [image['fpath'] for image in found['missing']] == ['train/missing.jpg']
    assert all(image['reason'] for image in found['unreadable'] + found['missing'])
    assert {(image['kind'], image['fpath']) for image in found['suspicious']} == expected.suspicious
    assert groups_of(found['exact_duplicates']) == expected.exact
    assert groups_of(found['near_duplicates']) == expected.near
    quarantine = report.quarantine()['images']
    assert {image['fpath'] for image in quarantine} == expected.quarantined
    assert {image['split'] for image in quarantine} == {'train'}
    for image in found['unreadable']:
        split = next(split for split in report.splits if split.name == image['split'])
        assert split.names[image['row']].as_py() == image['fpath']
        assert split.labels[image['row']] == image['category_id']


@pytest.fixture(scope='module')
def synthetic_set(tmp_path_factory) -> tuple[Planted, Expected]:
    planted = Planted(tmp_path_factory.mktemp('synthetic'))
    return planted, plant(planted, [synthetic_image(seed) for seed in range(60)])


def test_all_faults_planted_in_synthetic_photos_are_found(synthetic_set):
    planted, expected = synthetic_set
    check(planted.audit(), expected)


@pytest.mark.process
def test_two_processes_give_the_same_report(synthetic_set):
    planted, _ = synthetic_set
    alone, two = planted.audit(), planted.audit(num_workers=2)
    assert two.as_json() == alone.as_json()
    assert two.quarantine() == alone.quarantine()
    assert (two.scan.stats == alone.scan.stats).all()


def test_all_faults_planted_in_real_photos_are_found(tmp_path):
    folder = Path(os.environ.get('REAL_PHOTOS', ''))
    if not (folder / 'train.txt').exists():
        pytest.skip('REAL_PHOTOS names no photos')
    paths = [line.split(',')[0].strip() for line in (folder / 'train.txt').read_text().splitlines()][::11]
    planted = Planted(tmp_path)
    expected = plant(planted, [Image.open(folder / path).convert('RGB') for path in paths])
    check(planted.audit(), expected)


def test_split_statistics(tmp_path):
    planted = Planted(tmp_path)
    for number, (width, height) in enumerate([(40, 60), (80, 70), (100, 90), (200, 100)]):
        planted.add(
            'train', f'{number}.png', 0 if number < 3 else 2, encode(synthetic_image(number, width, height), 'PNG')
        )
    planted.add('train', 'empty.png', 2, b'')
    statistics = planted.audit().split_statistics()
    assert list(statistics) == ['train', 'valid', 'test']
    train = statistics['train']
    assert (train['images'], train['readable']) == (5, 4)
    assert train['classes']['counts'] == [3, 0, 2, 0, 0, 0, 0, 0]
    assert (train['classes']['few'], train['classes']['empty']) == ([2], [1, 3, 4, 5, 6, 7])
    assert train['classes']['imbalance'] == 1.5
    assert train['sizes']['formats'] == {'PNG': 4}
    assert train['sizes']['width']['p5'] == 40
    assert train['sizes']['height']['p95'] == 100
    assert train['sizes']['enlarged'] == 1  # the shorter side of 40 x 60 is below 64
    assert statistics['valid'] == {'source': 'valid', 'images': 0, 'readable': 0, 'classes': {}, 'sizes': {}}


def test_images_in_memory():
    pixels = np.stack([np.asarray(synthetic_image(seed, 32, 32)) for seed in range(20)])
    pixels[7] = pixels[3]
    names = pa.array([f'image {row}' for row in range(20)], pa.large_string())
    labels = np.arange(20, dtype=np.int32) % CLASSES
    split = AuditSplit('train', 'cifar', ArrayImages(pixels), names, labels, CLASSES, 32)
    found = audit_splits([split], min_side=32, near_distance=5, few=3, num_workers=0).as_json()
    assert groups_of(found['exact_duplicates']) == {frozenset({'image 3', 'image 7'}): (False, True)}
    assert found['near_duplicates'] == []


def test_an_audit_that_was_stopped_computes_the_rest(tmp_path, monkeypatch):
    """Statistics, errors and warnings are those of an undisturbed scan, and no image is decoded twice."""
    monkeypatch.setattr(audit_scan, 'ROWS_PER_TASK', 4)
    monkeypatch.setattr(column_store, '_SECONDS_BETWEEN_FLUSHES', -1)
    contents = [encode(synthetic_image(seed, 40, 40)) for seed in range(18)]
    contents[2], contents[9], contents[13] = b'', jpeg_with_extra_bytes(), b'<html>'
    for row, data in enumerate(contents):
        (tmp_path / f'{row}.jpg').write_bytes(data)
    images = ConcatImages([FileImages([f'{row}.jpg' for row in range(19)], str(tmp_path))], [19])
    expected = audit_scan.scan(images, num_workers=0)
    assert {*expected.errors, *expected.warnings} == {2, 9, 13, 18}
    decoded = []

    def read(path, row):
        decoded.append(row)
        if len(decoded) == 11:
            raise KeyboardInterrupt
        return content(path, row)

    content = ConcatImages.content
    monkeypatch.setattr(ConcatImages, 'content', read)
    for _ in range(2):
        with suppress(KeyboardInterrupt):
            store = open_or_create(tmp_path / 'store', 19, audit_scan.scan_columns(), {})
            found = audit_scan.scan(images, num_workers=0, store=store)
    assert decoded == [*range(11), *range(8, 19)]  # the third task was not finished
    np.testing.assert_array_equal(found.stats, expected.stats)
    assert (found.errors, found.warnings) == (expected.errors, expected.warnings)


def test_statistics_take_at_most_320_bytes_per_image(synthetic_set):
    assert synthetic_set[0].audit().scan.stats.itemsize <= 320
