"""test.py with TEST.REJECT_UNKNOWN as a user runs it: rows, threshold and page agree, by parts as in one piece."""

import csv
import json
import re

import numpy as np
import pytest

from tests.aliproducts import draw_product
from tests.scripts.running import ON_CPU, error_line

MODEL = ('--RESUME_MODEL', 'log/tiny/best_model.pth', *ON_CPU)
STEM = 'predictions_converted_val'


def rows_of(path):
    with open(path, encoding='utf-8', newline='') as file:
        return list(csv.DictReader(file))


@pytest.fixture
def valid(products):
    return ('--DATASET_TEST_JSON', products / 'converted_val.json')


@pytest.fixture
def others(tmp_path):
    """Class folders of two further products, a photo that cannot be decoded among them."""
    random = np.random.default_rng(7)
    for label, name in enumerate(('marmalade', 'tea')):
        (tmp_path / 'others' / name).mkdir(parents=True)
        for number in range(4):
            draw_product(2 * label + 1, 7, 40, random).save(tmp_path / 'others' / name / f'{number}.jpg')
    (tmp_path / 'others' / 'tea' / '9.jpg').write_bytes(b'no photo')
    return tmp_path / 'others'


@pytest.mark.process
@pytest.mark.long
def test_classes_left_out(scripts, run_folder, valid):
    done = scripts.run(run_folder, 'test.py', *MODEL, *valid, '--TEST_REJECT_UNKNOWN', 0.3)
    folder = run_folder / 'log' / 'tiny'
    about = json.loads((folder / f'{STEM}.open_set.json').read_text())
    rows, predicted = rows_of(folder / f'{STEM}.open_set.csv'), rows_of(folder / f'{STEM}.csv')
    assert (about['num_classes'], about['num_images'], about['is_left_out']) == (6, 24, True)
    assert (about['wanted_rate'], about['guaranteed_rate']) == (0.3, None), 'the backbone was trained on them'
    assert [row['id'] for row in rows] == [row['id'] for row in predicted]
    for row, plain in zip(rows, predicted, strict=True):
        is_known = float(row['score']) >= about['threshold'] - 1e-6
        expected = (plain['predicted'], plain['name']) if is_known else ('-1', 'unknown')
        assert (row['predicted'], row['name']) == expected
        assert row['nearest_1'] == plain['name']
        assert len({row['nearest_1'], row['nearest_2'], row['nearest_3']}) == 3
    known = np.mean([row['predicted'] != '-1' for row in rows])
    assert known == pytest.approx(about['known_accepted']), 'the valid split is predicted here'
    assert 'each left out in turn' in done.stdout
    assert 'photos of others: --TEST_UNKNOWN_ROOT FOLDER' in done.stdout
    page = (folder / f'{STEM}.html').read_text('utf-8')
    assert page.count('unknown product, nearest:') == sum(row['predicted'] == '-1' for row in rows)
    assert not list(folder.glob('*.partial'))
    # Parts are scored as the whole is.
    whole = (folder / f'{STEM}.open_set.csv').read_bytes()
    for part in ('1/2', '2/2', 'merge/2'):
        scripts.run(run_folder, 'test.py', *MODEL, *valid, '--TEST_REJECT_UNKNOWN', 0.3, '--TEST_PART', part)
    assert (folder / f'{STEM}.open_set.csv').read_bytes() == whole
    scripts.run(run_folder, 'test.py', *MODEL, *valid, '--TEST_PART', '1/2')
    plain = (*MODEL, *valid, '--TEST_PART', '2/2', '--TEST_REJECT_UNKNOWN', 0.3)
    scripts.run(run_folder, 'test.py', *plain)
    done = scripts.run(run_folder, 'test.py', *plain[:-4], '--TEST_PART', 'merge/2', code=2)
    assert 'part 2 has another TEST.REJECT_UNKNOWN' in error_line(done)


@pytest.mark.process
@pytest.mark.long
def test_photos_of_unknown_products(scripts, run_folder, valid, others):
    options = (*MODEL, *valid, '--TEST_REJECT_UNKNOWN', 0.1, '--TEST_UNKNOWN_SCORE', 'energy')
    done = scripts.run(run_folder, 'test.py', *options, '--TEST_UNKNOWN_ROOT', others)
    about = json.loads((run_folder / 'log' / 'tiny' / f'{STEM}.open_set.json').read_text())
    assert (about['num_classes'], about['num_images'], about['is_left_out']) == (2, 8, False)
    assert about['guaranteed_rate'] == pytest.approx(0.1 + 1 / 3)
    assert '10.0% would need 9 unknown classes' in done.stdout
    assert about['score'] == 'energy'
    name = rows_of(run_folder / 'log' / 'tiny' / f'{STEM}.csv')[0]['name']
    done = scripts.run(run_folder, 'test.py', *options)
    assert 'since the model was trained\n  on the classes that are left out' in done.stdout
    (others / 'tea').rename(others / name)
    done = scripts.run(run_folder, 'test.py', *options, '--TEST_UNKNOWN_ROOT', others, code=2)
    assert f'the model knows the product {name!r}' in error_line(done)


@pytest.mark.process
def test_prototypes_need_training_images(scripts, run_folder, valid):
    options = (*MODEL, *valid, '--TEST_REJECT_UNKNOWN', 0.1, '--DATASET_TRAIN_JSON', 'none.json')
    line = error_line(scripts.run(run_folder, 'test.py', *options, code=2))
    assert re.search(r'TEST.UNKNOWN_SCORE prototype: .*none.json.*--TEST_UNKNOWN_SCORE max_logit', line)
