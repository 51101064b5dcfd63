"""From the review page in Chromium to training: decisions by keyboard, a reload, the export, DATASET.CORRECTIONS."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lib.report.review_page import write_review_pages
from tests.report.test_review_browser import current, exported, press, reviewing
from tests.report.test_review_page import review_data
from tests.scripts.running import TINY
from tests.scripts.test_corrections import checkpoint_of, correct_by_hand

pytestmark = pytest.mark.long


def review_of(products: Path, path: Path) -> None:
    """Write a page about every second training image, with the next class as proposal."""
    images = json.loads((products / 'converted_train.json').read_text())['annotations']
    names = json.loads((products / 'classes.json').read_text())['names']
    rows = np.arange(0, len(images), 2)
    labels = np.array([images[row]['category_id'] for row in rows])
    data = review_data(
        len(rows),
        len(names),
        rows=rows,
        fpaths=[images[row]['fpath'] for row in rows],
        labels=labels,
        proposals=(labels[:, None] + 1) % len(names),
        probabilities=np.full((len(rows), 1), 0.9),
        class_names=names,
        typical=lambda label: [row for row, image in enumerate(images) if image['category_id'] == label],
        open_image=lambda row: Image.open(products / images[row]['fpath']),
        path_of=lambda row: str(products / images[row]['fpath']),
    )
    write_review_pages(path, data, max_bytes=5e6)


def test_decisions_of_the_page_correct_the_training_set(scripts, browser, products, tmp_path):
    review_of(products, tmp_path / 'clean.html')
    names = json.loads((products / 'classes.json').read_text())['names']
    with reviewing(browser) as review:
        page = review.open(tmp_path / 'clean.html')
        before = current(page)
        press(page, 'r', 'd', 'k', 'u', 'r', 'd', 'z', '/')
        page.keyboard.type(names[3])
        page.wait_for_selector('#found-0')
        press(page, 'Enter')
        page.reload()
        assert current(page) != before
        press(page, 'd')
        decisions = exported(page, tmp_path / 'decisions.json')
    assert [action for _, action, _, _ in decisions] == [
        'relabel', 'drop', 'keep', 'unsure', 'relabel', 'relabel', 'drop',
    ]  # fmt: skip
    assert decisions[5][3] == names[3]
    corrections = ('--DATASET_CORRECTIONS', 'decisions.json')
    options = ('--config', TINY, '--DATASET_ROOT', products, '--NAME', 'reviewed', *corrections)
    done = scripts.run(tmp_path, 'main.py', *options)
    assert 'decisions.json: 3 labels corrected, 2 images dropped' in done.stdout
    shutil.copytree(products, tmp_path / 'fixed')
    by_path = {fpath: {'action': action, 'to': to} for fpath, action, _, to in decisions}
    correct_by_hand(tmp_path / 'fixed', 'converted_train.json', by_path)
    fixed = json.loads((tmp_path / 'fixed/converted_train.json').read_text())['annotations']
    counts = np.bincount([image['category_id'] for image in fixed], minlength=len(names))
    assert checkpoint_of(tmp_path, 'reviewed').training_set.class_counts.tolist() == counts.tolist()


def test_photos_without_labels_become_training_images(scripts, browser, run_folder, products):
    """test.py lists the photos that the model abstains from; the reviewer gives them old and new classes."""
    shots = run_folder / 'shots'
    shots.mkdir()
    photos = sorted(products.glob('**/*.jpg'))[:4]
    for number, photo in enumerate(photos):
        shutil.copy(photo, shots / f'{number} "photo" <b>.jpg')
    model = ('--RESUME_MODEL', 'log/tiny/best_model.pth')
    scripts.run(run_folder, 'test.py', *model, '--TEST_IMAGES', 'shots', '--TEST_ABSTAIN_ERROR', 1e-6)
    with reviewing(browser) as review:
        page = review.open(run_folder / 'log/tiny/predictions_shots.review.html')
        press(page, 'r', '2', '/')
        page.keyboard.type('A new product')
        page.wait_for_selector('#found-0:has-text("new class")')
        press(page, 'Enter', 'd')
        decisions = exported(page, run_folder / 'decisions.json')
    assert [Path(fpath).parent for fpath, *_ in decisions] == [shots] * 4
    done = scripts.run(run_folder, 'tools/convert.py', 'decisions', 'decisions.json', 'reviewed')
    assert '3' in done.stdout
    written = json.loads((run_folder / 'reviewed/converted_train.json').read_text())['annotations']
    names = json.loads((run_folder / 'reviewed/classes.json').read_text())['names']
    assert [names[entry['category_id']] for entry in written] == [to for *_, to in decisions[:3]]
    # Only the new class is enrolled.
    enroll = ('--ENROLL_IMAGES', 'decisions.json', '--ENROLL_OUT', 'enrolled')
    scripts.run(run_folder, 'tools/enroll.py', *model, *enroll)
    assert json.loads((run_folder / 'enrolled/classes.json').read_text())['names'][-1] == 'A new product'
