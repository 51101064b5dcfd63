"""A head on cached features fitted by L-BFGS, as a user runs it."""

import shutil

import pytest
import torch

from lib.trainer.checkpointing.io import read_checkpoint
from tests.scripts.rank_runs import run_ranks_of
from tests.scripts.running import ON_CPU, REPOSITORY, check_same_run, error_line, metrics_of

pytestmark = [pytest.mark.process, pytest.mark.long]

PROBE = REPOSITORY / 'configs' / 'method' / 'linear_probe.yaml'
FIRST = ('--config', PROBE, '--RESUME_MODEL', 'log/tiny/best_model.pth', '--RESUME_MODE', 'finetune', *ON_CPU)
FIRST += ('--MODEL_BACKBONE', 'test_resnet', '--INPUT_SIZE', 32, '--TRAIN_BATCH_SIZE', 20, '--TRAIN_MAX_EPOCH', 4)
FIRST += ('--OPTIMIZER_FIRST_LAMBDA', 1e-4)
STEP = 'lib.trainer.lbfgs:LBFGSStep.__call__'


@pytest.fixture(scope='module')
def folder(finished, tmp_path_factory):
    """A folder with the first stage, whose features the tests share."""
    folder = tmp_path_factory.mktemp('heads')
    shutil.copytree(finished / 'log', folder / 'log')
    return folder


@pytest.fixture(scope='module')
def whole(scripts, folder):
    """An uninterrupted run and its output."""
    return folder / 'log' / 'whole', scripts.run(folder, 'main.py', *FIRST, '--NAME', 'whole').stdout


def test_epochs_are_strengths(whole):
    run, log = whole
    lines = [line for line in metrics_of(run) if line['split'] == 'train']
    assert [line['lr'] for line in lines] == pytest.approx([1e-4 * 10 ** (epoch / 2) for epoch in range(4)])
    losses = [line['loss'] for line in lines]
    assert losses == sorted(losses), 'stronger regularization, higher training loss'
    best = read_checkpoint(run / 'best_model.pth')
    epoch = best.progress.epoch
    assert epoch == read_checkpoint(run / 'last.pth').selection.selected_epoch
    assert f'lambda {1e-4 * 10 ** ((epoch - 1) / 2):.2g}, epoch {epoch} of 4' in log
    assert '  lambda  train loss' in log
    # The checkpoint is that of an ordinary run, with the backbone of the first stage.
    first = read_checkpoint(run.parent / 'tiny' / 'best_model.pth').state_dict
    assert all(torch.equal(best.state_dict[key], value) for key, value in first.items() if key.startswith('backbone.'))


def test_resumes_bit_identically(scripts, folder, whole):
    options = (*FIRST, '--NAME', 'stopped')
    scripts.run_until(folder, 'SIGINT', STEP, 2, *options, code=130)
    assert read_checkpoint(folder / 'log' / 'stopped' / 'last.pth').progress.position == (1, 1)
    scripts.run(folder, 'main.py', *options, '--RESUME_MODEL', 'last', '--RESUME_MODE', 'auto')
    check_same_run(folder / 'log' / 'stopped', whole[0])


@pytest.mark.parametrize('signal', ['SIGTERM', pytest.param('SIGHUP', marks=pytest.mark.slow)])
def test_a_fit_is_stopped_within_it(scripts, folder, whole, signal):
    """In the second epoch, whose fit starts again when the run is resumed."""
    name = f'within_{signal}'
    options, code = (*FIRST, '--NAME', name), {'SIGTERM': 143, 'SIGHUP': 129}[signal]
    evaluations = 'lib.trainer.lbfgs:LBFGSStep._moments'
    done = scripts.run_until(folder, signal, evaluations, 2, *options, code=code)
    assert 'stopped and saved' in done.stdout
    assert done.stderr == ''
    assert read_checkpoint(folder / 'log' / name / 'last.pth').progress.position == (1, 0)
    scripts.run(folder, 'main.py', *options, '--RESUME_MODEL', 'last', '--RESUME_MODE', 'auto')
    check_same_run(folder / 'log' / name, whole[0])


def test_two_ranks(scripts, folder, whole):
    run_ranks_of(scripts, 2, folder, 'main.py', *FIRST, '--NAME', 'ranks')
    one, two = (read_checkpoint(folder / 'log' / name / 'last.pth') for name in ('whole', 'ranks'))
    torch.testing.assert_close(one.state_dict, two.state_dict, rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (('--TRAIN_FEATURES', 'images'), ('OPTIMIZER.TYPE lbfgs', '--TRAIN_FEATURES cached')),
        (('--MODEL_CLASSIFIER', 'lws'), ('MODEL.CLASSIFIER is lws',)),
        (
            ('--MODEL_CLASSIFIER_SHARDED', True),
            ('MODEL.CLASSIFIER_SHARDED is True', '--MODEL_CLASSIFIER_SHARDED False'),
        ),
        (('--LOSS_CHUNK_IMAGES', 8), ('LOSS.CHUNK_IMAGES is 8', 'TRAIN.BATCH_SIZE')),
        (('--TRAIN_EMA_DECAY', 0.9), ('TRAIN.EMA_DECAY is 0.9', 'OPTIMIZER.TYPE lbfgs')),
        (('--OPTIMIZER_WEIGHT_DECAY', 0.1), ('OPTIMIZER.WEIGHT_DECAY is 0.1', 'OPTIMIZER.TYPE lbfgs')),
        (('--TRAIN_MAX_EPOCH', 60), ('TRAIN.MAX_EPOCH is 60', '--TRAIN_MAX_EPOCH 9')),
    ],
)
def test_what_does_not_apply(scripts, folder, options, words):
    done = scripts.run(folder, 'main.py', *FIRST, *options, '--NAME', 'wrong', code=2)
    assert all(word in error_line(done) for word in words)
