import base64
import io
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from lib.report.data import ReportData
from lib.report.html import write_report
from lib.report.summary import percent, points, thousands
from tests.report.report_data import HOSTILE, full_data, history, tau_curve

VOID = {'meta', 'img', 'br', 'link', 'input'}


class Page(HTMLParser):
    """Checks that tags close in order and keeps what the tests ask about."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or '') for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or '') for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def values(self, name):
        return [value for _, its_name, value in self.attributes if its_name == name]


def write(tmp_path, data):
    text = write_report(tmp_path / 'report.html', data).read_text('utf-8')
    return text, Page(text)


@pytest.fixture(scope='module')
def full(tmp_path_factory):
    """A report with every part: its path, text and parsed page."""
    path = write_report(tmp_path_factory.mktemp('full') / 'report.html', full_data())
    return path, path.read_text('utf-8'), Page(path.read_text('utf-8'))


def test_has_every_part(full):
    _, text, page = full
    assert {'summary', 'curves', 'by-count', 'pairs', 'tau', 'run'} <= set(page.values('id'))
    assert page.tags.count('svg') == 6
    assert page.tags.count('details') == 2
    assert 'Mean class error' in text
    assert all(page.values('aria-label'))
    assert all(page.values('alt'))
    assert text.startswith('<!DOCTYPE html>')


def test_asks_nothing_from_outside(full):
    _, text, page = full
    assert 'http:' not in text
    assert 'https:' not in text
    assert '@import' not in text
    assert all(url.startswith('#') for url in re.findall(r'url\(([^)]*)\)', text))
    assert all(value.startswith('data:image/jpeg;base64,') for value in page.values('src'))
    links = page.values('href') + page.values('xlink:href')
    assert all(value.startswith('#') for value in links)
    ids = page.values('id')
    assert {value[1:] for value in links} <= set(ids)
    policy = next(value for value in page.values('content') if 'default-src' in value)
    assert "default-src 'none'" in policy
    assert 'script' not in page.tags


def test_names_are_text(full):
    _, text, page = full
    assert '<script' not in text
    assert '<b>' not in text
    shown = ''.join(page.texts)
    assert shown.count(HOSTILE) >= 5  # title twice, pair, config, note
    assert any(HOSTILE in value for value in page.values('alt'))
    assert not any(name.startswith('on') for _, name, _ in page.attributes)


def test_same_data_same_bytes(full, tmp_path):
    assert full[0].read_bytes() == write_report(tmp_path / 'b.html', full_data()).read_bytes()


@pytest.mark.parametrize(
    ('changes', 'gone'),
    [
        ({'history': []}, {'curves'}),
        ({'history': history(1)}, {'curves'}),
        ({'summary': {}}, {'summary'}),
        ({'labels': np.zeros(0, np.int64), 'predicted': np.zeros(0, np.int64)}, {'by-count', 'pairs'}),
        ({'train_counts': np.zeros(0, np.int64)}, {'by-count'}),
        ({'tau': None}, {'tau'}),
        ({'config_text': '', 'environment_text': ''}, {'run'}),
    ],
    ids=lambda value: ','.join(value),
)
def test_leaves_out_what_it_has_no_data_for(tmp_path, changes, gone):
    parts = {'summary', 'curves', 'by-count', 'pairs', 'tau', 'run'}
    _, page = write(tmp_path, full_data(**changes))
    assert parts & set(page.values('id')) == parts - gone


def test_a_title_alone_makes_a_page(tmp_path):
    _, page = write(tmp_path, ReportData(title='Empty'))
    assert 'Empty' in page.texts
    assert not page.values('id')
    assert 'svg' not in page.tags


def test_sparse_history_and_summary(tmp_path):
    entries = [{'epoch': e, 'split': 'valid', 'loss': v} for e, v in enumerate([2.0, float('nan'), 1.0])]
    text, page = write(tmp_path, full_data(history=[*entries, {}], summary={'last': {'top1': 0.5}}, class_names=[]))
    assert page.tags.count('svg') == 3  # loss, error by count, tau
    assert '50.0\u202f%' in text
    assert 'class 0' in text
    assert 'nan' not in ''.join(page.texts)


def test_unlabelled_rows_keep_the_others_in_place(tmp_path):
    opened = []

    def record(row):
        opened.append(row)
        return Image.new('RGB', (8, 8))

    labels, predicted = np.array([-1, 0, 0, -1, 1]), np.array([5, 0, 1, 0, 1])
    write(tmp_path, ReportData('x', labels=labels, predicted=predicted, open_image=record))
    assert sorted(opened) == [1, 2, 4]


def test_photos_are_small_and_bare(full):
    _, _, page = full
    sources = page.values('src')
    assert sources
    for source in sources:
        data = base64.b64decode(source.split(',')[1])
        assert b'PRIVATE' not in data
        with Image.open(io.BytesIO(data)) as image:
            assert image.format == 'JPEG'
            assert max(image.size) == 128
            assert not {'comment', 'icc_profile', 'exif'} & set(image.info)


def test_broken_photos_are_left_out_and_said(full, tmp_path):
    assert 'could not be opened' in full[1]

    def broken(row):
        raise ValueError(f'no row {row}')

    _, page = write(tmp_path, full_data(open_image=broken))
    assert 'img' not in page.tags
    assert 'pairs' in page.values('id')


@pytest.mark.parametrize(
    'changes', [{'chosen': None}, {'note': None}, {'stretch': None}, {'before': {}}, {'metric': 'top1'}]
)
def test_tau_variants(tmp_path, changes):
    tau = tau_curve(changes.get('metric', 'mean_class_error')) | changes
    text, page = write(tmp_path, ReportData('x', tau=tau))
    assert 'tau' in page.values('id')
    assert ('No tau beats the untouched checkpoint' in text) == (tau['chosen'] is None)


def test_what_re_balancing_brought_stands_first(tmp_path):
    text, page = write(tmp_path, full_data())
    assert page.values('id').index('tau') == 1  # after the summary
    after = tau_curve()['after']['mean_class_error']
    assert f'with tau {percent(after)}' in text
    unchanged = write(tmp_path, full_data(tau=tau_curve() | {'chosen': None}))[0]
    assert 'with tau ' not in unchanged


def test_stays_small_with_50030_classes(tmp_path):
    rng = np.random.default_rng(0)
    num_classes = 50_030
    counts = rng.integers(0, 8000, num_classes)
    labels = np.repeat(np.arange(num_classes), 5)
    predicted = np.where(rng.random(len(labels)) < 0.4, rng.integers(0, num_classes, len(labels)), labels)
    text, _ = write(tmp_path, full_data(train_counts=counts, labels=labels, predicted=predicted, class_names=[]))
    assert len(text.encode()) < 600_000
    drawn = re.search(r'50\u202f030 classes in ([\d\u202f]+) dots', text)
    assert 0 < int(drawn[1].replace('\u202f', '')) <= 2000


def test_numbers_read_well():
    assert percent(0.1 + 0.2) == '30.0\u202f%'
    assert percent(float('nan')) == '–'
    assert points(0.30000000000004) == '+30.0'
    assert points(-0.012) == '−1.2'
    assert points(-0.0001) == '0.0'
    assert thousands(3_000_000) == '3\u202f000\u202f000'


def test_a_browser_renders_it_without_complaint(full, tmp_path):
    browser = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    if browser is None:
        pytest.skip('no Chromium on this machine (chromium, chromium-browser or google-chrome)')
    options = [
        '--headless',
        '--no-sandbox',
        '--disable-gpu',
        '--no-first-run',
        '--disable-background-networking',
    ]
    options += ['--disable-component-update', '--disable-sync', '--disable-quic', '--enable-logging=stderr']
    command = [browser, *options, f'--user-data-dir={tmp_path}/profile', '--dump-dom', full[0].as_uri()]
    environment = os.environ | {'HOME': str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    page = Page(done.stdout)
    assert page.tags.count('svg') == 6
    assert 'script' not in page.tags
    complaints = [line for line in done.stderr.splitlines() if 'CONSOLE' in line]
    assert complaints == []
