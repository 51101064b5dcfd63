"""The page of the service in headless Chromium: photos are answered, confirmed and corrected, by keyboard and touch."""

import json
import random
import time
from contextlib import contextmanager

import pytest
from PIL import Image

from lib.dataset.corrections import read_decisions
from lib.formats.decisions import UNLABELED
from lib.service.interface import photo_id
from tests.report.test_browser import MARKUP, SIZES
from tests.service.page_service import page_service, product

pytestmark = [pytest.mark.long, pytest.mark.process]
NAMES = [*(f'Tea {c}' for c in range(20)), MARKUP, '"><script>alert(2)</script>', 'Café crème', 'a' * 180]
TOKEN = 'a-long-token-of-a-test'


@contextmanager
def opened(browser, service, faults=(), **options):
    """Yield the page; fail if it asks another server, logs to the console, raises an error or opens a dialog.

    Args:
        faults: texts of console messages that are expected.
    """
    context = browser.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(15_000)
    problems = []
    page.on('console', lambda message: problems.append(message.text))
    page.on('pageerror', lambda error: problems.append(str(error)))
    page.on('dialog', lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
    page.on('request', lambda request: service.requests.append(request.url))
    page.goto(service.address)
    yield page
    context.close()
    assert [text for text in problems if not any(fault in text for fault in faults)] == []
    assert all(url.startswith((service.address, f'blob:{service.address}')) for url in service.requests)


def files(*numbers, **options):
    """Return photos of these classes for the page; their bytes differ by class."""
    return [
        {'name': f'IMG_{number}.jpg', 'mimeType': 'image/jpeg', 'buffer': product(number, **options)}
        for number in numbers
    ]


def add(page, given):
    page.set_input_files('#choose', given)


def drop(page, given):
    """Drop files on the page."""
    transfer = page.evaluate_handle(
        """files => {
            const transfer = new DataTransfer();
            for (const {name, mimeType, bytes} of files)
                transfer.items.add(new File([new Uint8Array(bytes)], name, {type: mimeType}));
            return transfer;
        }""",
        [{'name': one['name'], 'mimeType': one['mimeType'], 'bytes': list(one['buffer'])} for one in given],
    )
    page.dispatch_event('#page', 'drop', {'dataTransfer': transfer})


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)


