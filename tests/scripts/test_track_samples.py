"""TRAIN.TRACK_SAMPLES: a run that is killed, or has several ranks, records what an uninterrupted one records."""

import numpy as np
import pytest

from lib.builders.split import annotated_split
from lib.dataset.annotations import read_annotations
from lib.trainer.checkpointing.io import read_checkpoint
from lib.trainer.samples import read_samples
from tests.scripts.rank_runs import run_ranks_of
from tests.scripts.running import TINY

STEPS, NUM_IMAGES = 6, 51  # 48 images of an epoch are used
LAST = ('--RESUME_MODEL', 'last')
STEP = 'lib.trainer.step:TrainStep.__call__'


@pytest.fixture(scope='module')
def options(products):
    given = ('--TRAIN_TRACK_SAMPLES', 'True', '--SAMPLER_TYPE', 'square_root', '--TRAIN_LOG_EVERY_STEPS', 4)
    return ('--config', TINY, '--DATASET_ROOT', products, *given, '--NAME', 'run')


@pytest.fixture(scope='module')
def digest(products):
    return annotated_split(read_annotations(products / 'converted_train.json'), str(products)).digest()


@pytest.fixture(scope='module')
def uninterrupted(scripts, options, tmp_path_factory, digest):
    folder = tmp_path_factory.mktemp('recorded')
    scripts.run(folder, 'main.py', *options)
    samples = read_samples(folder / 'log' / 'run', NUM_IMAGES, digest)
    assert samples is not None
    assert samples.num_seen.sum() == 2 * STEPS * 8  # some images several times in an epoch
    assert samples.num_seen.max() > 2
    return samples


def check_same(folder, digest, expected, tolerance=0.0):
    samples = read_samples(folder / 'log' / 'run', NUM_IMAGES, digest)
    for name in ('num_seen', 'num_forgotten', 'is_learned'):
        np.testing.assert_array_equal(getattr(samples, name), getattr(expected, name))
    np.testing.assert_allclose(samples.aum, expected.aum, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ('signal', 'target', 'count'),
    [
        ('SIGINT', STEP, STEPS + 3),
        pytest.param('SIGKILL', STEP, STEPS + 3, marks=pytest.mark.slow),
        pytest.param('SIGKILL', 'lib.trainer.run_folder:write_checkpoint', 2, marks=pytest.mark.slow),
        pytest.param('SIGKILL', 'lib.trainer.samples:create', 1, marks=pytest.mark.slow),
        pytest.param('SIGKILL', 'lib.trainer.samples:create', 2, marks=pytest.mark.slow),
    ],
)
def test_resumed(scripts, options, uninterrupted, digest, tmp_path, signal, target, count):
    code = {'SIGINT': 130, 'SIGKILL': -9}[signal]
    scripts.run_until(tmp_path, signal, target, count, *options, code=code)
    scripts.run(tmp_path, 'main.py', *options, *LAST)
    check_same(tmp_path, digest, uninterrupted)
    state = read_checkpoint(tmp_path / 'log' / 'run' / 'last.pth').samples
    np.testing.assert_array_equal(state['num_seen'].numpy(), uninterrupted.num_seen)
    assert read_checkpoint(tmp_path / 'log' / 'run' / 'best_model.pth').samples is None


@pytest.mark.slow
def test_ranks(scripts, options, uninterrupted, digest, tmp_path):
    """BatchNorm sees half a batch on each rank, so only what was seen is the same."""
    run_ranks_of(scripts, 2, tmp_path, 'main.py', *options)
    samples = read_samples(tmp_path / 'log' / 'run', NUM_IMAGES, digest)
    np.testing.assert_array_equal(samples.num_seen, uninterrupted.num_seen)
    assert np.isfinite(samples.aum[samples.num_seen > 0]).all()


@pytest.mark.slow
def test_a_record_that_begins_later(scripts, options, tmp_path, digest):
    off = ('--TRAIN_TRACK_SAMPLES', 'False')
    scripts.run_until(tmp_path, 'SIGINT', STEP, STEPS + 3, *options, *off, code=130)
    assert not (tmp_path / 'log' / 'run' / 'samples').exists()
    done = scripts.run(tmp_path, 'main.py', *options, *LAST)
    assert 'images are recorded from here on' in done.stdout
    assert read_samples(tmp_path / 'log' / 'run', NUM_IMAGES, digest).num_seen.sum() == 3 * 8
