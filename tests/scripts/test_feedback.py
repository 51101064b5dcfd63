"""From the page of tools/serve.py in Chromium to training: photos are confirmed, corrected and given new classes."""

import json
import shutil
from collections import Counter

import pytest

from tests.report.test_review_browser import press
from tests.scripts.running import ON_CPU, REPOSITORY, TINY
from tests.scripts.test_corrections import checkpoint_of
from tests.service.serving import running
from tests.service.test_page_browser import add, saved, until, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.process]
MODEL = ('--RESUME_MODEL', 'log/tiny/best_model.pth')
SERVE = ('--SERVE_PORT', 0, '--SERVE_FEEDBACK', 'feedback', '--SERVE_NEIGHBORS', 2, '--SERVE_BATCH_SIZE', 4)


def names_in(folder):
    return json.loads((folder / 'classes.json').read_text())['names']


def labeled(folder):
    """Return the (file, class) of each training image of a converted set."""
    names = names_in(folder)
    images = json.loads((folder / 'converted_train.json').read_text())['annotations']
    return Counter((image['fpath'].rpartition('/')[2], names[image['category_id']]) for image in images)


def test_feedback_trains_and_enrolls(browser, scripts, run_folder, products):
    photos = sorted(products.glob('**/*.jpg'))[-5:]
    names = names_in(products)
    command = [str(REPOSITORY / 'tools/serve.py'), *map(str, (*MODEL, *ON_CPU, *SERVE))]
    with running(command, run_folder) as service:
        context = browser.new_context()
        page = context.new_page()
        page.goto(f'http://127.0.0.1:{service.port}/')
        add(page, photos)
        expected = []
        for number in range(5):
            until(page, f"document.querySelector('#item h2').textContent === '{photos[number].name}'")
            page.wait_for_selector('.answer')
            answers = page.eval_on_selector_all('.answer bdi', 'nodes => nodes.map(node => node.textContent)')
            assert set(answers) <= set(names)
            if number == 0:
                until(page, "document.querySelector('.panel img').naturalWidth > 0")
                assert page.locator('.panel img').count() == 2 * len(answers)
            if number < 3:
                press(page, 'Enter' if number == 0 else '2')
                expected.append(answers[min(number, 1)])
            elif number == 3:
                press(page, '/')
                page.keyboard.type('A new <b>product')
                page.wait_for_selector('#found-0:has-text("new class")')
                press(page, 'Enter')
                expected.append('A new <b>product')
            else:
                press(page, 'd')
        saved(page)
        wait_for(lambda: len(json.loads((run_folder / 'feedback/decisions.json').read_text())['decisions']) == 5)
        thumbnail = service.get('/photos/0.jpg')
        assert thumbnail.status == 200
        assert thumbnail.body.startswith(b'\xff\xd8')
        assert service.get('/photos/1000000.jpg').status == 404
        context.close()
        assert service.stop() == 0

    stored = [run_folder / 'feedback/photos' / path.name for path in (run_folder / 'feedback/photos').iterdir()]
    assert sorted(path.read_bytes() for path in stored) == sorted(path.read_bytes() for path in photos[:4])
    data = shutil.copytree(products, run_folder / 'data')
    before = labeled(data)
    scripts.run(run_folder, 'tools/convert.py', 'decisions', 'feedback/decisions.json', 'data', '--append')
    added = labeled(data) - before
    assert Counter(name for _, name in added.elements()) == Counter(expected)
    scripts.run(run_folder, 'main.py', '--config', TINY, '--DATASET_ROOT', 'data', '--NAME', 'more')
    counts = checkpoint_of(run_folder, 'more').training_set.class_counts
    assert counts.tolist() == [
        sum(n for (_, name), n in labeled(data).items() if name == one) for one in names_in(data)
    ]

    enroll = ('--ENROLL_IMAGES', 'feedback/decisions.json', '--ENROLL_OUT', 'enrolled', '--ENROLL_MAX_LOSS', 1)
    scripts.run(run_folder, 'tools/enroll.py', *MODEL, *ON_CPU, *enroll)
    assert names_in(run_folder / 'enrolled')[-1] == 'A new <b>product'
