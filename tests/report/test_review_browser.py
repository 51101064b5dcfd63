"""The review pages in headless Chromium: decisions, reload, export."""

import json
import random
import time
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from lib.dataset.corrections import Decision, read_decisions
from lib.formats.decisions import UNLABELED
from lib.report.review_page import write_review_pages
from tests.report.test_browser import MARKUP, SIZES
from tests.report.test_review_page import HOSTILE_NAMES, photo, review_data

pytestmark = pytest.mark.long


class Review:
    """A context of the browser, whose pages share their storage; it records problems and requests."""

    def __init__(self, context):
        self.context, self.problems, self.requests = context, [], []

    def open(self, path, mark=''):
        page = self.context.new_page()
        page.on('console', lambda message: self.problems.append(message.text))
        page.on('pageerror', lambda error: self.problems.append(str(error)))
        page.on('dialog', lambda dialog: (self.problems.append(dialog.message), dialog.dismiss()))
        page.on('request', lambda request: self.requests.append(request.url))
        page.goto(path.as_uri() + mark)
        return page


@contextmanager
def reviewing(browser, **options):
    """Yield a Review; fail if a page requests anything but itself and photos, logs, or raises an error."""
    context = browser.new_context(**options)
    review = Review(context)
    yield review
    context.close()
    # A page that is moved away from its files tries to show them.
    assert [text for text in review.problems if 'ERR_FILE_NOT_FOUND' not in text] == []
    assert all(url.startswith(('data:image/jpeg', 'file:///', 'blob:')) for url in review.requests)


@pytest.fixture
def path(tmp_path):
    """A page of 12 images beside their files."""
    (tmp_path / 'photos').mkdir()
    for row in range(12):
        Image.new('RGB', (300, 200), 'green').save(tmp_path / f'photos/{row}.jpg')
    (path,) = write_review_pages(
        tmp_path / 'clean.html', review_data(path_of=lambda row: f'{tmp_path}/photos/{row % 100}.jpg'), max_bytes=5e6
    )
    return path


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)


def exported(page, path):
    """Export, save the file as `path`, and return its decisions as (fpath, action, label, to)."""
    with page.expect_download() as download:
        page.click('#export')
    assert download.value.suggested_filename == 'decisions.json'
    download.value.save_as(path)
    content = json.loads(path.read_text('utf-8'))
    return [(one['fpath'], one['action'], one['label'], one.get('to', '')) for one in content['decisions']]


def current(page):
    return page.inner_text('#item h2')


def count(page, state):
    return int(page.inner_text(f'label[for=state-{state}] b'))


def test_decisions_by_keyboard_survive_a_reload_and_are_exported(browser, path, tmp_path):
    expected = [
        ('photos/0.jpg', 'keep', 'class 0', ''),
        ('photos/1.jpg', 'relabel', 'class 1', 'class 2'),
        ('photos/2.jpg', 'relabel', 'class 2', 'class 3'),
        ('photos/3.jpg', 'relabel', 'class 3', 'class 5'),
        ('photos/4.jpg', 'relabel', 'class 4', 'class 1'),
        ('photos/5.jpg', 'drop', 'class 5', ''),
        ('photos/6.jpg', 'unsure', 'class 0', ''),
    ]
    with reviewing(browser) as review:
        page = review.open(path)
        assert current(page) == 'photos/0.jpg'
        press(page, 'k', 'r', 'Enter', '2')
        press(page, '/')
        page.keyboard.type('CLASS  1')
        page.wait_for_selector('#found-0')
        press(page, 'Enter', 'd', 'u')
        assert current(page) == 'photos/7.jpg'
        page.reload()
        assert current(page) == 'photos/7.jpg'
        assert [count(page, state) for state in ('all', 'undecided', 'keep', 'relabel', 'drop', 'unsure')] == [
            12, 5, 1, 4, 1, 1,
        ]  # fmt: skip
        assert '7 of 12' in page.get_attribute('#track', 'aria-label')
        assert exported(page, tmp_path / 'decisions.json') == expected
        assert [(one.fpath, one.action, one.label, one.to) for one in read_decisions(tmp_path / 'decisions.json')] == (
            expected
        )


