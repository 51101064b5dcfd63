import re

import numpy as np
import pyarrow as pa
import pytest

from lib.audit.report import AuditSplit, audit_splits
from lib.dataset.images import FileImages
from lib.report.audit_page import MAX_CARDS, MAX_IMAGES, write_audit_page
from lib.report.describe import describe_audit
from tests.audit.synthetic import encode, synthetic_image
from tests.report.test_run_page import Page

HOSTILE = '"><script>alert(1)</script>'


@pytest.fixture(scope='module')
def report(tmp_path_factory):
    """An audit: 40 pairs of copies, 18 copies of one image in two splits, 2 unreadable files with hostile names."""
    root = tmp_path_factory.mktemp('photos')
    splits = []
    for split in ('train', 'valid'):
        names, labels = [], []

        def add(name, data, label, names=names, labels=labels):
            (root / name).write_bytes(data)
            names.append(name)
            labels.append(label)

        for number in range(40 if split == 'train' else 0):
            data = encode(synthetic_image(number, 60, 50))
            add(f'{number}.jpg', data, number % 3)
            add(f'{number} again.jpg', data, number % 3)
        for number in range(9):
            add(f'{split} {number} leak.jpg', encode(synthetic_image(99, 60, 50)), 1)
        add(f'{split} {HOSTILE.replace("/", "")}.jpg', b'', 2)
        paths = pa.array(names, pa.large_string())
        images = FileImages(paths, str(root))
        splits.append(AuditSplit(split, HOSTILE, images, paths, np.array(labels, np.int32), 4, 64))
    return audit_splits(splits, min_side=32, near_distance=5, few=50, num_workers=0)


@pytest.fixture(scope='module')
def page(report, tmp_path_factory):
    path = tmp_path_factory.mktemp('page') / 'doctor.html'
    write_audit_page(path, report, title=HOSTILE, command=HOSTILE, class_names=['a', 'b', HOSTILE, 'd'])
    return path.read_text('utf-8')


def test_tags_are_closed_and_there_is_no_script(page):
    parsed = Page(page)
    assert 'script' not in parsed.tags
    assert all(not name.startswith('on') for _, name, _ in parsed.attributes)
    assert '<script' not in page
    assert parsed.values('content')[0].startswith("default-src 'none'")


def test_page_requests_nothing_from_the_network(page):
    assert 'http:' not in page
    assert 'https:' not in page
    assert '@import' not in page
    assert all(value.startswith('data:image/jpeg;base64,') for value in Page(page).values('src'))


def test_cards_and_images_are_limited(report, page):
    assert len(report.exact) == 41
    sections = dict(re.findall(r'<section class="finding" id="([\w-]+)">(.*?)</section>', page, re.DOTALL))
    assert list(sections) == ['exact-leak', 'unreadable', 'exact']
    assert sections['exact'].count('<article') == MAX_CARDS
    assert f'{40 - MAX_CARDS} more are in doctor.json' in sections['exact']
    assert sections['exact-leak'].count('<li>') == MAX_IMAGES
    # Both splits are shown, although nine images of the first come first.
    assert {'train', 'valid'} == set(re.findall(r'class="split (\w+)"', sections['exact-leak']))
    assert f'and {18 - MAX_IMAGES} more' in sections['exact-leak']
    assert sections['unreadable'].count('the file is empty') == 2


def test_every_filter_has_a_section(page):
    keys = set(re.findall(r'id="show-([\w-]+)"', page)) - {'all'}
    assert keys == set(re.findall(r'<section class="finding" id="([\w-]+)"', page))
    for key in keys:
        assert f'#show-{key}:checked' in page


def test_summary_fits_in_80_columns(report, tmp_path):
    lines = describe_audit(report, tmp_path, 52)
    assert len(lines) <= 32
    assert all(len(line) <= 80 for line in lines if str(tmp_path) not in line)
    text = '\n'.join(lines)
    assert re.search(r'unreadable +2 ', text)
    assert re.search(r'exact copies +98 ', text)
    assert re.search(r'across splits \(leaks\) +18 ', text)
