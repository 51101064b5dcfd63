"""tools/pack.py, and the three scripts on its shards without the photos."""

import csv
import json
import shlex
import shutil

import pytest

from tests.scripts.running import ON_CPU, REPOSITORY, TINY, contents, error_line, metrics_of
from tests.scripts.test_exact_resume import check_same

RECIPE = ('--config', TINY, '--NAME', 'run')


@pytest.fixture(scope='module')
def packed(scripts, products, tmp_path_factory):
    """Create a folder with shop/, copied into shards in packed/."""
    folder = tmp_path_factory.mktemp('packed')
    shutil.copytree(products, folder / 'shop')
    options = ('--config', TINY, '--DATASET_ROOT', 'shop', '--PACK_OUT', 'packed', '--PACK_IMAGES', 'copy')
    done = scripts.run(folder, 'tools/pack.py', *options, '--RUN_NUM_WORKERS', 2)
    assert 'train: 51 images in 1 shard, ' in done.stdout
    assert 'valid: 24 images' in done.stdout
    assert 'test: 6 images' in done.stdout
    options = f'--config {TINY} --DATASET_ROOT shop --RUN_NUM_WORKERS 2 --DATASET_SHARDS packed'
    assert shlex.split(done.stdout.splitlines()[-1]) == ['python', str(REPOSITORY / 'main.py'), *shlex.split(options)]
    return folder


def test_the_three_scripts_run_without_the_photos(scripts, packed, products, tmp_path):
    """They give the same weights, predictions and tau as with the photos."""
    shutil.copytree(packed / 'packed', tmp_path / 'packed')
    shards = ('--DATASET_SHARDS', 'packed')
    scripts.run(tmp_path, 'main.py', *RECIPE, *shards, '--TRAIN_MAX_EPOCH', 3)
    (tmp_path / 'files').mkdir()
    files = ('--DATASET_ROOT', products)
    scripts.run(tmp_path / 'files', 'main.py', *RECIPE, *files, '--TRAIN_MAX_EPOCH', 3)
    run, other = tmp_path / 'log' / 'run', tmp_path / 'files' / 'log' / 'run'
    check_same(run, other)
    best = ('--RESUME_MODEL', 'log/run/best_model.pth')
    for folder in (tmp_path, tmp_path / 'files'):
        scripts.run(folder, 'test.py', *best, *ON_CPU)
        scripts.run(folder, 'tau_norm.py', *best, *ON_CPU)
    assert (run / 'predictions_test.csv').read_text() == (other / 'predictions_test.csv').read_text()
    taus = [json.loads((log.parent.parent / 'log_tau' / 'run' / 'tau.json').read_text()) for log in (run, other)]
    assert taus[0] == taus[1]


def test_a_run_resumes_with_packed_images(scripts, packed, products, tmp_path):
    """Packing changes neither names nor labels, so the training set is the same."""
    shutil.copytree(packed / 'packed', tmp_path / 'packed')
    scripts.run(tmp_path, 'main.py', *RECIPE, '--DATASET_ROOT', products)
    again = ('--RESUME_MODEL', 'last', '--TRAIN_MAX_EPOCH', 3, '--DATASET_SHARDS', 'packed')
    done = scripts.run(tmp_path, 'main.py', *RECIPE, *again)
    assert 'resuming from log/run/last.pth, 2 epochs' in done.stdout
    assert len(metrics_of(tmp_path / 'log' / 'run')) == 6


def test_class_folders_are_packed_and_test_root_overrides_the_packed_test_split(scripts, products, tmp_path):
    """Pack class folders without annotations, then predict the images of TEST_ROOT."""
    shutil.copytree(products / 'train', tmp_path / 'my photos')
    done = scripts.run(tmp_path, 'tools/pack.py', '--DATASET_ROOT', 'my photos', '--PACK_OUT', 'small',
                       '--INPUT_SIZE', 16, '--RUN_NUM_WORKERS', 0)  # fmt: skip
    assert 'configs/own_photos.yaml is used' in done.stdout
    command = shlex.split(done.stdout.splitlines()[-1])
    assert command[:2] == ['python', str(REPOSITORY / 'main.py')]
    tiny = ('--MODEL_BACKBONE', 'test_resnet', '--TRAIN_MAX_EPOCH', 2, '--TRAIN_BATCH_SIZE', 8)
    done = scripts.run(tmp_path, 'main.py', *command[2:], *tiny, *ON_CPU[:4])
    run = tmp_path / 'log' / 'my photos'
    assert (run / 'best_model.pth').exists()
    best = ('--RESUME_MODEL', 'log/my photos/best_model.pth', '--DATASET_TEST_ROOT', products / 'test')
    scripts.run(tmp_path, 'test.py', *best, *ON_CPU)
    assert len((run / 'predictions_test.csv').read_text().splitlines()) == 7


@pytest.mark.slow
def test_raw_images_are_trained_on_and_audited(scripts, products, tmp_path):
    """Two epochs with workers, the second of them from mapped pixels, and the audit of the shards."""
    options = ('--config', TINY, '--DATASET_ROOT', products, '--PACK_OUT', 'packed', '--PACK_IMAGES', 'raw')
    done = scripts.run(tmp_path, 'tools/pack.py', *options, '--PACK_SHORT_SIDE', 24)
    assert 'are written to packed' in done.stdout
    shards = ('--DATASET_SHARDS', 'packed', '--RUN_NUM_WORKERS', 2)
    scripts.run(tmp_path, 'main.py', *RECIPE, *shards, '--TRAIN_MAX_EPOCH', 2)
    assert len(metrics_of(tmp_path / 'log' / 'run')) == 4
    done = scripts.run(tmp_path, 'tools/doctor.py', '--config', TINY, *shards, '--DOCTOR_OUT', 'doctor')
    assert json.loads((tmp_path / 'doctor' / 'doctor.json').read_text())