def test_decisions_about_relabeled_images_correct_the_annotation(browser, tmp_path):
    """Earlier decisions have relabeled images 1 to 4 from 'class 5'; a new file replaces theirs."""
    earlier = [Decision(f'photos/{row}.jpg', 'relabel', 'class 5', f'class {row % 6}') for row in (1, 2, 3, 4, 7)]
    earlier += [Decision('photos/elsewhere.jpg', 'drop', 'class 2', by='clean')]
    data = review_data(earlier=earlier, path_of=None)
    (path,) = write_review_pages(tmp_path / 'clean.html', data, max_bytes=5e6)
    with reviewing(browser) as review:
        page = review.open(path)
        press(page, 'k', 'k', 'r', 'd')
        assert [count(page, state) for state in ('keep', 'relabel', 'drop')] == [2, 1, 1]
        press(page, 'r')
        page.reload()
        assert [count(page, state) for state in ('keep', 'relabel', 'drop')] == [2, 2, 1]
        assert sorted(exported(page, tmp_path / 'decisions.json')) == [
            ('photos/0.jpg', 'keep', 'class 0', ''),
            ('photos/1.jpg', 'relabel', 'class 5', 'class 1'),
            ('photos/2.jpg', 'relabel', 'class 5', 'class 3'),
            ('photos/3.jpg', 'drop', 'class 5', ''),
            ('photos/4.jpg', 'keep', 'class 5', ''),
            ('photos/7.jpg', 'relabel', 'class 5', 'class 1'),  # not decided again
            ('photos/elsewhere.jpg', 'drop', 'class 2', ''),
        ]
        assert len(read_decisions(tmp_path / 'decisions.json')) == 7
        assert page.inner_text('#status') == 'exported 7 decisions'


def test_undo_and_navigation(browser, path):
    with reviewing(browser) as review:
        page = review.open(path)
        press(page, 'k', 'd', 'ArrowRight', 'j', 'u')
        assert current(page) == 'photos/5.jpg'
        press(page, 'z')
        assert current(page) == 'photos/4.jpg'
        assert count(page, 'unsure') == 0
        page.reload()  # and further back than the reload
        press(page, 'Control+z')
        assert current(page) == 'photos/1.jpg'
        press(page, 'z', 'z')
        assert count(page, 'undecided') == 12
        assert 'Nothing to undo' in page.inner_text('#status')
        press(page, 'p')
        assert 'first image' in page.inner_text('#status')
        # A changed decision is undone to the one before.
        press(page, 'k', 'ArrowLeft', 'd', 'z')
        assert [count(page, 'keep'), count(page, 'drop')] == [1, 0]
        # Held keys decide once.
        page.evaluate("dispatchEvent(new KeyboardEvent('keydown', {key: 'd', repeat: true}))")
        assert count(page, 'drop') == 0


def test_mouse_and_filters(browser, path):
    with reviewing(browser) as review:
        page = review.open(path)
        page.click('.actions .keep')
        press(page, 'Enter')
        assert [count(page, 'keep'), count(page, 'relabel')] == [1, 1], 'a clicked button does not take the next Enter'
        page.click('.panel button >> nth=1')
        page.click('.actions .drop')
        page.click('label[for=state-relabel]')
        assert current(page) == 'photos/1.jpg'
        assert page.locator('#strip .small').count() == 2
        page.click('#strip .small >> nth=1')
        assert current(page) == 'photos/2.jpg'
        press(page, 'k')
        assert [count(page, 'keep'), count(page, 'relabel')] == [2, 1]
        page.click('label[for=state-all]')
        page.click('label[for=kind-ambiguous]')
        assert current(page) == 'photos/4.jpg'
        assert page.inner_text('label[for=kind-ambiguous] b') == '4'
        page.click('[data-step="1"]')
        assert current(page) == 'photos/7.jpg'