def wait_for(condition, seconds=15):
    """Wait until the service has done its part."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def until(page, expression):
    """Wait until a JavaScript expression is true; `wait_for_function` needs eval, which the page forbids."""
    wait_for(lambda: page.evaluate(expression))


def answered(page, number=0):
    """Wait until the shown photo is answered, as a photo of class `number`; return the names of its answers."""
    page.wait_for_selector(f'.answer:has-text({json.dumps(NAMES[number])})')
    return page.eval_on_selector_all('.answer bdi', 'nodes => nodes.map(node => node.textContent)')


def saved(page):
    """Wait until all feedback is stored."""
    until(page, "!document.querySelector('#item').textContent.includes('saving')")


def stored(folder):
    """Return photo -> (action, class) in decisions.json."""
    path = folder / 'decisions.json'
    if not path.exists():
        return {}
    return {one.fpath.removeprefix('photos/')[:32]: (one.action, one.to) for one in read_decisions(path, UNLABELED)}


@pytest.fixture(scope='module')
def service(tmp_path_factory):
    with page_service(NAMES, tmp_path_factory.mktemp('feedback')) as running:
        yield running


@pytest.mark.parametrize('size', ['narrow', pytest.param('wide', marks=pytest.mark.slow)])
def test_a_dropped_photo_is_answered_and_corrected(browser, service, size):
    is_phone = size == 'narrow'
    with opened(browser, service, viewport=SIZES[size], has_touch=is_phone, is_mobile=is_phone) as page:
        assert page.locator('#camera').is_visible() == is_phone
        assert page.get_attribute('#capture', 'capture') == 'environment'
        drop(page, files(3 + is_phone))
        names = answered(page, 3 + is_phone)
        assert names == NAMES[3 + is_phone : 8 + is_phone]
        until(page, "document.querySelectorAll('.panel img').length === 15")
        until(page, "document.querySelector('.panel img').naturalWidth === 96")
        assert page.evaluate('document.documentElement.scrollWidth') <= SIZES[size]['width']
        box = page.locator('.actions').bounding_box()
        assert box['y'] + box['height'] <= SIZES[size]['height'], 'the buttons are in the window'
        page.locator('.answer').nth(1).tap() if is_phone else page.locator('.answer').nth(1).click()
        page.wait_for_selector('.panel.chosen.corrected')
        data = product(3 + is_phone)
        wait_for(lambda: stored(service.folder).get(photo_id(data)) == ('relabel', NAMES[4 + is_phone]))
        assert (service.folder / 'photos' / f'{photo_id(data)}.jpg').read_bytes() == data
        page.set_input_files('#capture', files(7))
        answered(page, 7)


def test_a_queue_is_decided_by_keyboard(browser, service):
    with opened(browser, service) as page:
        add(page, files(5, 6, 7, 8, 9, 10))
        answered(page, 5)
        press(page, 'Enter')
        answered(page, 6)
        press(page, '3')
        answered(page, 7)
        press(page, 'd')
        answered(page, 8)
        press(page, '/')
        page.keyboard.type('creme CAFE')
        page.wait_for_selector('#found-0')
        press(page, 'Enter')
        answered(page, 9)
        press(page, '/')
        page.keyboard.type('A new <b>tea')
        page.wait_for_selector('#found-0:has-text("new class")')
        press(page, 'Enter')
        answered(page, 10)
        press(page, 'Enter')
        assert 'All of 6 photos are decided' in page.inner_text('#status')
        assert page.get_attribute('#track', 'aria-label') == '6 of 6 photos decided'
        expected = [
            ('relabel', NAMES[5]), ('relabel', NAMES[8]), ('drop', ''), ('relabel', 'Café crème'),
            ('relabel', 'A new <b>tea'), ('relabel', NAMES[10]),
        ]  # fmt: skip
        keys = [photo_id(product(number)) for number in range(5, 11)]
        wait_for(lambda: [stored(service.folder).get(key) for key in keys] == expected)
        press(page, 'z', 'z')
        wait_for(lambda: keys[4] not in stored(service.folder))
        assert keys[5] not in stored(service.folder)
        assert page.inner_text('#item h2') == 'IMG_9.jpg'
        press(page, 'ArrowLeft', 'ArrowLeft')
        assert page.inner_text('#item h2') == 'IMG_7.jpg'
        assert 'dropped' in page.inner_text('#status')
        press(page, 'j', '1')
        wait_for(lambda: stored(service.folder)[keys[3]] == ('relabel', NAMES[8]))
        press(page, 'p', 'p')
        page.dispatch_event('#page', 'keydown', {'key': 'Enter', 'repeat': True})
        assert 'dropped' in page.inner_text('#item'), 'a held key decides once'


@pytest.mark.slow
def test_undo_restores_earlier_feedback_about_the_same_photo(browser, service):
    key = photo_id(product(11))
    for name in ('Enter', 'd'):
        with opened(browser, service) as page:
            add(page, files(11))
            answered(page, 11)
            press(page, name)
            saved(page)
            before = stored(service.folder)[key]
            if name == 'd':
                assert before == ('drop', '')
                press(page, 'z')
                wait_for(lambda: stored(service.folder)[key] == ('relabel', NAMES[11]))


@pytest.mark.slow
def test_buttons_and_focus(browser, service):
    with opened(browser, service) as page:
        add(page, files(12, 13, 14))
        answered(page, 12)
        page.click('.actions .confirmed')
        answered(page, 13)
        press(page, 'Enter')
        answered(page, 14)
        assert page.locator('#strip .confirmed').count() == 2, 'a clicked button does not take the next Enter'
        page.focus('.actions .dropped')
        press(page, 'Enter')
        assert page.locator('#strip .dropped').count() == 1
        assert page.evaluate('document.activeElement.dataset.action') == 'drop'
        press(page, '?')
        assert page.locator('#help').is_visible()
        press(page, 'z')
        assert page.locator('#strip .dropped').count() == 1, 'a dialog takes the keys'
        press(page, 'Escape')
        page.click('#strip .small >> nth=0')
        assert page.inner_text('#item h2') == 'IMG_12.jpg'
        saved(page)
        page.click('#clear')
        assert page.locator('#item').is_hidden()
        press(page, 'Enter', 'z', 'd', '/', 'ArrowLeft', '1')
        assert page.evaluate('document.activeElement.id') == 'choose'
        # Every control has a name for screen readers.
        nameless = 'nodes => nodes.filter(n => !(n.ariaLabel || n.textContent.trim() || n.labels?.length)).length'
        assert page.eval_on_selector_all('button, input, a', nameless) == 0


def test_hostile_names_are_shown_as_text_and_stored_as_they_are(browser, service):
    with opened(browser, service) as page:
        add(page, [{'name': MARKUP, 'mimeType': 'image/jpeg', 'buffer': product(20)}])
        assert answered(page, 20)[:3] == NAMES[20:23]
        assert page.inner_text('#item h2') == MARKUP
        press(page, 'Enter')
        wait_for(lambda: stored(service.folder).get(photo_id(product(20))) == ('relabel', MARKUP))
        press(page, '/')
        page.keyboard.type('script')
        page.wait_for_selector('#found-0')
        assert page.inner_text('#found-0 bdi') == NAMES[21]
        press(page, 'Enter')
        wait_for(lambda: stored(service.folder)[photo_id(product(20))] == ('relabel', NAMES[21]))
        assert page.locator('img[src="x"]').count() == 0
        assert page.locator('script').count() == 1


@pytest.mark.slow
def test_no_other_script_runs(browser, service):
    """The Content-Security-Policy blocks scripts and hosts even if escaping fails."""
    context = browser.new_context()
    page = context.new_page()
    policies = []

    def with_script(route):
        answer = route.fetch()
        policies.append(answer.headers['content-security-policy'])
        body = answer.text().replace('<header>', '<script>document.title = "run"</script><header onclick="alert(1)">')
        route.fulfill(response=answer, body=body)

    page.route(service.address, with_script)
    page.goto(service.address)
    assert page.title() == 'Which product is this?'
    assert not page.evaluate("fetch('https://example.org/').then(() => true, () => false)")
    assert "default-src 'none'" in policies[0]
    assert 'unsafe' not in policies[0]
    context.close()


@pytest.mark.slow
def test_an_answer_that_is_not_sure_and_files_that_are_no_photos(browser, service):
    with opened(browser, service, faults=['400', '415', '422']) as page:
        add(page, files(2, sure=False))
        answered(page, 2)
        assert 'not sure' in page.inner_text('.verdict')
        assert page.inner_text('#status').startswith('not sure: ')
        bad = [
            {'name': 'notes.txt', 'mimeType': 'text/plain', 'buffer': b'text'},
            {'name': 'broken.jpg', 'mimeType': 'image/jpeg', 'buffer': product(1)[:300]},
            {'name': 'empty.jpg', 'mimeType': 'image/jpeg', 'buffer': b''},
        ]
        add(page, bad)
        until(page, "document.querySelectorAll('#strip .failed').length === 3")
        for name, text in (('notes.txt', 'no photo'), ('broken.jpg', 'image'), ('empty.jpg', 'empty')):
            press(page, 'j')
            assert page.inner_text('#item h2') == name
            assert text in page.inner_text('.verdict')
            assert '\n' not in page.inner_text('.verdict')
            press(page, 'Enter', '1', 'd', '/')
        assert page.locator('#search').is_hidden()
        page.click('[data-action=again]')
        page.wait_for_selector('.verdict.failed')
        assert stored(service.folder).get(photo_id(bad[1]['buffer'])) is None


@pytest.mark.slow
def test_a_photo_that_is_too_large_is_reduced(browser, tmp_path):
    noise = random.Random(0).randbytes(900 * 700 * 3)
    path = tmp_path / 'large.png'
    Image.frombytes('RGB', (900, 700), noise).save(path)
    text = tmp_path / 'large.heic'
    text.write_bytes(b'\0' * 2_000_000)
    with page_service(NAMES, max_bytes=1_000_000) as small, opened(browser, small) as page:
        add(page, [path])
        page.wait_for_selector('.answer')
        assert 'reduced from 1.9\u202fMB to 0.' in page.inner_text('#item')
        assert page.locator('.actions').count() == 0, 'without a folder for feedback, nothing is decided'
        press(page, 'Enter', '1', 'd', 'z', '/')
        assert page.locator('.chosen').count() == 0
        add(page, [text])
        press(page, 'j')
        page.wait_for_selector('.verdict.failed:has-text("accepts 1.0")')


def test_the_token_is_asked_for_once(browser, tmp_path):
    with (
        page_service(NAMES, tmp_path, token=TOKEN) as guarded,
        opened(browser, guarded, faults=['401', '[DOM]']) as page,
    ):
        add(page, files(1, 2))
        page.wait_for_selector('#login[open]')
        page.keyboard.type('wrong')
        press(page, 'Enter')
        page.wait_for_selector('#login-note:has-text("does not accept")')
        press(page, 'Escape')
        page.wait_for_selector('#login[open]')
        page.fill('#token', TOKEN)
        press(page, 'Enter')
        answered(page, 1)
        until(page, "document.querySelector('.panel img').naturalWidth === 96")
        assert TOKEN not in ''.join(guarded.requests)
        page.reload()
        add(page, files(3))
        answered(page, 3)
        press(page, 'Enter')
        wait_for(lambda: len(stored(tmp_path)) == 1)
        assert page.evaluate('localStorage.length + document.cookie.length') == 0


@pytest.mark.slow
def test_photos_wait_while_the_service_is_busy_or_away(browser, service):
    with opened(browser, service, faults=['429', 'ERR_INTERNET_DISCONNECTED', '503']) as page:
        numbers = iter(range(100))

        def busy(route):
            if next(numbers) < 2:
                body = json.dumps({'error': 'too many images are waiting'})
                route.fulfill(status=429, headers={'Retry-After': '1'}, content_type='application/json', body=body)
            else:
                route.continue_()

        page.route('**/predict?*', busy)
        add(page, files(15))
        page.wait_for_selector('#note:has-text("busy")')
        answered(page, 15)
        assert page.locator('#note').is_hidden()
        page.context.set_offline(True)
        add(page, files(16, 17))
        page.wait_for_selector('#note:has-text("No connection")')
        press(page, 'Enter')
        page.context.set_offline(False)
        page.evaluate("dispatchEvent(new Event('online'))")
        answered(page, 16)
        wait_for(lambda: stored(service.folder).get(photo_id(product(15))) == ('relabel', NAMES[15]))
        assert page.locator('#note').is_hidden()


@pytest.mark.slow
def test_feedback_that_cannot_be_stored_is_reported(browser, service):
    with opened(browser, service, faults=['507']) as page:
        body = json.dumps({'error': 'the feedback folder is full'})
        page.route('**/feedback?*', lambda route: route.fulfill(status=507, body=body))
        add(page, files(18))
        answered(page, 18)
        press(page, 'Enter')
        page.wait_for_selector('[role=alert]:has-text("not saved: the feedback folder is full")')
        page.unroute('**/feedback?*')
        press(page, '1')
        page.wait_for_selector('.decided.confirmed')
        wait_for(lambda: stored(service.folder).get(photo_id(product(18))) == ('relabel', NAMES[18]))


@pytest.mark.slow
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_colors_follow_the_system(browser, service, scheme):
    with opened(browser, service, color_scheme=scheme, reduced_motion='reduce') as page:
        background = page.evaluate('getComputedStyle(document.body).backgroundColor')
        lightness = sum(map(int, background.removeprefix('rgb(').rstrip(')').split(',')))
        assert (lightness > 600) == (scheme == 'light')


@pytest.mark.slow
def test_without_scripts_the_page_has_a_hint(browser, service):
    with opened(browser, service, java_script_enabled=False) as page:
        assert 'needs JavaScript' in page.inner_text('main')


@pytest.mark.slow
def test_50030_classes_are_searched_fluidly(browser, tmp_path):
    names = [f'Product {c} of the brand {c % 977}, {c % 9}00 g' for c in range(50_030)]
    with page_service(names, tmp_path) as large, opened(browser, large) as page:
        add(page, files(0))
        page.wait_for_selector('.answer')
        press(page, '/')
        page.wait_for_selector('#found-note:has-text("Type words")')
        start = time.perf_counter()
        page.keyboard.type('product 4711')
        page.wait_for_selector('#found-0:has-text("Product 4711 ")')
        print(f'{time.perf_counter() - start:.2f} s for 12 keys')
        assert page.evaluate("document.querySelectorAll('#found li').length") <= 31
        press(page, 'Enter')
        wait_for(lambda: list(stored(tmp_path).values()) == [('relabel', names[4711])])
