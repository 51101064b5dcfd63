"""Options of test.py: several views and models, photos from anywhere, products, abstention, embeddings."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from lib.trainer.checkpointing.io import read_checkpoint, write_checkpoint
from tests.scripts.running import ON_CPU, contents, error_line

MODEL = ('--RESUME_MODEL', 'log/tiny/best_model.pth', *ON_CPU)


def rows_of(path):
    with open(path, encoding='utf-8', newline='') as file:
        return list(csv.reader(file))[1:]


@pytest.fixture(scope='module')
def valid(products):
    return ('--DATASET_TEST_JSON', products / 'converted_val.json')


@pytest.fixture
def other_model(run_folder):
    """A second run's checkpoint: that of the first with another classifier, at another image size."""
    checkpoint = read_checkpoint(run_folder / 'log' / 'tiny' / 'best_model.pth')
    weight = checkpoint.state_dict['classifier.weight']
    checkpoint.state_dict['classifier.weight'] = weight.flip(0).contiguous()
    checkpoint.config += '\nINPUT:\n  TEST_SIZE: 40\n' if 'INPUT:' not in checkpoint.config else ''
    checkpoint.config = checkpoint.config.replace('TEST_SIZE: 0', 'TEST_SIZE: 40')
    write_checkpoint(run_folder / 'other.pth', checkpoint)
    return 'other.pth'


def test_a_model_with_itself_is_that_model(scripts, run_folder, valid):
    scripts.run(run_folder, 'test.py', *MODEL, *valid)
    folder = run_folder / 'log' / 'tiny'
    alone = contents(folder)
    for average in ('logits', 'probabilities'):
        options = ('--TEST_ENSEMBLE', './log/tiny/best_model.pth', '--TEST_AVERAGE', average)
        done = scripts.run(run_folder, 'test.py', *MODEL, *valid, *options)
        ensemble = 'predictions_converted_val.ensemble.csv'
        if average == 'probabilities':
            ensemble = 'predictions_converted_val_2.ensemble.csv'
        assert contents(folder)[ensemble] == alone['predictions_converted_val.csv']
        assert 'does not lower the mean class error of one model, one view' in done.stdout


def test_views_and_models(scripts, run_folder, valid, other_model):
    options = ('--TEST_ENSEMBLE', other_model, '--TEST_CROPS', 'ten', '--TEST_SCALES', '1.0,1.25', '--TEST_TOP_K', 3)
    done = scripts.run(run_folder, 'test.py', *MODEL, *valid, *options, '--TEST_EMBEDDINGS', True)
    folder = run_folder / 'log' / 'tiny'
    found = json.loads((folder / 'predictions_converted_val.ten.scales.ensemble.metrics.json').read_text())
    assert {'top1', 'plain'} <= found.keys()
    assert 'average' in done.stdout
    assert '2 models, weights 0.50, 0.50' in done.stdout
    scripts.run(run_folder, 'test.py', *MODEL, *valid)
    plain = json.loads((folder / 'predictions_converted_val.metrics.json').read_text())
    assert found['plain'] == {name: value for name, value in plain.items() if name in found['plain']}
    whole = scripts.run(run_folder, 'test.py', *MODEL, *valid, '--TEST_CROPS', 'whole')
    assert 'one model, one view' in whole.stdout
    whole_metrics = json.loads((folder / 'predictions_converted_val.whole.metrics.json').read_text())
    assert whole_metrics['plain']['top1'] == plain['top1']
    assert not list(folder.glob('*.partial'))


def test_weights(scripts, run_folder, valid, other_model):
    options = (*MODEL, *valid, '--TEST_ENSEMBLE', other_model)
    scripts.run(run_folder, 'test.py', *MODEL, *valid)
    alone = (run_folder / 'log' / 'tiny' / 'predictions_converted_val.csv').read_text()
    scripts.run(run_folder, 'test.py', *options, '--TEST_ENSEMBLE_WEIGHTS', '2,0')
    assert (run_folder / 'log' / 'tiny' / 'predictions_converted_val.ensemble.csv').read_text() == alone
    fitted = ('--TEST_ENSEMBLE_WEIGHTS', 'valid', '--TEST_AVERAGE', 'probabilities')
    done = scripts.run(run_folder, 'test.py', *options, *fitted)
    assert 'fitted on the predicted images' in done.stderr
    for wrong, words in (('1', '2 numbers'), ('a,b', '2 numbers'), ('1,-2', '2 numbers'), ('valid', 'probabilities')):
        line = error_line(scripts.run(run_folder, 'test.py', *options, '--TEST_ENSEMBLE_WEIGHTS', wrong, code=2))
        assert words in line


def test_models_of_other_classes_are_an_error(scripts, run_folder, valid, other_model):
    checkpoint = read_checkpoint(run_folder / other_model)
    checkpoint.training_set.class_names[0] = 'something else'
    write_checkpoint(run_folder / other_model, checkpoint)
    options = ('--TEST_ENSEMBLE', other_model)
    assert 'name by name' in error_line(scripts.run(run_folder, 'test.py', *MODEL, *valid, *options, code=2))