def test_buttons_by_keyboard_keep_the_focus(browser, path):
    with reviewing(browser) as review:
        page = review.open(path)
        page.focus('.actions .drop')
        press(page, 'Enter', 'Enter')
        assert count(page, 'drop') == 2
        assert page.evaluate('document.activeElement.dataset.action') == 'drop'
        press(page, '?')
        assert page.locator('#help').is_visible()
        press(page, 'k')
        assert count(page, 'keep') == 0, 'a dialog takes the keys'
        press(page, 'Escape', 'k')
        assert count(page, 'keep') == 1


def test_photos_are_those_of_the_files_beside_the_page(browser, path):
    with reviewing(browser) as review:
        page = review.open(path)
        page.wait_for_function("document.querySelector('.shot img').naturalWidth === 300")
        assert page.get_attribute('.shot a', 'href') == './photos/0.jpg'
    moved = path.rename(path.parent / 'photos' / 'moved.html')
    context = browser.new_context()
    page = context.new_page()
    page.goto(moved.as_uri())
    press(page, 'j')
    assert page.eval_on_selector('.shot img', 'image => image.naturalWidth') == 192, 'else the embedded ones'
    context.close()


def test_import_merges_an_earlier_file(browser, path, tmp_path):
    decisions = [
        {'fpath': 'photos/0.jpg', 'action': 'drop', 'label': 'class 0'},  # decided here
        {'fpath': 'photos/1.jpg', 'action': 'drop', 'label': 'class 5'},  # the label has changed
        {'fpath': 'photos/2.jpg', 'action': 'weight', 'label': 'class 2', 'weight': 0.5, 'by': 'clean'},
        {'fpath': 'elsewhere.jpg', 'action': 'drop', 'label': 'class 1', 'by': 'review', 'other': 1},
        {'fpath': 'photos/3.jpg', 'action': 'relabel', 'label': 'class 3'},  # invalid
        {'fpath': 3, 'action': 'drop'},
        None,
    ]
    earlier = tmp_path / 'earlier.json'
    earlier.write_text(json.dumps({'split': 'train', 'decisions': decisions}))
    with reviewing(browser) as review:
        page = review.open(path)
        press(page, 'k')
        page.set_input_files('#import', earlier)
        page.wait_for_selector('#status:has-text("imported")')
        text = '2 of 7 decisions imported; not imported: 1 decided here, 1 of another label than now, 3 invalid'
        assert page.inner_text('#status') == text
        assert exported(page, tmp_path / 'decisions.json') == [
            ('photos/0.jpg', 'keep', 'class 0', ''),
            ('photos/2.jpg', 'weight', 'class 2', ''),
            ('elsewhere.jpg', 'drop', 'class 1', ''),
        ]
        assert len(read_decisions(tmp_path / 'decisions.json')) == 3
        press(page, 'z')
        assert page.inner_text('#export') == 'Export (1)', 'an import is undone as a whole'
        for content in ('[', '[]', 'null', '{"decisions": 1}', '{"split": "valid", "decisions": []}'):
            earlier.write_text(content)
            page.set_input_files('#import', [])
            page.set_input_files('#import', earlier)
            page.wait_for_selector('#status:has-text("Not imported")')
            page.evaluate("document.getElementById('status').textContent = ''")


def test_pages_of_a_set_are_exported_together(browser, tmp_path):
    paths = write_review_pages(tmp_path / 'clean.html', review_data(40, 6, path_of=None), max_bytes=200_000)
    assert len(paths) > 1
    with reviewing(browser) as review:
        first = review.open(paths[0])
        press(first, 'k')
        first.click('nav.sheets a >> nth=0')
        start = current(first)
        assert start != 'photos/0.jpg'
        assert not first.locator('#note').is_visible()
        press(first, 'd')
        second = review.open(paths[0])  # another tab
        press(second, 'u')
        assert [row[:2] for row in exported(first, tmp_path / 'decisions.json')] == [
            ('photos/0.jpg', 'keep'), (start, 'drop'), ('photos/1.jpg', 'unsure'),
        ]  # fmt: skip
    with reviewing(browser) as review:  # as in a browser whose pages do not share their storage
        page = review.open(paths[1], '#from-1')
        assert 'each page separately' in page.inner_text('#note')


