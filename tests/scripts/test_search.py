"""tools/search.py as a user runs it."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from tests.scripts.in_process import run_in_process
from tests.scripts.running import ON_CPU, contents, error_line, selected_metrics

BEST = ('--RESUME_MODEL', 'log/tiny/best_model.pth')


def embeddings(scripts, folder, json_file):
    """Return the features that test.py writes for the images of an annotation file."""
    scripts.run(folder, 'test.py', *BEST, '--DATASET_TEST_JSON', json_file, '--TEST_EMBEDDINGS', True, *ON_CPU)
    return np.load(folder / f'log/tiny/predictions_{Path(json_file).stem}.features.npy').astype(float)


def cell(lines, row, column):
    """Return the cell of a table below the word `column`, in the row that starts with `row`."""
    number = next(index for index, line in enumerate(lines) if line.startswith(row))
    heads = next(line for line in lines[number - 1 :: -1] if column in line)
    end = heads.index(column) + len(column)
    return lines[number][:end].split()[-1]


def test_metrics_agree_with_the_features(scripts, run_folder, products):
    before = contents(run_folder / 'log')
    done = scripts.run(run_folder, 'tools/search.py', *BEST, '--SEARCH_K', 3, *ON_CPU)
    assert contents(run_folder / 'log') == before
    lines = done.stdout.splitlines()
    train, valid = (embeddings(scripts, run_folder, products / f'converted_{name}.json') for name in ('train', 'val'))
    labels, known = (
        np.array([entry['category_id'] for entry in json.loads(path.read_text())['annotations']])
        for path in (products / 'converted_train.json', products / 'converted_val.json')
    )
    similar = valid @ train.T / np.linalg.norm(valid, axis=1)[:, None] / np.linalg.norm(train, axis=1)
    order = np.argsort(-similar, axis=1, kind='stable')
    recall = np.mean(labels[order[:, 0]] == known)
    assert cell(lines, 'over images', 'recall@1') == f'{recall:.1%}'
    precision = np.mean([
        np.mean(labels[order[row, : (labels == label).sum()]] == label) for row, label in enumerate(known)
    ])  # fmt: skip
    assert cell(lines, 'over images', 'r_precision') == f'{precision:.1%}'
    votes = np.array([np.bincount(labels[order[row, :3]], minlength=6).argmax() for row in range(len(known))])
    errors = [np.mean(votes[known == label] != label) for label in range(6)]
    assert cell(lines, '3 nearest', 'mean class error') == f'{np.mean(errors):.1%}'
    error = selected_metrics(run_folder / 'log' / 'tiny')['mean_class_error']
    assert cell(lines, 'classifier', 'mean class error') == f'{error:.1%}'


def test_nearest_images_of_each_test_image(scripts, run_folder, products):
    options = ('--SEARCH_CSV', 'found/near.csv', '--SEARCH_K', 2, '--SEARCH_METRIC', 'euclidean')
    done = scripts.run(run_folder, 'tools/search.py', *BEST, *options, '--DATASET_TEST_JSON',
                       products / 'converted_train.json', *ON_CPU)  # fmt: skip
    assert 'wrote found/near.csv' in done.stdout
    with open(run_folder / 'found' / 'near.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 51
    for row in rows[::2]:
        # Training images among themselves: each is its own nearest.
        assert (row['rank'], row['neighbour'], float(row['distance'])) == ('1', row['id'], 0)
    assert {row['rank'] for row in rows[1::2]} == {'2'}


@pytest.mark.parametrize('vote', ['majority', 'similarity'])
def test_valid_images_among_themselves(scripts, run_folder, vote):
    done = scripts.run(
        run_folder, 'tools/search.py', *BEST, '--SEARCH_GALLERY', 'valid', '--SEARCH_VOTE', vote, *ON_CPU
    )
    assert '24 images of ' in done.stdout
    assert 'each without itself' in done.stdout
    assert '10 nearest' in done.stdout


@pytest.mark.parametrize('rerank', ['query_expansion', 'reciprocal'])
@pytest.mark.parametrize('gallery', ['train', 'valid'])
def test_whitened_and_reranked_results_stand_beside_the_plain_ones(scripts, run_folder, products, gallery, rerank):
    plain = scripts.run(run_folder, 'tools/search.py', *BEST, '--SEARCH_GALLERY', gallery, *ON_CPU).stdout.splitlines()
    options = ('--SEARCH_WHITEN', True, '--SEARCH_RERANK', rerank, '--SEARCH_CSV', f'{rerank}.csv', '--SEARCH_K', 3)
    done = scripts.run(run_folder, 'tools/search.py', *BEST, '--SEARCH_GALLERY', gallery, *options,
                       '--DATASET_TEST_JSON', products / 'converted_val.json', *ON_CPU)  # fmt: skip
    lines = done.stdout.splitlines()
    for over in ('over images', 'over classes'):
        assert cell(lines, f'features {over}', 'map@r') == cell(plain, over, 'map@r')
        assert {cell(lines, f'{name} {over}', 'map@r')[-1] for name in ('whitened', rerank)} == {'%'}
    rows = list(csv.DictReader((run_folder / f'{rerank}.csv').open(newline='')))
    assert len(rows) == 3 * 24
    assert {row['rank'] for row in rows} == {'1', '2', '3'}


@pytest.mark.process
def test_without_a_test_split_the_metrics_are_printed_and_no_neighbors_are_listed(run_folder, products):
    untested = run_folder / 'untested'
    untested.mkdir()
    for entry in products.iterdir():
        if 'test' not in entry.name:
            (untested / entry.name).symlink_to(entry)
    options = (*BEST, '--DATASET_ROOT', 'untested', '--SEARCH_CSV', 'near.csv', *ON_CPU)
    done = run_in_process(run_folder, 'tools/search.py', *options)
    assert (done.returncode, done.stderr) == (0, '')
    lines = done.stdout.splitlines()
    assert cell(lines, 'over images', 'recall@1').endswith('%')
    assert lines[-2:] == [
        'near.csv is not written: there is no test split',
        '  --DATASET_TEST_ROOT FOLDER lists the neighbors of the images in a folder',
    ]
    assert not (run_folder / 'near.csv').exists()
    # A folder that is named must exist, but the metrics come first.
    done = run_in_process(run_folder, 'tools/search.py', *options, '--DATASET_TEST_ROOT', 'gone')
    assert 'no test images: gone' in error_line(done)
    assert cell(done.stdout.splitlines(), 'over images', 'recall@1').endswith('%')


@pytest.mark.process
def test_quarantined_images_are_not_searched(run_folder, products):
    annotations = json.loads((products / 'converted_train.json').read_text())['annotations']
    listed = [{'fpath': entry['fpath'], 'split': 'train'} for entry in annotations[:40]]
    (run_folder / 'quarantine.json').write_text(json.dumps({'images': listed}))
    options = ('--DATASET_QUARANTINE', 'quarantine.json', '--SEARCH_CSV', 'near.csv', '--DATASET_TEST_JSON')
    done = run_in_process(run_folder, 'tools/search.py', *BEST, *options, products / 'converted_train.json', *ON_CPU)
    assert done.returncode == 0, done.stderr
    assert f' among {len(annotations) - 40} of ' in done.stdout
    with open(run_folder / 'near.csv', newline='') as file:
        found = {row['neighbour'] for row in csv.DictReader(file)}
    assert found == {entry['fpath'] for entry in annotations[40:]}


@pytest.mark.process
def test_a_gallery_of_one_image(run_folder, products):
    annotations = json.loads((products / 'converted_val.json').read_text())
    (run_folder / 'one.json').write_text(json.dumps({**annotations, 'annotations': annotations['annotations'][:1]}))
    options = ('--DATASET_VALID_JSON', 'one.json', '--DATASET_ROOT', products, *ON_CPU)
    done = run_in_process(run_folder, 'tools/search.py', *BEST, *options, '--SEARCH_GALLERY', 'valid')
    assert error_line(done).endswith('SEARCH.GALLERY valid: 1 image to search, but at least 2 are needed')
    done = run_in_process(run_folder, 'tools/search.py', *BEST, *options)
    assert done.returncode == 0
    assert '1 image of one.json among ' in done.stdout


def test_mistakes(scripts, run_folder):
    def line(*options):
        return error_line(scripts.run(run_folder, 'tools/search.py', *BEST, *ON_CPU, *options, code=2))

    assert 'SEARCH.TEMPERATURE is 0.1, but SEARCH.VOTE majority does not use it' in line('--SEARCH_TEMPERATURE', 0.1)
    assert 'one of cosine, euclidean' in line('--SEARCH_METRIC', 'manhattan')
    assert 'gone.json: no such file' in line('--DATASET_VALID_JSON', 'gone.json')
    assert 'needs a trained model' in error_line(scripts.run(run_folder, 'tools/search.py', code=2))
