"""A head on cached features is the head that a run with a frozen backbone trains on the images themselves."""

import shutil

import numpy as np
import pytest
import torch

from lib.runtime.column_store import ColumnStore
from lib.trainer.checkpointing.io import read_checkpoint
from tests.scripts.rank_runs import run_ranks_of
from tests.scripts.running import ON_CPU, check_same_run, error_line, metrics_of

pytestmark = [pytest.mark.process, pytest.mark.long]

# 51 images, 6 steps per epoch.
STEPS = 6
FIRST = ('--RESUME_MODEL', 'log/tiny/best_model.pth', '--RESUME_MODE', 'finetune', '--MODEL_TUNE', 'head', *ON_CPU)
FIRST += ('--MODEL_CLASSIFIER_INIT', 'random', '--TRAIN_MAX_EPOCH', 3)
# Nothing is random, and a batch of images is as large as one of the pass that computes features.
FIXED = ('--INPUT_TRAIN_TRANSFORM', 'center_crop', '--TEST_BATCH_SIZE', 8)
CACHED = ('--TRAIN_FEATURES', 'cached', '--TRAIN_FEATURE_DTYPE', 'float32')
STEP = 'lib.trainer.step:TrainStep.__call__'

HEADS = {
    'linear, EMA': ('--TRAIN_EMA_DECAY', 0.8, '--DATASET_HEAD_CAP', 8),
    'cosine, from class means': ('--MODEL_CLASSIFIER', 'FCNorm', '--MODEL_CLASSIFIER_INIT', 'class_means'),
    'balanced softmax, class-balanced': ('--LOSS_TYPE', 'balanced_softmax', '--SAMPLER_TYPE', 'class_balance'),
    'LDAM, deferred re-weighting and re-sampling': (
        '--LOSS_TYPE', 'ldam', '--LOSS_CLASS_WEIGHTS', 'effective_number', '--LOSS_REWEIGHT_EPOCH', 1,
        '--SAMPLER_SWITCH_TYPE', 'class_balance', '--SAMPLER_SWITCH_EPOCH', 2,
    ),
    'learned scales': (
        '--MODEL_CLASSIFIER', 'lws', '--MODEL_FREEZE_CLASSIFIER', True, '--MODEL_CLASSIFIER_INIT', 'checkpoint',
        '--SAMPLER_TYPE', 'class_balance',
    ),
    'embedding, pairs of images': (
        '--MODEL_EMBEDDING', 8, '--LOSS_AUXILIARY', 'multi_similarity', '--SAMPLER_TYPE', 'class_balance',
        '--SAMPLER_IMAGES_PER_CLASS', 2,
    ),
    'chunked, in micro-batches': ('--LOSS_CHUNK_IMAGES', 3, '--TRAIN_DEVICE_BATCH_SIZE', 4),
}  # fmt: skip
ALWAYS = ('linear, EMA', 'LDAM, deferred re-weighting and re-sampling', 'chunked, in micro-batches')


@pytest.fixture(scope='module')
def folder(finished, tmp_path_factory):
    """A folder with the first stage, whose features the tests share."""
    folder = tmp_path_factory.mktemp('heads')
    shutil.copytree(finished / 'log', folder / 'log')
    return folder


def train(scripts, folder, name, *options, code=0):
    return scripts.run(folder, 'main.py', *FIRST, '--NAME', name, *options, code=code).stdout


def check_equal(run, other, rtol=1e-5):
    """Check that two runs have the same weights and metrics, up to the rounding of another batch size or rank."""
    for file in ('last.pth', 'best_model.pth'):
        one, two = read_checkpoint(run / file), read_checkpoint(other / file)
        torch.testing.assert_close(one.state_dict, two.state_dict, rtol=rtol, atol=1e-6)
        assert one.progress.position == two.progress.position
        assert one.selection.selected_epoch == two.selection.selected_epoch
    lines = zip(metrics_of(run), metrics_of(other), strict=True)
    for one, two in lines:
        for name in set(one) - {'images_per_second', 'seconds'}:
            assert one[name] == (pytest.approx(two[name], rel=rtol) if name == 'loss' else two[name]), name
    assert len({str(line) for line in metrics_of(run)}) == 6


@pytest.mark.parametrize(
    'head', [name if name in ALWAYS else pytest.param(name, marks=pytest.mark.slow) for name in HEADS]
)
def test_same_as_on_images(scripts, folder, head):
    number = list(HEADS).index(head)
    train(scripts, folder, f'images{number}', *FIXED, *HEADS[head])
    log = train(scripts, folder, f'cached{number}', *FIXED, *CACHED, *HEADS[head])
    assert 'features of train: 51 images x 96' in log
    check_equal(folder / 'log' / f'images{number}', folder / 'log' / f'cached{number}')


@pytest.mark.parametrize(
    'sharded', [pytest.param(False, marks=pytest.mark.slow), True], ids=['whole classifier', 'sharded classifier']
)
def test_two_ranks(scripts, folder, sharded):
    """Two ranks compute the features together and train the classifier of one process on the images."""
    train(scripts, folder, f'single{sharded}', *FIXED)
    cache = folder / f'ranks{sharded}'
    options = (*FIRST, *FIXED, *CACHED, '--TRAIN_FEATURE_CACHE', cache, '--NAME', f'ranks{sharded}')
    run_ranks_of(scripts, 2, folder, 'main.py', *options, '--MODEL_CLASSIFIER_SHARDED', sharded)
    check_equal(folder / 'log' / f'single{sharded}', folder / 'log' / f'ranks{sharded}', rtol=1e-4)
    assert store_of(cache).is_complete


