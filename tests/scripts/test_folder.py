"""A folder of photos alone: training, prediction, and files that are not images."""

import csv
import json
import os

import numpy as np
import pytest

from lib.trainer.checkpointing.io import read_checkpoint
from tests.aliproducts import draw_product
from tests.scripts.running import ON_CPU, contents, error_line, metrics_of

# Such a folder uses configs/own_photos.yaml; these options make it small.
TINY = ('--MODEL_BACKBONE', 'test_resnet', '--INPUT_SIZE', 32, '--TRAIN_MAX_EPOCH', 2, '--TRAIN_BATCH_SIZE', 8)
TINY += ON_CPU
NAMES = ['apple', 'bread', 'kiwi 2', 'kiwi 10']


@pytest.fixture
def photos(tmp_path):
    """Create my_photos with four class folders: three of eight images, one of a single image."""
    random = np.random.default_rng(5)
    for label, name in enumerate(NAMES):
        folder = tmp_path / 'my_photos' / name
        folder.mkdir(parents=True)
        for number in range(8 if label < 3 else 1):
            draw_product(label, 4, 40, random).save(folder / f'{number}.jpg', quality=90)
    return tmp_path / 'my_photos'


def bad_images(run):
    with open(run / 'bad_images.csv', newline='') as file:
        return [(row['split'], row['image']) for row in csv.DictReader(file)]


def test_train_and_predict(scripts, photos, tmp_path):
    before = contents(photos)
    done = scripts.run(tmp_path, 'main.py', '--DATASET_ROOT', 'my_photos', *TINY, report=True)
    assert 'configs/own_photos.yaml is used' in done.stdout
    assert '4 classes, one per folder\n22 images for training, 3 for validation' in done.stdout
    run = tmp_path / 'log' / 'my_photos'
    assert (run / 'report.html').stat().st_size > 10_000
    expected = {
        'config.yaml',
        'environment.txt',
        'log.txt',
        'metrics.jsonl',
        'last.pth',
        'best_model.pth',
        'classes.json',
    }
    assert expected <= {path.name for path in run.iterdir()}
    assert '4 classes, one per folder' in (run / 'log.txt').read_text()
    assert read_checkpoint(run / 'best_model.pth').training_set.class_names == NAMES

    new = tmp_path / 'new'
    (new / 'deeper').mkdir(parents=True)
    random = np.random.default_rng(6)
    for name in ('b 2.png', 'b 10.png', 'deeper/a.jpg'):
        draw_product(1, 4, 40, random).save(new / name)
    (new / 'b 3.png').write_bytes((new / 'b 2.png').read_bytes()[:200])
    (new / 'notes.txt').write_text('not an image')
    with open(os.path.join(os.fsencode(new), b'caf\xe9.png'), 'wb') as file:
        file.write((new / 'b 2.png').read_bytes())
    options = ('--RESUME_MODEL', 'log/my_photos/best_model.pth', '--DATASET_TEST_ROOT', 'new', *ON_CPU)
    done = scripts.run(tmp_path, 'test.py', *options)
    rows = [line.split(',') for line in (run / 'predictions_new.csv').read_text().splitlines()]
    assert [row[0] for row in rows] == ['id', 'b 2.png', 'b 3.png', 'b 10.png', r'caf\xe9.png', 'deeper/a.jpg']
    predicted = [row[1] for row in rows[1:]]
    assert predicted[1] == '-1'
    assert all(0 <= int(label) < 4 for label in predicted[:1] + predicted[2:])
    assert bad_images(run) == [('predictions_new', 'b 3.png')]
    assert '1 of 5 images could not be decoded: predicted -1' in done.stderr
    assert contents(photos) == before


