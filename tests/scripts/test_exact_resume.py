"""A run that is interrupted and resumed, or has other workers, has bit for bit the weights of an uninterrupted one."""

import pytest

from lib.trainer.checkpointing.io import read_checkpoint
from tests.scripts.running import TINY, check_same_run, metrics_of

# 33 images after the cap, 4 steps per epoch. In the second epoch sampler and image size change, and the backbone begins
# to train; the learning rate falls in every step.
STEPS = 4
OPTIONS = ('--DATASET_HEAD_CAP', 6, '--SAMPLER_SWITCH_TYPE', 'class_balance', '--SAMPLER_SWITCH_EPOCH', 1)
OPTIONS += ('--INPUT_SIZE_SCHEDULE', '0,24,1,40,2,32', '--MODEL_EMBEDDING', 8, '--TRAIN_HEAD_EPOCHS', 1)
OPTIONS += ('--TRAIN_MAX_EPOCH', 3, '--NAME', 'run', '--SEED', 7)
LAST = ('--RESUME_MODEL', 'last')
STEP = 'lib.trainer.step:TrainStep.__call__'


@pytest.fixture(scope='module')
def options(products):
    return ('--config', TINY, '--DATASET_ROOT', products, *OPTIONS)


@pytest.fixture(scope='module')
def uninterrupted(scripts, options, tmp_path_factory):
    folder = tmp_path_factory.mktemp('uninterrupted')
    scripts.run(folder, 'main.py', *options)
    return folder / 'log' / 'run'


def check_same(run, other):
    check_same_run(run, other)
    lines = [(line['epoch'], line['split']) for line in metrics_of(run)]
    assert lines == [(epoch, split) for epoch in (1, 2, 3) for split in ('train', 'valid')]


def test_the_run_to_compare_with(uninterrupted):
    """The tests below would prove nothing if the run did not learn, or did not use one of its features."""
    log = (uninterrupted / 'log.txt').read_text()
    assert '33 images (of 51, by DATASET.HEAD_CAP)' in log
    assert 'TRAIN.HEAD_EPOCHS 1: the backbone is constant until then' in log
    assert f'step {STEPS - 1} of {STEPS}' in log
    rates = [line['lr'] for line in metrics_of(uninterrupted) if line['split'] == 'train']
    assert rates == sorted(rates, reverse=True)
    assert len(set(rates)) == 3


def test_two_workers(scripts, options, uninterrupted, tmp_path):
    scripts.run(tmp_path, 'main.py', *options, '--RUN_NUM_WORKERS', 2)
    check_same(tmp_path / 'log' / 'run', uninterrupted)


@pytest.mark.parametrize(
    'step',
    [STEPS + 2, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, STEPS, 2 * STEPS, 3 * STEPS - 1))],
)
def test_ctrl_c(scripts, options, uninterrupted, tmp_path, step):
    done = scripts.run_until(tmp_path, 'SIGINT', STEP, step, *options, code=130)
    assert ': saving after this step' in done.stdout
    assert 'to resume: --RESUME_MODEL last (NAME run)' in done.stdout
    assert 'Traceback' not in done.stderr
    run = tmp_path / 'log' / 'run'
    progress = read_checkpoint(run / 'last.pth').progress
    assert progress.epoch * STEPS + progress.step == step
    done = scripts.run(tmp_path, 'main.py', *options, *LAST)
    assert f'resuming from log/run/last.pth, {progress.epoch} epoch' in done.stdout
    check_same(run, uninterrupted)


@pytest.mark.slow
def test_ctrl_c_again_and_again(scripts, options, uninterrupted, tmp_path):
    for resume in ((), LAST, LAST):
        scripts.run_until(tmp_path, 'SIGINT', STEP, 2, *options, *resume, code=130)
    assert read_checkpoint(tmp_path / 'log' / 'run' / 'last.pth').progress.epoch == 1
    scripts.run(tmp_path, 'main.py', *options, *LAST)
    check_same(tmp_path / 'log' / 'run', uninterrupted)


@pytest.mark.parametrize(
    ('target', 'count'),
    [
        pytest.param(STEP, STEPS + 2, marks=pytest.mark.slow),  # in the middle of the second epoch
        # last.pth of the first epoch exists, best_model.pth does not
        pytest.param('lib.trainer.run_folder:write_checkpoint', 1, marks=pytest.mark.slow),
        ('lib.trainer.run_folder:RunFolder.append', 3),  # a line of the second epoch in metrics.jsonl, no checkpoint
    ],
    ids=['in an epoch', 'before best_model.pth', 'before any checkpoint of an epoch'],
)
def test_kill(scripts, options, uninterrupted, tmp_path, target, count):
    scripts.run_until(tmp_path, 'SIGKILL', target, count, *options, code=-9)
    scripts.run(tmp_path, 'main.py', *options, *LAST)
    check_same(tmp_path / 'log' / 'run', uninterrupted)


def test_ctrl_c_of_a_user(scripts, options, tmp_path):
    """The signal comes from outside, at any time; the run stops after the current step."""
    running = scripts.start(tmp_path, 'main.py', *options, '--TRAIN_MAX_EPOCH', 10_000)
    running.wait_for('epoch 2, step 1 of 4')
    running.interrupt()
    assert 'stopped and saved' in running.wait(130).stdout
    progress = read_checkpoint(tmp_path / 'log' / 'run' / 'last.pth').progress
    assert progress.epoch >= 1
    lines = metrics_of(tmp_path / 'log' / 'run')
    assert [line['epoch'] for line in lines] == [epoch + 1 for epoch in range(progress.epoch) for _ in range(2)]