def test_a_second_call_verifies_and_repairs(scripts, packed, tmp_path):
    for name in ('packed', 'shop'):
        shutil.copytree(packed / name, tmp_path / name)
    before = contents(tmp_path)
    options = ('--config', TINY, '--DATASET_ROOT', 'shop', '--PACK_OUT', 'packed', '--PACK_IMAGES', 'copy')
    scripts.run(tmp_path, 'tools/pack.py', *options)
    assert contents(tmp_path) == before
    shard = tmp_path / 'packed' / 'valid' / '000000.tar'
    shard.write_bytes(shard.read_bytes()[:5000])
    done = scripts.run(tmp_path, 'main.py', *RECIPE, '--DATASET_SHARDS', 'packed', '--TRAIN_MAX_EPOCH', 1)
    assert 'packed/valid/000000.tar: has 5000 bytes' in done.stderr
    done = scripts.run(tmp_path, 'tools/pack.py', *options)
    assert 'valid/000000.tar: has 5000 bytes' in done.stderr
    assert contents(tmp_path / 'packed') == {
        name.removeprefix('packed/'): digest for name, digest in before.items() if name.startswith('packed/')
    }


def test_unreadable_images_are_listed(scripts, products, tmp_path):
    shutil.copytree(products, tmp_path / 'shop')
    entry = json.loads((tmp_path / 'shop' / 'converted_train.json').read_text())['annotations'][3]
    (tmp_path / 'shop' / entry['fpath']).write_bytes(b'<html>')
    done = scripts.run(tmp_path, 'tools/pack.py', '--config', TINY, '--DATASET_ROOT', 'shop', '--PACK_OUT', 'packed')
    assert 'train: 1 of 51 images cannot be decoded, listed in packed/bad_images.csv' in done.stderr
    assert entry['fpath'] in done.stderr
    with open(tmp_path / 'packed' / 'bad_images.csv', newline='') as file:
        assert [(line['split'], line['image']) for line in csv.DictReader(file)] == [('train', entry['fpath'])]
    scripts.run(tmp_path, 'main.py', *RECIPE, '--DATASET_SHARDS', 'packed', '--TRAIN_BATCH_SIZE', 99)
    assert entry['fpath'] in (tmp_path / 'log' / 'run' / 'bad_images.csv').read_text()


def test_overwrite_renames_the_earlier_result(scripts, packed, tmp_path):
    for name in ('packed', 'shop'):
        shutil.copytree(packed / name, tmp_path / name)
    before = contents(tmp_path / 'packed')
    options = ('--config', TINY, '--DATASET_ROOT', 'shop', '--PACK_OUT', 'packed')
    error = error_line(scripts.run(tmp_path, 'tools/pack.py', *options, code=2))
    assert 'packed/train was packed with' in error
    assert '--OVERWRITE True' in error
    done = scripts.run(tmp_path, 'tools/pack.py', *options, '--OVERWRITE', True)
    assert 'renamed the earlier result to packed_old' in done.stdout
    assert contents(tmp_path / 'packed_old') == before


@pytest.mark.parametrize(
    ('how', 'words'),
    [
        ('copy', ('PACK.OUT', 'PACK.IMAGES copy needs about', 'are free', '--PACK_IMAGES reencode')),
        ('raw', ('PACK.OUT', 'PACK.IMAGES raw needs about', 'are free', '--PACK_IMAGES reencode')),
        ('reencode', ('no space left on the device',)),
    ],
)
def test_a_small_disk(scripts, products, small_disk, tmp_path, how, words):
    """Copying and pixels are estimated first; re-encoding fails when the disk is full and leaves no partial files."""
    disk = small_disk(60)
    options = ('--config', TINY, '--DATASET_ROOT', products, '--PACK_OUT', disk / 'p', '--PACK_IMAGES', how)
    error = error_line(scripts.run(tmp_path, 'tools/pack.py', *options, '--RUN_NUM_WORKERS', 0, code=2))
    assert all(word in error for word in words), error
    assert not list(disk.rglob('.*.tmp*'))
    assert not list(disk.rglob('*.tar'))


def test_ctrl_c(scripts, packed, tmp_path):
    """Packing ends at once, and the next call resumes after the finished shards."""
    shutil.copytree(packed / 'shop', tmp_path / 'shop')
    options = ('--config', TINY, '--DATASET_ROOT', 'shop', '--PACK_OUT', 'packed', '--PACK_SHARD_IMAGES', 5)
    wrapped = ('SIGINT', 'lib.shards.write:write_table', 3, REPOSITORY / 'tools' / 'pack.py', *options)
    done = scripts.run(tmp_path, 'tests/scripts/raise_signal.py', *wrapped, '--RUN_NUM_WORKERS', 0, code=130)
    assert 'Traceback' not in done.stderr
    assert 'run the same command again to resume' in done.stdout
    finished = len(list((tmp_path / 'packed' / 'train' / 'parts').glob('*.arrow')))
    assert finished == 2
    assert not list((tmp_path / 'packed').rglob('.*.tmp*'))
    done = scripts.run(tmp_path, 'tools/pack.py', *options, '--RUN_NUM_WORKERS', 0)
    assert f'resuming after {5 * finished} of 51 images' in done.stdout
