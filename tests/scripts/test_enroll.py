"""tools/enroll.py as a user runs it: the new model is an ordinary checkpoint with the reported metrics."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from lib.catalog.catalog import open_catalog
from lib.trainer.checkpointing.io import read_checkpoint, write_checkpoint
from tests.aliproducts import draw_product
from tests.scripts.running import ON_CPU, contents, error_line

NAMES = ['marmalade', 'tea 2', 'tea 10']
BEST = 'log/tiny/best_model.pth'
OUT = 'log/tiny_enrolled'
FILES = {'best_model.pth', 'enroll.json', 'classes.json', 'converted_val.json', 'config.yaml', 'environment.txt'}


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """Class folders of three new products, seven photos each, one of them damaged."""
    folder = tmp_path_factory.mktemp('photos')
    random = np.random.default_rng(7)
    for label, name in enumerate(NAMES):
        (folder / name).mkdir()
        for number in range(7):
            draw_product(2 * label + 1, 7, 40, random).save(folder / name / f'{number}.jpg', quality=90)
    (folder / 'tea 2' / '7.jpg').write_bytes(b'no photo')
    return folder


def enroll(scripts, folder, photos, *options, code=0):
    command = ('--RESUME_MODEL', BEST, '--ENROLL_IMAGES', photos, '--ENROLL_PER_CLASS', 3, *ON_CPU, *options)
    return scripts.run(folder, 'tools/enroll.py', *command, code=code)


def predicted(scripts, folder, checkpoint, json_file):
    """Return the classes that test.py predicts for the images of an annotation file, (n,), and their labels."""
    scripts.run(folder, 'test.py', '--RESUME_MODEL', checkpoint, '--DATASET_TEST_JSON', json_file, *ON_CPU)
    with open((folder / checkpoint).with_name(f'predictions_{Path(json_file).stem}.csv'), newline='') as file:
        found = np.array([int(row['predicted']) for row in csv.DictReader(file)])
    annotations = json.loads((folder / json_file).read_text())['annotations']
    return found, np.array([entry['category_id'] for entry in annotations])


@pytest.fixture(scope='module')
def enrolled(scripts, finished, photos, tmp_path_factory):
    """A folder with the finished run, and the model with the new products."""
    folder = tmp_path_factory.mktemp('enrolled')
    write_checkpoint(folder / BEST, read_checkpoint(finished / BEST))
    done = enroll(scripts, folder, photos)
    return folder, done


def test_output_and_files(enrolled):
    folder, done = enrolled
    assert {path.name for path in (folder / OUT).iterdir()} == FILES | {'.lock'}
    metrics = json.loads((folder / OUT / 'enroll.json').read_text())
    assert (metrics['num_classes'], metrics['new']['num_shots'], metrics['new']['num_measured']) == (9, 9, 12)
    assert metrics['classes']['tea 2'].keys() == {'shots', 'measured', 'right'}
    assert '3 new classes from 9 images, 9 classes in total' in done.stdout
    for kind in ('old', 'new'):
        assert f'{metrics[kind]["before"]:.1%}' in done.stdout
        assert f'{metrics[kind]["after"]:.1%}' in done.stdout
    assert '1 image cannot be decoded' in done.stderr
    for name in ('best_model.pth', 'enroll.json', 'classes.json', 'converted_val.json'):
        assert f'wrote {OUT}/{name}' in done.stdout


def test_the_checkpoint_has_rows_behind_the_old_ones(enrolled):
    folder, _ = enrolled
    old, new = read_checkpoint(folder / BEST), read_checkpoint(folder / OUT / 'best_model.pth')
    assert new.num_classes == 9
    assert new.training_set.class_names == [*old.training_set.class_names, *NAMES]
    assert new.training_set.class_counts.tolist() == [*old.training_set.class_counts.tolist(), 3, 3, 3]
    assert [*old.training_set.class_parents, [], [], []] == new.training_set.class_parents
    assert new.training_set.digest != old.training_set.digest
    for name, value in old.state_dict.items():
        tensor = new.state_dict[name]
        assert torch.equal(tensor[: len(value)] if name.startswith('classifier.') else tensor, value), name
    assert new.state_dict['classifier.weight'].dtype == torch.float32
    lengths = new.state_dict['classifier.weight'][6:].norm(dim=1)
    torch.testing.assert_close(lengths, lengths[:1].expand(3))


def test_test_py_confirms_the_metrics(scripts, enrolled, products):
    """On the held-out photos of new classes, and on old ones before."""
    folder, _ = enrolled
    metrics = json.loads((folder / OUT / 'enroll.json').read_text())
    found, labels = predicted(scripts, folder, f'{OUT}/best_model.pth', f'{OUT}/converted_val.json')
    assert (len(labels), (labels >= 6).sum()) == (24 + 12, 12)
    for label, name in enumerate(NAMES, start=6):
        assert (found[labels == label] == label).sum() == metrics['classes'][name]['right']
    before, old_labels = predicted(scripts, folder, BEST, products / 'converted_val.json')
    right = [np.mean(before[old_labels == label] == label) for label in range(6)]
    assert metrics['old']['before'] == pytest.approx(np.mean(right))
    assert metrics['old']['num_measured'] == 24


def test_other_scripts_load_the_model(scripts, enrolled, photos, tmp_path):
    folder, _ = enrolled
    model = folder / OUT / 'best_model.pth'
    done = scripts.run(folder, 'tau_norm.py', '--RESUME_MODEL', model, '--TAU_NORM_LOG_ROOT', tmp_path / 'tau', *ON_CPU)
    assert 'best_model.pth: 9 classes' in done.stdout
    # Fine-tuning on two of the new classes and one that is newer still: rows go by name.
    shop = tmp_path / 'shop'
    shop.mkdir()
    for name in NAMES[1:]:
        (shop / name).symlink_to(photos / name)
    (shop / 'cocoa').symlink_to(photos / NAMES[0])
    other_data = ('--DATASET_ROOT', shop, '--DATASET_TRAIN_JSON', '', '--DATASET_VALID_JSON', '')
    options = (*other_data, '--NAME', 'more', '--TRAIN_MAX_EPOCH', 0, *ON_CPU)
    done = scripts.run(tmp_path, 'main.py', '--RESUME_MODEL', model, *options)
    assert 'fine-tuning' in done.stdout
    tuned, before = read_checkpoint(tmp_path / 'log/more/last.pth'), read_checkpoint(model)
    assert tuned.training_set.class_names == ['cocoa', *NAMES[1:]]
    assert torch.equal(tuned.state_dict['classifier.weight'][1:], before.state_dict['classifier.weight'][7:])


@pytest.mark.parametrize('kind', ['FCNorm', 'lws'])
def test_other_classifiers(scripts, run_folder, photos, kind):
    path = run_folder / BEST
    checkpoint = read_checkpoint(path)
    if kind == 'FCNorm':
        del checkpoint.state_dict['classifier.bias']
    else:
        checkpoint.state_dict['classifier.scale'] = torch.linspace(0.7, 1.3, 6)
    write_checkpoint(path, checkpoint)
    enroll(scripts, run_folder, photos, '--MODEL_CLASSIFIER', kind)
    metrics = json.loads((run_folder / OUT / 'enroll.json').read_text())
    found, labels = predicted(scripts, run_folder, f'{OUT}/best_model.pth', f'{OUT}/converted_val.json')
    for label, name in enumerate(NAMES, start=6):
        assert (found[labels == label] == label).sum() == metrics['classes'][name]['right']
    if kind == 'lws':
        scales = read_checkpoint(run_folder / OUT / 'best_model.pth').state_dict['classifier.scale']
        assert scales.tolist() == pytest.approx([0.7, 0.82, 0.94, 1.06, 1.18, 1.3, 1, 1, 1])


def test_annotations_with_names_beside_them(scripts, run_folder, photos):
    """Labels 0 and 4 of five names; the others have no images."""
    entries = [{'category_id': 4 * (name == 'tea 2'), 'fpath': f'{name}/{number}.jpg'}
               for name in ('marmalade', 'tea 2') for number in range(4)]  # fmt: skip
    listed = run_folder / 'listed'
    listed.mkdir()
    for name in NAMES:
        (listed / name).symlink_to(photos / name)
    (listed / 'new.json').write_text(json.dumps({'annotations': entries, 'num_classes': 5}))
    names = ['marmalade', 'no', 'nor', 'neither', 'tea 2']
    (listed / 'classes.json').write_text(json.dumps({'names': names, 'parents': [['Jam'], [], [], [], ['Tea']]}))
    enroll(scripts, run_folder, 'listed/new.json', '--ENROLL_PER_CLASS', 0)
    new = read_checkpoint(run_folder / OUT / 'best_model.pth')
    assert new.training_set.class_names[6:] == ['marmalade', 'tea 2']
    assert new.training_set.class_parents[6:] == [['Jam'], ['Tea']]
    assert new.training_set.class_counts[6:].tolist() == [4, 4]
    metrics = json.loads((run_folder / OUT / 'enroll.json').read_text())
    assert metrics['new'] == {'num_shots': 8, 'num_measured': 0}


def test_without_the_old_images(scripts, run_folder, photos):
    options = ('--DATASET_VALID_JSON', 'gone.json')
    line = error_line(enroll(scripts, run_folder, photos, *options, code=2))
    assert 'gone.json: no such file' in line
    assert '--ENROLL_MAX_LOSS 1 sets no limit' in line
    done = enroll(scripts, run_folder, photos, *options, '--ENROLL_MAX_LOSS', 1)
    assert 'old classes is neither limited nor measured' in done.stderr
    assert 'old classes  ' not in done.stdout
    assert read_checkpoint(run_folder / OUT / 'best_model.pth').num_classes == 9


def test_known_and_retired_classes(scripts, run_folder, photos, tmp_path):
    """Rows of a class with further photos move, those of a retired one go; test.py confirms the metrics."""
    old = read_checkpoint(run_folder / BEST)
    names = old.training_set.class_names
    mixed = tmp_path / 'mixed'
    mixed.mkdir()
    (mixed / 'marmalade').symlink_to(photos / 'marmalade')
    (mixed / names[3]).symlink_to(photos / 'tea 10')
    (mixed / names[1]).symlink_to(photos / 'tea 2')  # that class is retired, so this is a new one of the same name
    done = enroll(scripts, run_folder, mixed, '--ENROLL_RETIRE', f'{names[1]},{names[4]}', '--ENROLL_MAX_LOSS', 0.5)
    assert (
        '2 new classes from 6 images, 1 known class from 3 images, 2 classes retired, 6 classes in total' in done.stdout
    )
    new = read_checkpoint(run_folder / OUT / 'best_model.pth')
    kept = [0, 2, 3, 5]
    added = sorted(['marmalade', names[1]])
    assert new.training_set.class_names == [*(names[label] for label in kept), *added]
    counts = old.training_set.class_counts[kept]
    counts[2] += 3
    assert new.training_set.class_counts.tolist() == [*counts, 3, 3]
    assert new.training_set.class_parents[:4] == [old.training_set.class_parents[label] for label in kept]
    for name in ('classifier.weight', 'classifier.bias'):
        rows, before = new.state_dict[name], old.state_dict[name][kept]
        assert torch.equal(rows[[0, 1, 3]], before[[0, 1, 3]])
    metrics = json.loads((run_folder / OUT / 'enroll.json').read_text())
    assert metrics['retired'] == [names[1], names[4]]
    assert (metrics['old']['num_measured'], metrics['known']['num_measured']) == (16, 4)
    moved = not torch.equal(new.state_dict['classifier.weight'][2], old.state_dict['classifier.weight'][3])
    assert moved == (metrics['known']['strength'] > 0)
    found, labels = predicted(scripts, run_folder, f'{OUT}/best_model.pth', f'{OUT}/converted_val.json')
    assert np.bincount(labels).tolist() == [4, 4, 8, 4, 4, 4]
    for label, name in enumerate(added, start=4):
        assert (found[labels == label] == label).sum() == metrics['classes'][name]['right']
    held = np.flatnonzero(labels == 2)[4:]
    assert (found[held] == 2).sum() == metrics['classes'][names[3]]['right']


@pytest.mark.slow
def test_only_retiring(scripts, run_folder, tmp_path):
    old = read_checkpoint(run_folder / BEST)
    names = old.training_set.class_names
    (tmp_path / 'gone.txt').write_text(f'{names[0]}\n\n{names[5]}\n')
    command = ('tools/enroll.py', '--RESUME_MODEL', BEST, '--ENROLL_RETIRE', tmp_path / 'gone.txt', *ON_CPU)
    done = scripts.run(run_folder, *command)
    assert '2 classes retired, 4 classes in total' in done.stdout
    new = read_checkpoint(run_folder / OUT / 'best_model.pth')
    for name, value in old.state_dict.items():
        assert torch.equal(new.state_dict[name], value[1:5] if name.startswith('classifier.') else value), name
    found, labels = predicted(scripts, run_folder, f'{OUT}/best_model.pth', f'{OUT}/converted_val.json')
    metrics = json.loads((run_folder / OUT / 'enroll.json').read_text())
    right = [np.mean(found[labels == label] == label) for label in range(4)]
    assert metrics['old']['after'] == pytest.approx(np.mean(right))
    assert metrics['old']['after'] >= metrics['old']['before']


def test_clusters_of_unknown_photos_become_classes(scripts, run_folder, photos):
    """The page proposes clusters, and its decisions are enrolled."""
    proposed = scripts.run(run_folder, 'tools/enroll.py', '--RESUME_MODEL', BEST, '--ENROLL_PROPOSE', photos, *ON_CPU)
    assert '21 photos: ' in proposed.stdout
    assert 'wrote log/tiny/proposals.html' in proposed.stdout
    text = (run_folder / 'log/tiny/proposals.html').read_text()
    content = json.loads(re.search(r'id="review-data">(.*?)</script>', text, re.DOTALL)[1])
    sizes = list(content['clusterSizes'].values())
    assert len(content['fpaths']) == 21
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) == content['kinds'].count('new_class')
    first = [row for row, proposals in enumerate(content['proposals']) if proposals[0] == 6]
    assert len(first) == sizes[0]
    decisions = [
        {'fpath': content['fpaths'][row], 'action': 'relabel', 'label': '', 'to': 'cocoa', 'by': 'review'}
        for row in first
    ]
    (run_folder / 'decisions.json').write_text(json.dumps({'split': 'unlabeled', 'decisions': decisions}))
    enroll(scripts, run_folder, 'decisions.json')
    # Of the photos of a prediction, those that it has rejected.
    names = [f'{name}/{number}.jpg' for name in NAMES for number in range(7)]
    rows = [f'{name},-1,{"unknown" if name.startswith("tea 10") else "x"},0.1\n' for name in names]
    (run_folder / 'found.csv').write_text(''.join(['id,predicted,name,score\n', *rows]))
    options = ('--ENROLL_PROPOSE', 'found.csv', '--TEST_IMAGES', photos)
    proposed = scripts.run(run_folder, 'tools/enroll.py', '--RESUME_MODEL', BEST, *options, *ON_CPU)
    assert '7 photos: ' in proposed.stdout
    assert read_checkpoint(run_folder / OUT / 'best_model.pth').training_set.class_names[6:] == ['cocoa']


def test_the_catalog_changes_with_the_model(scripts, run_folder, photos):
    catalog = open_products(scripts, run_folder)
    names = catalog.products()
    enroll(scripts, run_folder, photos, '--ENROLL_INDEX', 'catalog', '--ENROLL_RETIRE', names[1])
    catalog.refresh()
    assert catalog.products() == sorted([*names[:1], *names[2:], *NAMES])
    assert len(catalog.images_of(NAMES[0])) == 3


def open_products(scripts, folder):
    """Build a catalog of the training images, and open it."""
    command = ('tools/index.py', '--RESUME_MODEL', BEST, '--INDEX_FOLDER', 'catalog', *ON_CPU)
    scripts.run(folder, *command)
    return open_catalog(folder / 'catalog')


def test_nothing_is_overwritten_silently(scripts, enrolled, photos):
    folder, _ = enrolled
    before = contents(folder)
    line = error_line(enroll(scripts, folder, photos, code=2))
    assert f'{OUT} exists already: --OVERWRITE True' in line
    line = error_line(enroll(scripts, folder, photos, '--ENROLL_OUT', 'log/tiny', '--OVERWRITE', True, code=2))
    assert 'ENROLL.OUT log/tiny holds RESUME_MODEL' in line
    assert contents(folder) == before


def test_overwrite_renames_the_old_folder(scripts, run_folder, photos):
    enroll(scripts, run_folder, photos)
    before = contents(run_folder / OUT)
    done = enroll(scripts, run_folder, photos, '--OVERWRITE', True, '--ENROLL_PER_CLASS', 2)
    assert f'renamed the earlier result to {OUT}_old' in done.stdout
    assert contents(run_folder / f'{OUT}_old') == before
    assert json.loads((run_folder / OUT / 'enroll.json').read_text())['new']['num_shots'] == 6


def test_mistakes(scripts, run_folder, photos):
    before = contents(run_folder)
    beside = run_folder.parent / run_folder.name
    target = Path(f'{beside}_unreadable/x')
    target.mkdir(parents=True)
    (target / '0.jpg').write_bytes(b'no photo')
    Path(f'{beside}_all.txt').write_text('\n'.join(read_checkpoint(run_folder / BEST).training_set.class_names))
    line = error_line(scripts.run(run_folder, 'tools/enroll.py', '--RESUME_MODEL', BEST, *ON_CPU, code=2))
    assert 'ENROLL.IMAGES is empty: --ENROLL_IMAGES FOLDER' in line
    for source, words in (
        ('nowhere', 'ENROLL.IMAGES nowhere: no such folder or file'),
        (f'{beside}_unreadable', "no image of 'x' can be decoded"),
        (f'{beside}_unreadable/x', 'no class folders'),
    ):
        assert words in error_line(enroll(scripts, run_folder, source, code=2))
    for names, words in (
        ('sku-9', "the model has no class 'sku-9'"),
        (f'{beside}_all.txt', 'names all classes of the model'),
        ('none.txt', 'ENROLL.RETIRE none.txt: no such file'),
    ):
        command = ('tools/enroll.py', '--RESUME_MODEL', BEST, '--ENROLL_RETIRE', names, *ON_CPU)
        assert words in error_line(scripts.run(run_folder, *command, code=2))
    line = error_line(scripts.run(run_folder, 'tools/enroll.py', *ON_CPU, '--ENROLL_IMAGES', photos, code=2))
    assert 'needs a trained model' in line
    assert contents(run_folder) == before