def test_a_photo_a_folder_and_a_list(scripts, run_folder, products):
    photo = products / json.loads((products / 'converted_val.json').read_text())['annotations'][0]['fpath']
    done = scripts.run(run_folder, 'test.py', *MODEL, '--TEST_IMAGES', photo)
    folder = run_folder / 'log' / 'tiny'
    ((name, label, product, probability),) = rows_of(folder / f'predictions_{photo.stem}.csv')
    assert name == str(photo)
    assert f'{photo}: ' in done.stdout
    (run_folder / 'photos').mkdir()
    shutil.copy(photo, run_folder / 'photos' / 'b.jpg')
    (run_folder / 'photos' / 'a.jpg').write_bytes(b'no photo')
    scripts.run(run_folder, 'test.py', *MODEL, '--TEST_IMAGES', 'photos')
    unreadable = ['a.jpg', '-1', '', '']
    assert rows_of(folder / 'predictions_photos.csv') == [unreadable, ['b.jpg', label, product, probability]]
    line = error_line(scripts.run(run_folder, 'test.py', *MODEL, '--TEST_IMAGES', 'nothing', code=2))
    assert 'TEST.IMAGES nothing: no such photo, folder or list of paths' in line


def test_products_have_one_row(scripts, run_folder, valid, products):
    scripts.run(run_folder, 'test.py', *MODEL, *valid, '--TEST_PRODUCTS', 'folder', '--TEST_TOP_K', 6)
    folder = run_folder / 'log' / 'tiny'
    top = rows_of(folder / 'predictions_converted_val.top6.csv')
    sums: dict[str, dict[int, float]] = {}
    for image, _, label, probability, _ in top:
        of_product = sums.setdefault(image.rpartition('/')[0], {})
        of_product[int(label)] = of_product.get(int(label), 0) + float(probability)
    found = {
        row[0]: (int(row[1]), float(row[2]), int(row[4]))
        for row in rows_of(folder / 'predictions_converted_val.products.csv')
    }
    assert found.keys() == sums.keys()
    for product, (label, probability, count) in found.items():
        assert sums[product][label] == pytest.approx(max(sums[product].values()), abs=1e-5)
        assert count == 4
        assert probability == pytest.approx(sums[product][label] / 4, abs=1e-5)
    (run_folder / 'products.csv').write_text('id,product\nx.jpg,1\n')
    options = ('--TEST_PRODUCTS', 'products.csv')
    assert 'no product is given for' in error_line(scripts.run(run_folder, 'test.py', *MODEL, *valid, *options, code=2))


def test_abstention_below_the_threshold(scripts, run_folder, valid, products):
    done = scripts.run(run_folder, 'test.py', *MODEL, *valid, '--TEST_ABSTAIN_ERROR', 0.9)
    folder = run_folder / 'log' / 'tiny'
    found = json.loads((folder / 'predictions_converted_val.risk_coverage.json').read_text())
    accepted = rows_of(folder / 'predictions_converted_val.answered.csv')
    assert len(accepted) == len(rows_of(folder / 'predictions_converted_val.csv'))
    coverage = np.mean([int(row[1]) >= 0 for row in accepted])
    assert coverage == pytest.approx(found['coverage']), 'the valid split is predicted here'
    assert all((float(row[2]) >= found['threshold'] - 1e-6) == (int(row[1]) >= 0) for row in accepted)
    assert 'threshold: probability' in done.stdout
    done = scripts.run(run_folder, 'test.py', *MODEL, *valid, '--TEST_ABSTAIN_ERROR', 1e-6)
    assert 'all images abstain' in done.stdout
    refused = rows_of(folder / 'predictions_converted_val.answered.csv')
    assert all(row[1] == '-1' for row in refused)
    # These are listed on a page that asks for their classes.
    page = (folder / 'predictions_converted_val.review.html').read_text('utf-8')
    content = json.loads(re.search(r'id="review-data">(.*?)</script>', page, re.DOTALL)[1])
    assert content['split'] == 'unlabeled'
    assert [Path(fpath).is_file() for fpath in content['fpaths']] == [True] * len(refused)
    assert sorted(content['fpaths']) == sorted(str(products / row[0]) for row in refused)
    by_path = {str(products / row[0]): row for row in rows_of(folder / 'predictions_converted_val.csv')}
    assert [classes[0] for classes in content['proposals']] == [int(by_path[path][1]) for path in content['fpaths']]
    certainty = [classes[0] for classes in content['probabilities']]
    assert certainty == sorted(certainty), 'the least certain first'


def test_embeddings_as_parquet(scripts, run_folder, valid):
    scripts.run(run_folder, 'test.py', *MODEL, *valid, '--TEST_EMBEDDINGS', True)
    options = ('--TEST_EMBEDDINGS', True, '--TEST_EMBEDDINGS_FORMAT', 'parquet')
    scripts.run(run_folder, 'test.py', *MODEL, *valid, *options)
    folder = run_folder / 'log' / 'tiny'
    table = pq.read_table(folder / 'predictions_converted_val.features.parquet')
    assert table['id'].to_pylist() == [row[0] for row in rows_of(folder / 'predictions_converted_val.csv')]
    expected = np.load(folder / 'predictions_converted_val.features.npy')
    assert np.array_equal(np.stack(table['embedding'].to_pylist()).astype(np.float32), expected)
