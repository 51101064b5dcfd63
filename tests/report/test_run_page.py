import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from markupsafe import Markup
from PIL import Image

from lib.metrics.predictions import predictions_from_classes
from lib.report.page import percent, points, thousands
from lib.report.report_metrics import ReportData
from lib.report.run_page import write_report
from tests.report.report_data import HOSTILE, full_data, history, predictions, tau_curve

pytestmark = pytest.mark.long

PARTS = {
    'summary',
    'tau',
    'unknown',
    'curves',
    'by-count',
    'calibration',
    'classes',
    'worst',
    'pairs',
    'data',
    'corrections',
    'run',
}
EMPTY = predictions_from_classes(*np.zeros((2, 0), np.int64))
VOID = {'meta', 'img', 'br', 'link', 'input'}


class Page(HTMLParser):
    """Checks that tags are closed in order, and records tags, attributes and texts."""

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


@pytest.fixture
def empty_charts(monkeypatch):
    """Draw no chart, which takes 0.1 s each, for tests of what is around them."""
    monkeypatch.setattr('lib.report.run_page.inline_svg', lambda *_: Markup('<svg></svg>'))


def test_has_every_part(full):
    _, text, page = full
    assert set(page.values('id')) >= PARTS
    assert page.tags.count('svg') == 9
    assert page.tags.count('details') == 2
    assert 'Mean class error' in text
    assert all(page.values('aria-label'))
    assert all(page.values('alt'))
    assert text.startswith('<!DOCTYPE html>')


def test_page_requests_nothing_from_the_network(full):
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


def test_policy_allows_only_the_script_of_the_page(full):
    _, text, page = full
    data, script = re.findall(r'<script[^>]*>(.*?)</script>', text, re.DOTALL)
    assert page.tags.count('script') == 2
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(value for value in page.values('content') if 'default-src' in value)
    assert f"script-src 'sha256-{digest}';" in policy
    assert json.loads(data)['names'][0] == HOSTILE
    assert '<' not in data
    assert not re.search(r'innerHTML|outerHTML|insertAdjacent|document\.write|eval|Function', script)


def test_names_are_escaped(full):
    _, text, page = full
    assert '<script>alert' not in text
    assert '<b>' not in text
    shown = ''.join(page.texts)
    assert shown.count(HOSTILE) >= 5  # title twice, pair, config, note
    assert any(HOSTILE in value for value in page.values('alt'))
    assert not any(name.startswith('on') for _, name, _ in page.attributes)


def test_same_data_gives_the_same_bytes(full, tmp_path):
    assert full[0].read_bytes() == write_report(tmp_path / 'b.html', full_data()).read_bytes()


@pytest.mark.parametrize(
    ('changes', 'missing'),
    [
        ({'history': []}, ('curves',)),
        ({'history': history(1)}, ('curves',)),
        ({'predictions': EMPTY}, ('by-count', 'calibration', 'classes', 'worst', 'pairs')),
        (
            {'predictions': EMPTY, 'summary': {}},
            ('summary', 'by-count', 'calibration', 'classes', 'worst', 'pairs'),
        ),
        ({'train_counts': np.zeros(0, np.int64)}, ('by-count', 'data')),
        ({'tau': None}, ('tau',)),
        ({'open_set': None}, ('unknown',)),
        ({'corrections': {}}, ('corrections',)),
        ({'config_text': '', 'environment_text': ''}, ('run',)),
    ],
    ids=lambda value: ','.join(value),
)
@pytest.mark.usefixtures('empty_charts')
def test_sections_without_data_are_left_out(tmp_path, changes, missing):
    _, page = write(tmp_path, full_data(**changes))
    assert PARTS & set(page.values('id')) == PARTS - set(missing)


def test_a_title_is_enough_for_a_page(tmp_path):
    _, page = write(tmp_path, ReportData(title='Empty'))
    assert 'Empty' in page.texts
    assert not page.values('id')
    assert 'svg' not in page.tags


def test_sparse_history_and_summary(tmp_path):
    entries = [{'epoch': e, 'split': 'valid', 'loss': v} for e, v in enumerate([2.0, float('nan'), 1.0])]
    data = full_data(history=[*entries, {}], summary={'last': {'top1': 0.5}}, class_names=[], predictions=EMPTY)
    text, page = write(tmp_path, data)
    assert page.tags.count('svg') == 3  # loss, tau, class sizes
    assert '50.0\u202f%' in text
    assert 'nan' not in ''.join(page.texts)


