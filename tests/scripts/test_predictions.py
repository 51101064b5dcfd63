"""Files of test.py beside the predicted classes, and the summary of a run."""

import csv
import json

import numpy as np
from PIL import Image

from tests.scripts.running import ON_CPU


def _rows(path):
    with open(path, encoding='utf-8', newline='') as file:
        return list(csv.reader(file))


def test_top_k_and_embeddings(scripts, products, run_folder):
    best = 'log/tiny/best_model.pth'
    options = ('--DATASET_TEST_JSON', products / 'converted_val.json', '--TEST_TOP_K', 3, '--TEST_EMBEDDINGS', 'True')
    scripts.run(run_folder, 'test.py', '--RESUME_MODEL', best, *options, *ON_CPU)
    folder = run_folder / 'log' / 'tiny'
    annotations = json.loads((products / 'converted_val.json').read_text())['annotations']
    names = json.loads((products / 'classes.json').read_text())['names']

    header, *predicted = _rows(folder / 'predictions_converted_val.csv')
    assert header == ['id', 'predicted', 'name', 'probability']
    assert [row[0] for row in predicted] == [entry['fpath'] for entry in annotations], 'in input order'

    header, *top = _rows(folder / 'predictions_converted_val.top3.csv')
    assert header == ['id', 'rank', 'category_id', 'probability', 'name']
    assert len(top) == 3 * len(annotations)
    for image, first in enumerate(range(0, len(top), 3)):
        group = top[first : first + 3]
        assert [row[0] for row in group] == [predicted[image][0]] * 3
        assert [row[1] for row in group] == ['1', '2', '3']
        assert [group[0][column] for column in (0, 2, 4, 3)] == predicted[image], 'the first is the prediction'
        probabilities = [float(row[3]) for row in group]
        assert probabilities == sorted(probabilities, reverse=True)
        assert 0 < sum(probabilities) <= 1 + 1e-5
        assert all(row[4] == names[int(row[2])] for row in group)

    features = np.load(folder / 'predictions_converted_val.features.npy', allow_pickle=False)
    assert features.dtype == np.float32
    assert features.shape[0] == len(annotations)
    assert np.isfinite(features).all()

    right = [int(row[1]) == entry['category_id'] for row, entry in zip(predicted, annotations, strict=True)]
    metrics = json.loads((folder / 'predictions_converted_val.metrics.json').read_text())
    assert metrics['top1'] == sum(right) / len(right)
    assert metrics['num_images'] == len(right)


def test_an_unreadable_image_has_a_row_and_features_of_zeros(scripts, products, run_folder):
    photos = run_folder / 'photos'
    photos.mkdir()
    good = json.loads((products / 'converted_val.json').read_text())['annotations'][0]['fpath']
    (photos / 'a.jpg').write_bytes((products / good).read_bytes())
    (photos / 'b.jpg').write_bytes(b'not a photo')
    options = ('--DATASET_TEST_ROOT', photos, '--TEST_TOP_K', 2, '--TEST_EMBEDDINGS', 'True')
    scripts.run(run_folder, 'test.py', '--RESUME_MODEL', 'log/tiny/best_model.pth', *options, *ON_CPU)
    folder = run_folder / 'log' / 'tiny'
    _, first, second = _rows(folder / 'predictions_photos.csv')
    assert first[0] == 'a.jpg'
    assert int(first[1]) >= 0
    assert second == ['b.jpg', '-1', '', '']
    assert [row[0] for row in _rows(folder / 'predictions_photos.top2.csv')[1:]] == ['a.jpg', 'a.jpg']
    features = np.load(folder / 'predictions_photos.features.npy', allow_pickle=False)
    assert features[0].any()
    assert not features[1].any()
    assert [row[:2] for row in _rows(folder / 'bad_images.csv')[1:]] == [['predictions_photos', 'b.jpg']]


def test_summary_lists_every_result(scripts, products, run_folder):
    valid_only = scripts.run(run_folder, 'tools/summary.py', '--NAME', 'tiny').stdout
    assert 'valid' in valid_only
    assert 'test' not in valid_only.replace('best', '')
    options = ('--RESUME_MODEL', 'log/tiny/best_model.pth', *ON_CPU)
    scripts.run(run_folder, 'test.py', *options, '--DATASET_TEST_JSON', products / 'converted_val.json')
    scripts.run(run_folder, 'tau_norm.py', *options)
    both = scripts.run(run_folder, 'tools/summary.py', '--NAME', 'tiny').stdout
    found = json.loads((run_folder / 'log' / 'tiny' / 'predictions_converted_val.metrics.json').read_text())
    line = next(line for line in both.splitlines() if line.startswith('converted_val '))
    assert f'{found["mean_class_error"]:.1%}' in line
    assert 'valid, tau' in both
    assert 'log_tau/tiny/best_model.pth' in both


def test_summary_of_no_run_is_an_error(scripts, tmp_path):
    done = scripts.run(tmp_path, 'tools/summary.py', '--NAME', 'nothing', code=2)
    assert done.stderr.startswith('error: log/nothing holds no run')


def test_flip_averages_an_image_and_its_mirror_image(scripts, run_folder):
    """A photo and its mirror image: with TEST.FLIP both have the mean of their features without it."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    for name, image in (('a', pixels), ('b', pixels[:, ::-1])):
        (run_folder / 'photos').mkdir(exist_ok=True)
        Image.fromarray(image).save(run_folder / 'photos' / f'{name}.png')
    folder = run_folder / 'log' / 'tiny'
    # The pixels reach the model unchanged: nothing is resized or cropped.
    options = ('--DATASET_TEST_ROOT', 'photos', '--TEST_EMBEDDINGS', 'True', '--INPUT_CROP_RATIO', 1.0)
    features = {}
    for flip in (False, True):
        model = ('--RESUME_MODEL', 'log/tiny/best_model.pth', '--TEST_FLIP', flip)
        scripts.run(run_folder, 'test.py', *model, *options, *ON_CPU)
        name = 'predictions_photos.flip' if flip else 'predictions_photos'
        features[flip] = np.load(folder / f'{name}.features.npy', allow_pickle=False)
    assert np.abs(features[False][0] - features[False][1]).max() > 1e-3
    for row in (0, 1):
        np.testing.assert_allclose(features[True][row], features[False].mean(axis=0), rtol=1e-5, atol=1e-6)
