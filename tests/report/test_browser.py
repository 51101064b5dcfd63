"""The report in headless Chromium."""

from contextlib import contextmanager

import numpy as np
import pytest

from lib.report.contact_sheet import MAX_PHOTOS
from lib.report.run_page import write_report
from tests.report.report_data import HOSTILE, NUM_CLASSES, full_data, predictions
from tests.report.test_contact_sheet import predictions_of, sheet

MARKUP = '<img src=x onerror=alert(1)>'
SIZES = {'wide': {'width': 1280, 'height': 900}, 'narrow': {'width': 390, 'height': 800}}
WINDOWS = [
    ('wide', 'light'),
    ('narrow', 'dark'),
    *(pytest.param(*window, marks=pytest.mark.slow) for window in [('wide', 'dark'), ('narrow', 'light')]),
]


@contextmanager
def opened(browser, path, **options):
    """Open a page and yield it; fail if it sends a request, logs to the console, raises an error or opens a dialog."""
    context = browser.new_context(**options)
    page = context.new_page()
    problems, requests = [], []
    page.on('console', lambda message: problems.append(message.text))
    page.on('pageerror', lambda error: problems.append(str(error)))
    page.on('dialog', lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
    page.on('request', lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    yield page
    context.close()
    assert problems == []
    assert [url for url in requests if not url.startswith('data:image/jpeg')] == [path.as_uri()]


def column(page, heading):
    return page.eval_on_selector_all(
        f'#class-rows td[data-label="{heading}"]', 'cells => cells.map(cell => cell.textContent)'
    )


def sort_by(page, heading):
    page.click(f'#class-headings button:text-is("{heading}")')


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    """A report of NUM_CLASSES classes, some with HTML markup as names."""
    names = [HOSTILE, MARKUP, '</script><script>alert(2)</script>', *(f'Tea {c}' for c in range(3, NUM_CLASSES))]
    return write_report(tmp_path_factory.mktemp('small') / 'report.html', full_data(class_names=names))


@pytest.mark.parametrize(('size', 'scheme'), WINDOWS)
def test_page_opens_without_errors_and_fits_the_window(browser, small, size, scheme):
    with opened(browser, small, viewport=SIZES[size], color_scheme=scheme) as page:
        assert page.evaluate('document.documentElement.scrollWidth') <= SIZES[size]['width']
        widths = page.eval_on_selector_all('img', 'images => images.map(image => image.naturalWidth)')
        assert widths
        assert min(widths) > 0
        background = page.evaluate('getComputedStyle(document.body).backgroundColor')
        lightness = sum(map(int, background.removeprefix('rgb(').rstrip(')').split(',')))
        assert (lightness > 600) == (scheme == 'light')


def test_names_are_shown_as_text(browser, small):
    with opened(browser, small) as page:
        assert MARKUP in column(page, 'Name')
        assert HOSTILE in column(page, 'Name')
        assert page.locator('img[src="x"]').count() == 0
        assert page.locator('script').count() == 2


def test_no_other_script_runs(browser, small, tmp_path):
    """The Content-Security-Policy blocks scripts even if escaping fails."""
    path = tmp_path / 'report.html'
    path.write_text(
        small.read_text('utf-8').replace('<main>', '<main><script>document.title = "run"</script>'), 'utf-8'
    )
    context = browser.new_context()
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.title() == HOSTILE
    assert page.locator('#class-rows tr').count() == NUM_CLASSES
    context.close()


def test_table_sorts_by_every_column_both_ways(browser, small):
    data = full_data()
    images = np.bincount(data.predictions.labels, minlength=NUM_CLASSES)
    right = np.bincount(data.predictions.labels[data.predictions.correct], minlength=NUM_CLASSES)
    by_column = {'Training': data.train_counts, 'Valid': images, 'Correct': right, 'Class': np.arange(NUM_CLASSES)}
    with opened(browser, small) as page:
        for heading, values in by_column.items():
            sort_by(page, heading)
            first = [int(text.replace('\u202f', '')) for text in column(page, heading)]
            assert sorted(first) == sorted(values)
            assert first == sorted(first, reverse=heading != 'Class')
            sort_by(page, heading)
            again = [int(text.replace('\u202f', '')) for text in column(page, heading)]
            assert again == sorted(again, reverse=heading == 'Class')
            assert page.locator('th[aria-sort]').count() == 1
        for heading in ('Error', '95\u202f% interval'):
            sort_by(page, heading)
            values = [float(text.split('–')[0].rstrip('%\u202f')) for text in column(page, heading)]
            assert values == sorted(values, reverse=True)
        for heading in ('Name', 'Parents', 'Most confused with'):
            sort_by(page, heading)
            assert len(column(page, heading)) == NUM_CLASSES
        sort_by(page, 'Name')
        teas = [text for text in column(page, 'Name') if text.startswith('Tea')]
        assert teas == [f'Tea {c}' for c in range(3, NUM_CLASSES)], 'numbers in names are sorted as numbers'


def test_table_finds_classes_by_name_parent_and_number(browser, small):
    with opened(browser, small) as page:
        for words, expected in {
            'TEA  10': ['Tea 10'],
            '7': ['Tea 7'],
            'onerror': [MARKUP],
            'shelf tea 5': ['Tea 5'],
            'nothing like it': [],
        }.items():
            page.fill('#class-search', words)
            assert column(page, 'Name') == expected, words
        assert page.text_content('#class-count') == 'No class matches.'
        page.fill('#class-search', '')
        assert len(column(page, 'Name')) == NUM_CLASSES


def test_worst_classes_are_shown_without_scripts_and_in_print(browser, small):
    with opened(browser, small, java_script_enabled=False) as page:
        assert page.locator('.static tbody tr').count() > 0
        assert page.locator('.static').is_visible()
        assert not page.locator('#class-search').is_visible()
    with opened(browser, small) as page:
        assert not page.locator('.static').is_visible()
        page.emulate_media(media='print')
        assert page.locator('.static').is_visible()
        assert not page.locator('#class-search').is_visible()


def test_50030_classes_are_shown_page_by_page(browser, tmp_path):
    num_classes = 50_030
    rng = np.random.default_rng(0)
    labels = rng.integers(0, num_classes, 150_000)
    predicted = np.where(rng.random(len(labels)) < 0.4, rng.integers(0, num_classes, len(labels)), labels)
    data = full_data(
        class_names=[f'Product {c}' for c in range(num_classes)],
        class_parents=[],
        train_counts=rng.integers(0, 8000, num_classes),
        predictions=predictions(labels, predicted, num_classes),
        open_image=None,
    )
    with opened(browser, write_report(tmp_path / 'report.html', data)) as page:
        assert page.locator('#class-rows tr').count() == 25
        assert page.text_content('#class-count') == '1–25 of 50\u202f030 classes'
        sort_by(page, 'Name')
        assert column(page, 'Name')[:3] == ['Product 0', 'Product 1', 'Product 2']
        page.click('#class-last')
        assert column(page, 'Class')[-1] == '50029'
        page.fill('#class-search', '4711')
        assert column(page, 'Class')[0] == '4711'
        images = np.bincount(labels, minlength=num_classes)
        assert column(page, 'Valid')[0] == str(images[4711])


@pytest.fixture(scope='module')
def photo_sheet(tmp_path_factory):
    """A contact sheet of more photos than one page; the certainty rises from the end to the beginning."""
    number = 130
    path = tmp_path_factory.mktemp('sheet') / 'predictions_photos.html'
    sheet(path, predictions_of(np.linspace(0.9, 0.3, number), np.arange(number) % 3), max_bytes=600_000)
    return path


def shown(page):
    return page.eval_on_selector_all('#photos > li', 'cards => cards.map(card => Number(card.dataset.first))')


@pytest.mark.parametrize(('size', 'scheme'), WINDOWS)
def test_contact_sheet_has_two_orders_and_pages(browser, photo_sheet, size, scheme):
    with opened(browser, photo_sheet, viewport=SIZES[size], color_scheme=scheme) as page:
        assert page.evaluate('document.documentElement.scrollWidth') <= SIZES[size]['width']
        assert shown(page) == list(range(60))
        assert page.text_content('#count') == '1–60 of 130'
        page.click('label[for=by-uncertain]')
        assert shown(page) == list(range(129, 69, -1))
        page.click('#next')
        page.click('#next')
        assert shown(page) == list(range(9, -1, -1))
        assert page.text_content('#count') == '121–130 of 130'
        assert page.locator('#next').is_disabled()
        page.click('#previous')
        assert shown(page) == list(range(69, 9, -1))
        page.focus('#by-uncertain')
        page.keyboard.press('ArrowLeft')
        assert shown(page) == list(range(60)), 'with the keyboard, too'
        assert MARKUP not in page.inner_html('#photos')
        assert HOSTILE in page.inner_text('h1')


def test_contact_sheet_without_scripts(browser, photo_sheet):
    with opened(browser, photo_sheet, java_script_enabled=False) as page:
        assert page.locator('#photos > li').count() == 130
        assert not page.locator('#bar').is_visible()


def test_contact_sheet_of_many_images_shows_the_least_certain_of_all(browser, tmp_path):
    number = 5 * MAX_PHOTOS
    path = tmp_path / 'sheet.html'
    confidence = np.linspace(0.9, 0.3, number)
    sheet(path, predictions_of(confidence, np.arange(number) % 3), max_bytes=1, open_image=pytest.fail)
    with opened(browser, path) as page:
        assert page.text_content('#count') == f'1–60 of {MAX_PHOTOS // 2}'
        page.click('label[for=by-uncertain]')
        names = page.eval_on_selector_all('.file', 'files => files.map(file => file.textContent)')
        assert [int(name.split()[0]) for name in names] == list(range(number - 1, number - 61, -1))