@pytest.mark.parametrize('fault', ['none', 'full'])
def test_without_storage_the_page_works_with_a_warning(browser, path, tmp_path, fault):
    script = {
        'none': "Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('no'); }})",
        'full': "Storage.prototype.setItem = function (key) { if (key.includes('[')) throw new DOMException('full'); }",
    }[fault]
    with reviewing(browser) as review:
        review.context.add_init_script(script)
        page = review.open(path)
        press(page, 'k', 'd')
        assert 'xport' in page.inner_text('#note')
        assert page.get_attribute('#note', 'role') == 'alert'
        assert len(exported(page, tmp_path / 'decisions.json')) == 2


def test_hostile_names_are_shown_as_text_and_exported_as_they_are(browser, tmp_path):
    names = [*HOSTILE_NAMES, MARKUP]
    number = len(names)
    data = review_data(number, number, title=MARKUP, class_names=names, fpaths=names, path_of=None)
    (path,) = write_review_pages(tmp_path / 'clean.html', data, max_bytes=5e6)
    with reviewing(browser) as review:
        page = review.open(path)
        for name in names:
            assert page.evaluate("document.querySelector('#item h2 bdi').textContent") == name
            press(page, 'r')
        press(page, 'ArrowLeft', '/')
        page.keyboard.type('onerror')
        page.wait_for_selector('#found-0')
        assert page.inner_text('#found-0 bdi') == MARKUP
        press(page, 'Escape')
        page.reload()
        assert exported(page, tmp_path / 'decisions.json') == [
            (name, 'relabel', name, names[(k + 1) % number]) for k, name in enumerate(names)
        ]
        assert page.locator('img[src="x"]').count() == 0


def test_unlabeled_images_are_given_classes(browser, tmp_path):
    data = review_data(4, 3, split=UNLABELED, labels=np.full(4, -1), errors=np.full(4, np.nan), kinds=['abstained'] * 4)
    (path,) = write_review_pages(tmp_path / 'review.html', data, max_bytes=5e6)
    with reviewing(browser) as review:
        page = review.open(path)
        assert page.locator('label[for=state-keep]').count() == 0
        press(page, 'k')
        assert 'no label' in page.inner_text('#status')
        press(page, 'r', '2', '/')
        page.keyboard.type('Brand new <b>tea</b>')
        page.wait_for_selector('#found-0:has-text("new class")')
        press(page, 'Enter', 'd')
        assert exported(page, tmp_path / 'decisions.json') == [
            ('photos/0.jpg', 'relabel', '', 'class 1'),
            ('photos/1.jpg', 'relabel', '', 'class 0'),
            ('photos/2.jpg', 'relabel', '', 'Brand new <b>tea</b>'),
            ('photos/3.jpg', 'drop', '', ''),
        ]
        assert json.loads((tmp_path / 'decisions.json').read_text())['split'] == UNLABELED


@pytest.mark.parametrize(('size', 'scheme'), [('wide', 'dark'), ('narrow', 'light')])
def test_page_fits_the_window(browser, path, size, scheme):
    with reviewing(browser, viewport=SIZES[size], color_scheme=scheme) as review:
        page = review.open(path)
        press(page, 'k')
        assert page.evaluate('document.documentElement.scrollWidth') <= SIZES[size]['width']
        box = page.locator('.actions').bounding_box()
        assert box['y'] + box['height'] <= SIZES[size]['height'], 'the buttons are in the window'
        # Every control has a name for screen readers.
        nameless = (
            'nodes => nodes.filter(n => !(n.ariaLabel || n.textContent.trim() || n.labels?.length'
            " || n.querySelector('img').alt)).length"
        )
        assert page.eval_on_selector_all('button, input, a', nameless) == 0


def test_without_scripts_the_page_has_a_hint(browser, path):
    with reviewing(browser, java_script_enabled=False) as review:
        assert 'needs JavaScript' in review.open(path).inner_text('main')


