"""tools/doctor.py as a user runs it, and training without the images in quarantine."""

import json
import shutil
from pathlib import Path

import pytest

from tests.scripts.running import TINY, contents, error_line


@pytest.fixture
def shop(products, tmp_path) -> Path:
    """Return a copy of `products` with a copy, a leak, a contradiction, an empty file and a missing file."""
    folder = tmp_path / 'shop'
    shutil.copytree(products, folder)
    train, valid = (json.loads((folder / f'converted_{split}.json').read_text()) for split in ('train', 'val'))
    images = train['annotations']

    def add(tree: dict, name: str, data: bytes | None, label: int) -> None:
        if data is not None:
            (folder / name).write_bytes(data)
        tree['annotations'].append({'fpath': name, 'category_id': label})

    def photo(row: int) -> tuple[bytes, int]:
        return (folder / images[row]['fpath']).read_bytes(), images[row]['category_id']

    add(train, 'copy.jpg', *photo(0))
    data, label = photo(1)
    add(train, 'other <b>class.jpg', data, (label + 1) % 6)
    add(valid, 'leak.jpg', *photo(2))
    add(train, 'empty.jpg', b'', 0)
    add(train, 'missing.jpg', None, 0)
    for split, tree in (('train', train), ('val', valid)):
        (folder / f'converted_{split}.json').write_text(json.dumps(tree))
    return folder


def quarantined(folder: Path) -> list[str]:
    tree = json.loads((folder / 'quarantine.json').read_text())
    assert all(image['split'] == 'train' and image['reason'] for image in tree['images'])
    return [image['fpath'] for image in tree['images']]


@pytest.mark.parametrize('workers', [0, 2])
def test_writes_its_findings_and_changes_no_photo(scripts, shop, tmp_path, workers):
    before = contents(shop)
    options = ('--DATASET_ROOT', shop, '--NAME', 'shop', '--RUN_NUM_WORKERS', workers)
    done = scripts.run(tmp_path, 'tools/doctor.py', *options)
    assert contents(shop) == before
    folder = tmp_path / 'log' / 'shop_doctor'
    assert sorted(path.name for path in folder.iterdir()) == ['doctor.html', 'doctor.json', 'quarantine.json']
    images = [image['fpath'] for image in json.loads((shop / 'converted_train.json').read_text())['annotations']]
    expected = {images[1], images[2], 'copy.jpg', 'other <b>class.jpg', 'empty.jpg', 'missing.jpg'}
    assert set(quarantined(folder)) == expected
    found = json.loads((folder / 'doctor.json').read_text())
    assert list(found['splits']) == ['train', 'valid', 'test']
    assert [image['fpath'] for image in found['unreadable']] == ['empty.jpg']
    lines = done.stdout.splitlines()
    table = lines[lines.index(next(line for line in lines if line.startswith('train '))) :]
    assert len(table) <= 35
    assert max(map(len, table[:-1])) <= 80
    assert 'quarantine.json' in table[-1]
    page = (folder / 'doctor.html').read_text()
    assert 'other &lt;b&gt;class.jpg' in page
    assert '<b>class' not in page


def test_trains_without_the_images_in_quarantine(scripts, shop, tmp_path):
    scripts.run(tmp_path, 'tools/doctor.py', '--DATASET_ROOT', shop, '--DOCTOR_OUT', 'found', '--RUN_NUM_WORKERS', 0)
    count = len(quarantined(tmp_path / 'found'))
    train = ('--config', TINY, '--DATASET_ROOT', shop)
    without = ('--DATASET_QUARANTINE', 'found/quarantine.json')
    # missing.jpg stops a run that reads it.
    line = error_line(scripts.run(tmp_path, 'main.py', *train, '--NAME', 'all', code=None))
    assert 'missing.jpg' in line
    assert 'no such file' in line
    done = scripts.run(tmp_path, 'main.py', *train, *without, '--NAME', 'clean')
    total = len(json.loads((shop / 'converted_train.json').read_text())['annotations'])
    assert f'found/quarantine.json: {count} of {total} training images excluded' in done.stdout
    assert f'train: {total - count} images' in done.stdout
    assert not (tmp_path / 'log' / 'clean' / 'bad_images.csv').exists()


