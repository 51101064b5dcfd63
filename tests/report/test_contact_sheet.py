"""The contact sheet of a prediction."""

import re

import numpy as np
import pytest
from PIL import Image

from lib.metrics.predictions import Predictions
from lib.report.contact_sheet import MAX_PHOTOS, SheetData, link_to, listed_rows, write_contact_sheet
from tests.report.report_data import HOSTILE
from tests.report.test_run_page import Page


def predictions_of(confidence, predicted, labels=None):
    """Return predictions of two classes each."""
    confidence, predicted = np.asarray(confidence, np.float32), np.asarray(predicted)
    topk = np.stack([predicted, np.where(predicted < 0, -1, (predicted + 1) % 3)], axis=1)
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    labels = np.full(len(predicted), -1) if labels is None else np.asarray(labels)
    return Predictions(labels, topk, probabilities, np.full(len(predicted), np.nan, np.float32))


def photo(row):
    rng = np.random.default_rng(row)
    return Image.fromarray(rng.integers(0, 256, (100, 150, 3), np.uint8))


def sheet(path, predictions, max_bytes=5e6, **changes):
    fields = {
        'title': HOSTILE,
        'model': HOSTILE,
        'source': HOSTILE,
        'names': [f'{row} {HOSTILE}.jpg' for row in range(len(predictions))],
        'predictions': predictions,
        'class_names': ['milk', HOSTILE, 'tea'],
        'errors': dict.fromkeys(np.flatnonzero(predictions.predicted < 0).tolist(), HOSTILE),
        'threshold': None,
        'open_image': photo,
        'path_of': lambda row: f'photos/javascript:alert({row}) "x".jpg',
    }
    write_contact_sheet(path, SheetData(**(fields | changes)), max_bytes=max_bytes)
    return path.read_text('utf-8')


@pytest.fixture
def few():
    return predictions_of([0.9, 0.3, 0.0, 0.55, 0.3], [0, 1, -1, 2, 0], [0, 0, 1, 2, -1])


def test_everything_is_escaped(few, tmp_path):
    page = sheet(tmp_path / 'sheet.html', few)
    parsed = Page(page)
    assert page.count('<script') == 1
    assert all(not name.startswith('on') for _, name, _ in parsed.attributes)
    assert all(value.startswith('data:image/jpeg;base64,') for value in parsed.values('src'))
    assert all(re.fullmatch(r'\./[\w/%.()-]+', value) for value in parsed.values('href'))
    assert parsed.values('content')[0].startswith("default-src 'none'")
    assert 'http:' not in page
    assert 'https:' not in page


def test_cards(few, tmp_path):
    page = sheet(tmp_path / 'sheet.html', few, threshold=0.4, class_names=['milk', 'rice', 'tea'])
    cards = re.findall(r'<li data-first="(\d+)" data-uncertain="(\d+)"( class="below")?>(.*?)</li>', page, re.DOTALL)
    # Unreadable images are the least certain; of equal ones, the first comes first.
    assert [(int(first), int(rank), bool(below)) for first, rank, below, _ in cards] == [
        (0, 4, False), (1, 1, True), (2, 0, False), (3, 3, False), (4, 2, True),
    ]  # fmt: skip
    texts = [re.sub(r'<[^>]+>', '', text) for *_, text in cards]
    assert 'milk' in texts[0]
    assert '90.0' in texts[0]
    assert 'labeled' not in texts[0] + texts[3] + texts[4]
    assert 'labeled milk' in texts[1]
    assert 'unreadable' in texts[2]
    assert 'labeled rice' in texts[2]
    assert page.count('<img') == 4


@pytest.mark.parametrize('max_bytes', [40_000, 100_000])
def test_size_is_limited_and_the_other_photos_are_links(tmp_path, max_bytes):
    predictions = predictions_of(np.linspace(0.2, 0.9, 60), np.arange(60) % 3)
    page = sheet(tmp_path / 'sheet.html', predictions, max_bytes=max_bytes, class_names=['a', 'b', 'c'])
    embedded, linked = page.count('<img'), page.count('open the photo')
    assert embedded + linked == 60
    assert linked > 0
    if embedded:
        assert len(page.encode()) <= max_bytes
        # Both orders begin with photos.
        assert '<img' in page.split('<li ')[1]
        assert '<img' in next(card for card in page.split('<li ') if 'data-uncertain="0"' in card)
    assert f'{linked} photos are linked instead of shown' in page


@pytest.mark.parametrize('num_images', [0, 1, MAX_PHOTOS, MAX_PHOTOS + 1, 5_000])
def test_listed_rows_against_a_sort(num_images):
    rng = np.random.default_rng(num_images)
    predicted = rng.integers(-1, 3, num_images)
    confidence = rng.integers(0, 20, num_images) / 20  # many ties
    first, uncertain = listed_rows(predictions_of(confidence, predicted))
    number = num_images if num_images <= MAX_PHOTOS else MAX_PHOTOS // 2
    assert first.tolist() == list(range(number))
    order = sorted(
        range(num_images),
        key=lambda row: (predicted[row] >= 0, (predicted[row] >= 0) * np.float32(confidence[row]), row),
    )
    assert uncertain.tolist() == order[:number]


@pytest.mark.long
def test_millions_of_images_are_a_small_page(tmp_path):
    number = 200_000
    predictions = predictions_of(np.random.default_rng(0).random(number), np.arange(number) % 3)
    opened = []
    page = sheet(
        tmp_path / 'sheet.html',
        predictions,
        names=[str(row) for row in range(number)],
        open_image=lambda row: (opened.append(row), photo(0))[1],
        max_bytes=3e6,
        class_names=['a', 'b', 'c'],
    )
    assert len(page.encode()) <= 3e6
    assert len(opened) <= MAX_PHOTOS
    assert 'least certain of all 200\u202f000' in page


def test_links_are_relative_and_quoted(tmp_path):
    assert link_to(f'{tmp_path}/photos/a b#?%.jpg', tmp_path / 'log' / 'run') == './../../photos/a%20b%23%3F%25.jpg'
    assert link_to(f'{tmp_path}/caf\udce9.jpg', tmp_path) == './caf%E9.jpg'
    assert link_to(f'{tmp_path}/javascript:x.jpg', tmp_path) == './javascript%3Ax.jpg'