@pytest.mark.slow
def test_random_keys_against_a_list(browser, tmp_path):
    """Decisions and undo follow a plain list of what was pressed."""
    seed = random.randrange(10**6)
    print(f'seed {seed}')
    rng = random.Random(seed)
    (path,) = write_review_pages(tmp_path / 'clean.html', review_data(15, path_of=None), max_bytes=5e6)
    actions = {'k': 'keep', 'd': 'drop', 'u': 'unsure', 'r': 'relabel', '2': 'relabel'}
    stack, decided = [], {}
    with reviewing(browser) as review:
        page = review.open(path)
        for _ in range(80):
            key = rng.choice('kdur2zzjp')
            fpath = current(page)
            press(page, key)
            if key in actions:
                stack.append((fpath, decided.get(fpath)))
                row = int(fpath[7:-4])
                to = f'class {(row + int(key)) % 6}' if key == '2' else f'class {(row + 1) % 6}' if key == 'r' else ''
                decided[fpath] = (actions[key], to)
            elif key == 'z' and stack:
                fpath, before = stack.pop()
                decided[fpath] = before
                assert current(page) == fpath
        expected = {fpath: one for fpath, one in decided.items() if one}
        found = {row[0]: (row[1], row[3]) for row in exported(page, tmp_path / 'decisions.json')} if expected else {}
        assert found == expected


@pytest.mark.slow
def test_20000_images_are_one_fluid_page(browser, tmp_path):
    number, num_classes = 20_000, 50_030
    rng = np.random.default_rng(0)
    data = review_data(
        number,
        num_classes,
        labels=rng.integers(0, num_classes, number),
        fpaths=[f'photos/of/a/catalog/with/long/paths/{row:06d}.jpg' for row in range(number)],
        class_names=[f'Product {c} of the brand {c % 977}, {c % 9}00 g' for c in range(num_classes)],
        open_image=lambda row: photo(0),
    )
    paths = write_review_pages(tmp_path / 'clean.html', data, max_bytes=0)  # all on one page
    sizes = [path.stat().st_size for path in paths]
    with reviewing(browser) as review:
        start = time.perf_counter()
        page = review.open(paths[0])
        page.wait_for_selector('#item h2')
        seconds = time.perf_counter() - start
        print(f'{sizes} bytes, {seconds:.2f} s')
        assert page.inner_text('label[for=state-all] b') == '20\u202f000'
        assert page.evaluate("document.querySelectorAll('*').length") < 300
        press(page, 'k', '/')
        page.keyboard.type('product 4711')
        page.wait_for_selector('#found-0')
        assert page.inner_text('#found-0 bdi').startswith('Product 4711 ')
        press(page, 'Enter')
        assert count(page, 'relabel') == 1


def test_photos_of_a_cluster_get_the_name_that_one_of_them_is_given(browser, tmp_path):
    """Two clusters, 6 and 7, of five and three photos, and a photo that is in none."""
    clusters = [6] * 5 + [7] * 3 + [-1]
    data = review_data(
        9,
        split=UNLABELED,
        labels=np.full(9, -1),
        errors=np.full(9, np.nan),
        kinds=['new_class'] * 8 + ['alone'],
        class_names=[*(f'class {label}' for label in range(6)), 'new class 1', 'new class 2'],
        proposals=np.stack([clusters, np.full(9, 2)], axis=1),
        cluster_sizes=[5, 3],
    )
    (path,) = write_review_pages(tmp_path / 'proposals.html', data, max_bytes=5e6)
    with reviewing(browser) as review:
        page = review.open(path)
        assert 'new, 5 images' in page.inner_text('#item .panels')
        press(page, '/')
        page.keyboard.type('Oat milk')
        page.wait_for_selector('#found-0')
        press(page, 'Enter')
        assert 'Oat milk' in page.inner_text('#item .panels')
        press(page, '2')  # a known class: no name for the cluster
        press(page, 'r')
        press(page, 'a')
        assert current(page) == 'photos/5.jpg'
        press(page, 'z')
        assert count(page, 'undecided') == 6
        press(page, 'a', 'r', 'r', 'd')
        page.reload()
        decisions = exported(page, tmp_path / 'decisions.json')
    names = ['Oat milk', 'class 2', *['Oat milk'] * 3, 'new class 2', 'new class 2']
    assert sorted(decisions)[:7] == [(f'photos/{row}.jpg', 'relabel', '', name) for row, name in enumerate(names)]
    assert ('photos/7.jpg', 'drop', '', '') in decisions