def test_another_quarantine_is_another_training_set(scripts, products, tmp_path):
    names = [image['fpath'] for image in json.loads((products / 'converted_train.json').read_text())['annotations']]

    def write(file: str, *listed: str) -> str:
        images = [{'fpath': name, 'split': 'train', 'reason': 'blurred'} for name in listed]
        (tmp_path / file).write_text(json.dumps({'images': images}))
        return file

    def last(quarantine: str) -> tuple:
        return (*train, '--DATASET_QUARANTINE', quarantine, '--RESUME_MODEL', 'last', '--TRAIN_MAX_EPOCH', 3)

    train = ('--config', TINY, '--DATASET_ROOT', products, '--NAME', 'run')
    first = write('first.json', names[3], names[0])
    scripts.run(tmp_path, 'main.py', *train, '--DATASET_QUARANTINE', first)
    second = write('second.json', names[3])
    assert 'another training set' in error_line(scripts.run(tmp_path, 'main.py', *last(second), code=None))
    assert 'another training set' in error_line(scripts.run(tmp_path, 'main.py', *last(''), code=None))
    # The same images in another file and order are the same set; unknown paths are reported.
    same = write('same.json', names[0], 'gone.jpg', names[3])
    done = scripts.run(tmp_path, 'main.py', *last(same))
    assert 'resuming from' in done.stdout
    assert '1 of its training images is not in' in done.stderr


def test_an_empty_quarantine_changes_nothing(scripts, finished, products, run_folder):
    (run_folder / 'none.json').write_text('{"images": []}')
    options = ('--config', TINY, '--DATASET_ROOT', products, '--NAME', 'tiny', '--RESUME_MODEL', 'last')
    done = scripts.run(
        run_folder, 'main.py', *options, '--DATASET_QUARANTINE', 'none.json', '--TRAIN_MAX_EPOCH', 3
    )  # fmt: skip
    assert 'resuming from' in done.stdout


def test_all_images_in_quarantine(scripts, products, tmp_path):
    names = [image['fpath'] for image in json.loads((products / 'converted_train.json').read_text())['annotations']]
    listed = [{'fpath': name, 'split': 'train'} for name in names]
    (tmp_path / 'q.json').write_text(json.dumps({'images': listed}))
    options = ('--config', TINY, '--DATASET_ROOT', products, '--NAME', 'none', '--DATASET_QUARANTINE', 'q.json')
    line = error_line(scripts.run(tmp_path, 'main.py', *options, code=None))
    assert 'q.json lists all' in line
    assert not (tmp_path / 'log').exists()


@pytest.mark.parametrize('workers', [0, 2])
def test_an_interrupted_audit_writes_no_result_and_is_resumed(scripts, products, tmp_path, workers):
    target = ('SIGINT', 'lib.audit.scan:ConcatImages.split_of', 1) if workers == 0 else (
        'SIGINT', 'lib.audit.report:scan', 1)  # fmt: skip
    script = Path(__file__).resolve().parents[2] / 'tools' / 'doctor.py'
    done = scripts.run(
        tmp_path, 'tests/scripts/raise_signal.py', *target, script, '--DATASET_ROOT', products, '--NAME', 'shop',
        '--RUN_NUM_WORKERS', workers, code=130,
    )  # fmt: skip
    assert done.stderr.splitlines()[-1] == 'interrupted'
    assert 'Traceback' not in done.stderr
    folder = tmp_path / 'log' / 'shop_doctor'
    assert [path.name for path in folder.iterdir()] == ['scan.partial']
    options = ('--DATASET_ROOT', products, '--NAME', 'shop', '--RUN_NUM_WORKERS', workers)
    done = scripts.run(tmp_path, 'tools/doctor.py', *options)
    assert ('resuming after 81 of 81 images' in done.stdout) == (workers == 2)
    assert sorted(path.name for path in folder.iterdir()) == ['doctor.html', 'doctor.json', 'quarantine.json']


def test_class_folders_and_cifar(scripts, tmp_path, products):
    image = json.loads((products / 'converted_train.json').read_text())['annotations'][0]['fpath']
    for name in ('apple', 'pear'):
        (tmp_path / 'mine' / name).mkdir(parents=True)
        for number in range(3):
            shutil.copy(products / image, tmp_path / 'mine' / name / f'{number}.jpg')
    done = scripts.run(tmp_path, 'tools/doctor.py', '--DATASET_ROOT', 'mine', '--RUN_NUM_WORKERS', 0)
    assert 'across classes (contradictions)' in done.stdout
    found = json.loads((tmp_path / 'log' / 'mine_doctor' / 'doctor.json').read_text())
    assert found['exact_duplicates'][0]['contradiction']
