"""tools/index.py, and tools/search.py with the catalog, as a user runs them."""

import csv
import json
import shutil

import pytest

from lib.catalog.catalog import open_catalog
from tests.scripts.in_process import run_in_process
from tests.scripts.running import ON_CPU

BEST = ('--RESUME_MODEL', 'log/tiny/best_model.pth', *ON_CPU)


def names_of(products):
    path = products / 'classes.json'
    return json.loads(path.read_text())['names'] if path.exists() else [str(label) for label in range(6)]


def output(folder, *options):
    """Return the lines of a command that succeeds."""
    done = run_in_process(folder, *options)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_catalog_is_built_searched_and_changed(run_folder, products):
    lines = output(run_folder, 'tools/index.py', *BEST)
    assert 'added 51 photos of 6 products' in lines
    assert any(line.startswith('log/tiny/catalog: 51 photos of 6 products, ') for line in lines)

    options = ('--SEARCH_INDEX', 'log/tiny/catalog', '--SEARCH_CSV', 'found.csv', '--SEARCH_K', 3)
    test = ('--DATASET_TEST_JSON', products / 'converted_train.json')
    lines = output(run_folder, 'tools/search.py', *BEST, *options, *test)
    (recall,) = (line for line in lines if 'recall@1' in line)
    plain = output(run_folder, 'tools/search.py', *BEST)
    by_image = next(line for line in plain if line.startswith('over images')).split()
    assert f'recall@1 {by_image[2]}' in recall
    assert 'of the 10 nearest photos by exact search, 100.0% are found (24 queries)' in lines
    with open(run_folder / 'found.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 51
    for row in rows[::3]:  # training images: each is the nearest photo of its product
        assert (row['rank'], row['photo']) == ('1', row['id'])
        assert float(row['cosine']) == pytest.approx(1, abs=1e-3)

    name = names_of(products)[2]
    new = run_folder / 'new' / 'lemonade'
    new.mkdir(parents=True)
    annotations = json.loads((products / 'converted_val.json').read_text())['annotations']
    shutil.copy(products / annotations[0]['fpath'], new / 'front.jpg')
    lines = output(run_folder, 'tools/index.py', *BEST, '--INDEX_REMOVE', name, '--INDEX_ADD', 'new')
    assert any(line.startswith('removed ') and line.endswith(' photos of 1 product') for line in lines)
    assert 'added 1 photo of 1 product' in lines
    assert any(' of 6 products, ' in line for line in lines)
    lines = output(run_folder, 'tools/index.py', *BEST, '--INDEX_ADD', 'new')
    assert 'added 1 photo of 1 product, 1 of them replaced' in lines
    lines = output(run_folder, 'tools/search.py', *BEST, *options, *test)
    assert '  4 images left out: the catalog lacks their products' in lines
    with open(run_folder / 'found.csv', newline='') as file:
        found = {row['product'] for row in csv.DictReader(file)}
    assert 'lemonade' in found
    assert name not in found


def test_whitening_is_stored_in_the_catalog(run_folder):
    options = ('--INDEX_FOLDER', 'white', '--INDEX_DIMENSIONS', 4)
    assert 'float16 codes of 4 dimensions' in ' '.join(output(run_folder, 'tools/index.py', *BEST, *options))
    assert 'photos of 6 products' in ' '.join(output(run_folder, 'tools/index.py', *BEST, *options))
    assert 'recall@1' in ' '.join(output(run_folder, 'tools/search.py', *BEST, '--SEARCH_INDEX', 'white'))
    assert len(list((run_folder / 'white').glob('*.whitening'))) == 1


def test_images_in_quarantine_are_not_in_the_catalog(run_folder, products):
    annotations = json.loads((products / 'converted_train.json').read_text())['annotations']
    listed = [{'fpath': entry['fpath'], 'split': 'train'} for entry in annotations[:5]]
    (run_folder / 'quarantine.json').write_text(json.dumps({'images': listed}))
    options = ('--DATASET_QUARANTINE', 'quarantine.json', '--INDEX_DIMENSIONS', 4)
    assert 'added 46 photos of 6 products' in output(run_folder, 'tools/index.py', *BEST, *options)


MISTAKES = {
    'other settings': (('--INDEX_CODES', 'binary'), 'was built with float16'),
    'no such folder': (('--INDEX_ADD', 'nowhere'), 'no such folder or file'),
    'other preprocessing': (('--INPUT_TEST_SIZE', 48), 'another model or preprocessing'),
}


def mistake(folder, *options):
    """Return the last line of a command that refuses its options."""
    done = run_in_process(folder, *options)
    assert done.returncode == 2, done.stderr
    return done.stderr.splitlines()[-1]


def test_mistakes_are_one_line(run_folder):
    run_in_process(run_folder, 'tools/index.py', *BEST)
    done = run_in_process(run_folder, 'tools/index.py', *BEST, '--INDEX_REMOVE', 'nothing like it')
    assert 'removed 0 photos of 0 products' in done.stdout
    assert "has no product 'nothing like it'" in done.stderr
    names = open_catalog(run_folder / 'log/tiny/catalog').products()
    (run_folder / 'all.txt').write_text('\n'.join(names))
    assert 'removed 51 photos of 6 products' in output(run_folder, 'tools/index.py', *BEST, '--INDEX_REMOVE', 'all.txt')
    done = run_in_process(run_folder, 'tools/index.py', *BEST, '--INDEX_REMOVE', 'all.txt')
    assert 'log/tiny/catalog: 0 photos of 0 products' in done.stdout  # it is not built again
    assert done.stderr.count('has no product') == 1
    assert 'nor 5 others of INDEX.REMOVE' in done.stderr
    assert 'added 51 photos of 6 products' in output(run_folder, 'tools/index.py', *BEST)
    for options, message in MISTAKES.values():
        assert message in mistake(run_folder, 'tools/index.py', *BEST, *options)
    assert 'builds a catalog' in mistake(run_folder, 'tools/search.py', *BEST, '--SEARCH_INDEX', 'nowhere')