def test_unreadable_images(scripts, products, folder):
    """Both runs replace the same images by the same others, and list them."""
    photos = folder / 'photos'
    shutil.copytree(products, photos, copy_function=shutil.copy)
    train_photos, valid_photos = (sorted((photos / kind).rglob('*.jpg')) for kind in ('train', 'val'))
    assert train_photos, valid_photos
    for path in (train_photos[0], train_photos[20], valid_photos[3]):
        path.write_bytes(b'no image')
    options = ('--DATASET_ROOT', photos, '--DATASET_MAX_BAD_FRACTION', 0.5, *FIXED)
    train(scripts, folder, 'bad_images', *options)
    train(scripts, folder, 'bad_cached', *options, *CACHED)
    runs = [folder / 'log' / name for name in ('bad_images', 'bad_cached')]
    check_equal(*runs)
    lists = [(run / 'bad_images.csv').read_text().splitlines() for run in runs]
    assert sorted(lists[0]) == sorted(lists[1])
    assert len(lists[0]) >= 3
    for name, more in (('raise_images', ()), ('raise_cached', CACHED)):
        command = (*FIRST, *options, '--DATASET_ON_BAD_IMAGE', 'raise', '--NAME', name, *more)
        done = scripts.run(folder, 'main.py', *command, code=2)
        assert 'ON_BAD_IMAGE skip trains without such images' in error_line(done)


def test_runs_share_features(scripts, folder):
    cache = folder / 'shared'
    options = ('--TRAIN_FEATURES', 'cached', '--TRAIN_FEATURE_CACHE', cache, '--TRAIN_MAX_EPOCH', 1)
    views = ('--TRAIN_FEATURE_VIEWS', 2)
    assert 'features of train: 51 images x 96, 9.79 kB, computed' in train(scripts, folder, 'one', *options)
    log = train(scripts, folder, 'two', *options, *views, '--LOSS_TYPE', 'balanced_softmax')
    assert 'features of train, view 1 of 2: 51 images x 96, 9.79 kB, cached' in log
    assert 'features of train, view 2 of 2: 51 images x 96, 9.79 kB, computed' in log
    assert 'features of valid: 24 images x 96, 4.61 kB, cached' in log
    # Crops are random by SEED; validation images are not cropped at random.
    log = train(scripts, folder, 'three', *options, '--SEED', 5)
    assert 'features of train: 51 images x 96, 9.79 kB, computed' in log
    assert 'features of valid: 24 images x 96, 4.61 kB, cached' in log
    assert len(list(cache.glob('train-*'))) == 3
    assert len(list(cache.glob('valid-*'))) == 1


def store_of(cache, kind='train'):
    (path,) = cache.glob(f'{kind}-*')
    return ColumnStore(path)


def test_ctrl_c_in_a_pass(scripts, folder):
    options = (*FIXED, *CACHED, '--TRAIN_FEATURE_CACHE', folder / 'ctrl_c', '--NAME', 'ctrl_c')
    done = scripts.run_until(
        folder, 'SIGINT', 'lib.runtime.column_store:ColumnStore.write', 2, *FIRST, *options, code=130
    )
    assert done.stderr == 'interrupted\n'
    assert not (folder / 'log' / 'ctrl_c').exists()
    assert 'features of train: 51 images x 96, 19.6 kB, computed' in train(scripts, folder, 'ctrl_c', *options)


def test_an_interrupted_pass_is_resumed(scripts, folder):
    cache, options = folder / 'interrupted', (*FIXED, *CACHED)
    options += ('--TRAIN_FEATURE_CACHE', cache)
    scripts.run_until(
        folder, 'SIGKILL', 'lib.runtime.column_store:ColumnStore.flush', 1, *FIRST, '--NAME', 'killed', *options,
        code=-9,
    )  # fmt: skip
    assert not (folder / 'log' / 'killed').exists()
    store = store_of(cache)
    assert store.is_complete
    complete = store.columns['features'].copy()
    # As if it had been killed after 16 images, whose values alone were on the disk.
    journal = store.folder / 'rows0.jsonl'
    lines = [line for line in journal.read_bytes().splitlines() if line]
    journal.write_bytes(lines[0] + b'\n' + lines[1][:-2])
    with open(store.folder / 'features.npy', 'r+b') as file:
        file.seek(-100, 2)
        file.write(bytes(100))
    log = train(scripts, folder, 'killed', *options)
    assert 'computed' in log
    assert np.array_equal(store_of(cache).columns['features'], complete)
    train(scripts, folder, 'images_again', *FIXED)
    check_equal(folder / 'log' / 'images_again', folder / 'log' / 'killed')


@pytest.mark.parametrize(
    'ema', [pytest.param((), marks=pytest.mark.slow), ('--TRAIN_EMA_DECAY', 0.8)], ids=['no EMA', 'EMA']
)
def test_resumed_in_the_middle_of_an_epoch(scripts, folder, ema):
    name = f'whole{len(ema)}'
    options = ('--TRAIN_FEATURES', 'cached', '--TRAIN_FEATURE_VIEWS', 2, *ema)
    train(scripts, folder, name, *options)
    part = (*FIRST, *options, '--NAME', f'part{len(ema)}')
    scripts.run_until(folder, 'SIGINT', STEP, STEPS + 2, *part, code=130)
    run = folder / 'log' / f'part{len(ema)}'
    assert read_checkpoint(run / 'last.pth').progress.position == (1, 2)
    log = scripts.run(
        folder, 'main.py', '--NAME', run.name, '--RESUME_MODEL', 'last', '--config', run / 'config.yaml', *ON_CPU
    ).stdout
    assert 'view 2 of 2: 51 images x 96, 9.79 kB, cached' in log
    check_same_run(run, folder / 'log' / name)