def test_folders_named_after_classes_are_labels(scripts, photos, tmp_path):
    photos.rename(tmp_path / 'train')
    photos.mkdir()
    (tmp_path / 'train').rename(photos / 'train')
    scripts.run(tmp_path, 'main.py', '--DATASET_ROOT', 'my_photos', *TINY)
    model = ('--RESUME_MODEL', 'log/my_photos/best_model.pth', *ON_CPU)
    assert 'no test images' in error_line(scripts.run(tmp_path, 'test.py', *model, code=2))
    random = np.random.default_rng(6)
    for label in (2, 0):
        folder = photos / 'test' / NAMES[label]
        folder.mkdir(parents=True)
        draw_product(label, 4, 40, random).save(folder / 'a.png')
    done = scripts.run(tmp_path, 'test.py', *model)
    assert 'my_photos/test: labels from its folders' in done.stdout
    metrics = json.loads((tmp_path / 'log' / 'my_photos' / 'predictions_test.metrics.json').read_text())
    with open(tmp_path / 'log' / 'my_photos' / 'predictions_test.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [row['id'] for row in rows] == ['apple/a.png', 'kiwi 2/a.png']
    assert metrics['num_images'] == 2
    assert metrics['top1'] == ((rows[0]['predicted'] == '0') + (rows[1]['predicted'] == '2')) / 2
    draw_product(1, 4, 40, random).save(photos / 'test' / 'new.png')
    done = scripts.run(tmp_path, 'test.py', *model)
    assert '1 of 3 images has no label, and does not count in metrics' in done.stderr
    again = json.loads((tmp_path / 'log' / 'my_photos' / 'predictions_test.metrics.json').read_text())
    assert (again['num_images'], again['top1']) == (2, metrics['top1'])


def test_a_loss_that_is_not_finite(scripts, photos, tmp_path):
    options = ('--DATASET_ROOT', 'my_photos', *TINY, '--SCHEDULE_TYPE', 'multistep', '--SCHEDULE_WARMUP_EPOCHS', 0)
    # The learning rate is usual in the first epoch and extreme from the second one on.
    options += ('--SCHEDULE_MILESTONE_EPOCHS', 1, '--SCHEDULE_DECAY_FACTORS', 1e30)
    line = error_line(scripts.run(tmp_path, 'main.py', *options, code=2))
    for part in (
        'the loss is not finite',
        'epoch 2, step 2',
        'learning rate 5e+28',
        'the last good checkpoint remains',
    ):
        assert part in line
    run = tmp_path / 'log' / 'my_photos'
    last = read_checkpoint(run / 'last.pth')
    assert last.progress.epoch == 1
    assert all(value.isfinite().all() for value in last.state_dict.values())
    assert [line['epoch'] for line in metrics_of(run)] == [1, 1]


def test_a_loss_that_is_not_finite_in_the_first_epoch(scripts, photos, tmp_path):
    line = error_line(
        scripts.run(tmp_path, 'main.py', '--DATASET_ROOT', 'my_photos', *TINY, '--OPTIMIZER_LR', 1e30, code=2)
    )
    assert 'epoch 1, step 2' in line
    assert not list((tmp_path / 'log').rglob('*.pth'))


def test_bad_training_images(scripts, photos, tmp_path):
    for number in range(6):
        (photos / 'apple' / f'{number}.jpg').write_bytes(b'\xff\xd8\xff nothing more')
    done = scripts.run(tmp_path, 'main.py', '--DATASET_ROOT', 'my_photos', *TINY, '--TRAIN_MAX_EPOCH', 4)
    run = tmp_path / 'log' / 'my_photos'
    listed = bad_images(run)
    assert set(listed) <= {(split, f'apple/{number}.jpg') for split in ('train', 'valid') for number in range(6)}
    train = [image for split, image in listed if split == 'train']
    assert train
    assert len(train) == len(set(train))
    for image in train:
        assert done.stderr.count(f'{image}: ') == 1
    # Validation reports those that training did not draw.
    assert len(set(listed)) == 6


def test_raise_names_the_path(scripts, photos, tmp_path):
    (photos / 'bread' / '3.jpg').write_bytes(b'')
    (photos / 'bread' / '4.jpg').write_bytes(b'')
    options = ('--DATASET_ROOT', 'my_photos', *TINY, '--DATASET_ON_BAD_IMAGE', 'raise')
    line = error_line(scripts.run(tmp_path, 'main.py', *options, code=2))
    assert 'my_photos/bread/' in line
    assert '--DATASET_ON_BAD_IMAGE skip' in line


def test_a_class_without_readable_images(scripts, photos, tmp_path):
    (photos / 'kiwi 10' / '0.jpg').write_bytes(b'no image')
    line = error_line(scripts.run(tmp_path, 'main.py', '--DATASET_ROOT', 'my_photos', *TINY, code=2))
    assert "class 'kiwi 10': none of its 1 training images can be decoded" in line
    assert 'my_photos/kiwi 10/0.jpg' in line


def test_an_annotated_test_set(scripts, run_folder, products):
    """Rows are in the order of the file, with rows for an unreadable image and a missing one."""
    names = [path.name for path in sorted((products / 'test').glob('*.jpg'))]
    images = [{'image_id': f'test/{name}'} for name in (names[3], names[0])]
    (run_folder / 'broken.jpg').write_bytes(b'GIF89a')
    images[1:1] = [{'image_id': str(run_folder / 'broken.jpg')}, {'image_id': 'test/absent.jpg'}]
    (run_folder / 'list.json').write_text(json.dumps({'images': images}))
    options = ('--RESUME_MODEL', 'last', '--NAME', 'tiny', '--DATASET_TEST_JSON', 'list.json', *ON_CPU)
    done = scripts.run(run_folder, 'test.py', *options)
    with open(run_folder / 'log' / 'tiny' / 'last_predictions_list.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [row['id'] for row in rows] == [image['image_id'] for image in images]
    assert [row['predicted'] == '-1' for row in rows] == [False, True, True, False]
    assert '2 of 4 images could not be decoded' in done.stderr
    assert len(bad_images(run_folder / 'log' / 'tiny')) == 2