def test_unlabeled_rows_do_not_shift_the_others(tmp_path):
    opened = []

    def record(row):
        opened.append(row)
        return Image.new('RGB', (8, 8))

    labels, predicted = np.array([-1, 0, 0, -1, 1]), np.array([5, 0, 1, 0, 1])
    text, _ = write(
        tmp_path, ReportData('x', predictions=predictions_from_classes(labels, predicted), open_image=record)
    )
    assert sorted(opened) == [1, 2, 4]
    assert 'class 0' in text


def test_thumbnails_are_small_and_without_metadata(full):
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


@pytest.mark.usefixtures('empty_charts')
def test_unreadable_images_are_left_out_and_counted(full, tmp_path):
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
    assert ('No tau is better than the original checkpoint' in text) == (tau['chosen'] is None)


@pytest.mark.usefixtures('empty_charts')
def test_tau_follows_the_summary(tmp_path):
    text, page = write(tmp_path, full_data())
    assert page.values('id').index('tau') == 1  # after the summary
    after = tau_curve()['after']['mean_class_error']
    assert f'with tau {percent(after)}' in text
    unchanged = write(tmp_path, full_data(tau=tau_curve() | {'chosen': None}))[0]
    assert 'with tau ' not in unchanged


@pytest.mark.usefixtures('empty_charts')
def test_re_balanced_metrics_are_cross_fitted_if_known(tmp_path):
    cross_fitted = {'folds': 5, 'taus': [], 'mean_class_error': 0.321, 'top1': 0.7}
    text, page = write(tmp_path, full_data(tau=tau_curve() | {'cross_fitted': cross_fitted}))
    assert f'with tau {percent(0.321)}' in text
    assert 'Cross-fitted' in page.texts
    assert points(0.321 - 0.42) in page.texts
    assert '–' in page.texts, 'few, which is not cross-fitted'


def test_stays_small_with_50030_classes(tmp_path):
    rng = np.random.default_rng(0)
    num_classes = 50_030
    counts = rng.integers(0, 8000, num_classes)
    labels = np.repeat(np.arange(num_classes), 5)
    predicted = np.where(rng.random(len(labels)) < 0.4, rng.integers(0, num_classes, len(labels)), labels)
    top5 = predictions(labels, predicted, num_classes)
    data = full_data(train_counts=counts, predictions=top5, class_names=[], class_parents=[], open_image=None)
    text, _ = write(tmp_path, data)
    assert len(text.encode()) < 2_000_000
    drawn = re.search(r'50\u202f030 classes in ([\d\u202f]+) dots', text)
    assert 0 < int(drawn[1].replace('\u202f', '')) <= 2000


def test_number_formats():
    assert percent(0.1 + 0.2) == '30.0\u202f%'
    assert percent(float('nan')) == '–'
    assert points(0.30000000000004) == '+30.0'
    assert points(-0.012) == '−1.2'
    assert points(-0.0001) == '0.0'
    assert thousands(3_000_000) == '3\u202f000\u202f000'


@pytest.mark.parametrize('fraction', [0.0, 0.3, 0.8])
@pytest.mark.usefixtures('empty_charts')
def test_thumbnails_are_left_out_from_the_end_until_the_file_is_small_enough(tmp_path, fraction):
    whole, page = write(tmp_path, full_data())
    sources = page.values('src')
    bare = len(whole.encode()) - sum(len(source) + 200 for source in sources)
    limit = bare + fraction * (len(whole.encode()) - bare)
    path = write_report(tmp_path / 'report.html', full_data(), max_bytes=limit)
    text = path.read_text('utf-8')
    shown = Page(text).values('src')
    assert shown == sources[: len(shown)]
    assert len(shown) < len(sources)
    assert 'left out of this page' in text
    if fraction:
        assert shown
        assert len(text.encode()) <= limit


@pytest.mark.usefixtures('empty_charts')
def test_all_thumbnails_are_shown_if_they_fit(tmp_path):
    whole = write_report(tmp_path / 'report.html', full_data())
    exact = write_report(tmp_path / 'exact.html', full_data(), max_bytes=whole.stat().st_size + 20_000)
    assert exact.read_bytes() == whole.read_bytes()
