"""The scripts on several ranks: the same images, the same answers, one voice."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from lib.trainer.checkpoint import read_checkpoint
from tests.scripts.rank_runs import run_ranks_of, start_ranks
from tests.scripts.running import ENVIRONMENT, ON_CPU, REPOSITORY, TINY, metrics_of

LAST = ('--RESUME_MODEL', 'last')
# LayerNorm: what a rank normalises by does not depend on the images beside it.
NO_BATCHNORM = ('--MODEL_BACKBONE', 'test_vit', '--INPUT_SIZE', 160, '--INPUT_SCALE', '0.9,1')


def options_of(products, *options):
    return ('--config', TINY, '--DATASET_ROOT', products, '--NAME', 'run', *options)


def columns(path):
    with open(path, encoding='utf-8', newline='') as lines:
        return list(csv.DictReader(lines))


@pytest.fixture(scope='module')
def on_two(scripts, products, tmp_path_factory):
    """A run on two ranks, and what both said."""
    folder = tmp_path_factory.mktemp('two')
    return folder, run_ranks_of(scripts, 2, folder, 'main.py', *options_of(products))


def test_one_rank_speaks_and_writes(on_two):
    folder, (main, other) = on_two
    assert '2 ranks, each on cpu, float32' in main.stdout
    assert 'best model' in main.stdout
    assert other.stdout == other.stderr == ''
    assert [(line['epoch'], line['split']) for line in metrics_of(folder / 'log' / 'run')] == [
        (epoch, split) for epoch in (1, 2) for split in ('train', 'valid')
    ]


def test_predictions_do_not_depend_on_ranks(scripts, products, on_two):
    """Uneven shares, and with seven ranks for six test images one that has none."""
    folder, _ = on_two
    best = ('--RESUME_MODEL', 'log/run/best_model.pth', '--DATASET_ROOT', products, *ON_CPU)
    options = (*best, '--TEST_TOP_K', 2, '--TEST_EMBEDDINGS', True, '--TEST_BATCH_SIZE', 2)
    names = ('best_model.csv', 'best_model_top2.csv')
    scripts.run(folder, 'test.py', *options)
    expected = [columns(folder / 'log' / 'run' / name) for name in names]
    embeddings = (folder / 'log' / 'run' / 'best_model_features.npy').read_bytes()
    assert len(expected[0]) == 6
    for count in (2, 7):
        run_ranks_of(scripts, count, folder, 'test.py', *options)
        assert [columns(folder / 'log' / 'run' / name) for name in names] == expected
        assert (folder / 'log' / 'run' / 'best_model_features.npy').read_bytes() == embeddings


def test_tau_does_not_depend_on_ranks(scripts, products, on_two):
    folder, _ = on_two
    options = ('--RESUME_MODEL', 'log/run/best_model.pth', '--DATASET_ROOT', products, *ON_CPU)
    scripts.run(folder, 'tau_norm.py', *options)
    expected = json.loads((folder / 'log_tau' / 'run' / 'tau.json').read_text())
    run_ranks_of(scripts, 3, folder, 'tau_norm.py', *options, '--OVERWRITE', True)
    assert json.loads((folder / 'log_tau' / 'run' / 'tau.json').read_text()) == expected


@pytest.mark.parametrize('extra', [(), ('--TRAIN_DEVICE_BATCH_SIZE', 2), ('--MODEL_CLASSIFIER_SHARDED', True)])
def test_weights_do_not_depend_on_ranks(scripts, products, tmp_path, extra):
    options = options_of(products, *NO_BATCHNORM, '--TRAIN_EMA_DECAY', 0.9, '--OPTIMIZER_CLIP_NORM', 1.0)
    one, two = tmp_path / 'one', tmp_path / 'two'
    one.mkdir()
    two.mkdir()
    scripts.run(one, 'main.py', *options)
    run_ranks_of(scripts, 2, two, 'main.py', *options, *extra)
    expected, found = (read_checkpoint(folder / 'log' / 'run' / 'last.pth') for folder in (one, two))
    for name in ('state_dict', 'training_state'):
        # Sums in another order, over a dozen steps.
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-3, atol=1e-4)
    for line, other in zip(metrics_of(one / 'log' / 'run'), metrics_of(two / 'log' / 'run'), strict=True):
        assert line['top1'] == other['top1']
        assert line['loss'] == pytest.approx(other['loss'], rel=1e-4)


def test_three_ranks_save_two_go_on_one_predicts(scripts, products, tmp_path):
    options = options_of(products, '--MODEL_CLASSIFIER_SHARDED', True, '--TRAIN_EMA_DECAY', 0.9)
    run_ranks_of(scripts, 3, tmp_path, 'main.py', *options)
    run = tmp_path / 'log' / 'run'
    before = read_checkpoint(run / 'last.pth')
    assert before.state_dict['classifier.weight'].shape[0] == 6
    assert not any('classifier' in name for name in torch.load(run / 'last.pth', weights_only=True)['state_dict'])
    run_ranks_of(scripts, 2, tmp_path, 'main.py', *options, *LAST, '--TRAIN_MAX_EPOCH', 3)
    after = read_checkpoint(run / 'last.pth')
    assert (before.place.epoch, after.place.epoch) == (2, 3)
    # Whatever no checkpoint needs any more is gone.
    heads = {read_checkpoint(run / name, with_rows=False).head_folder.name for name in ('last.pth', 'best_model.pth')}
    assert {path.name for path in run.glob('head-*')} == heads
    scripts.run(tmp_path, 'test.py', '--RESUME_MODEL', run / 'best_model.pth', '--DATASET_ROOT', products, *ON_CPU)
    assert len(columns(run / 'best_model.csv')) == 6
    # One process with the whole classifier goes on from the parts, too.
    whole = ('--MODEL_CLASSIFIER_SHARDED', False, '--TRAIN_MAX_EPOCH', 4)
    done = scripts.run(tmp_path, 'main.py', *options, *LAST, *whole)
    assert 'going on' in done.stdout
    assert 'another recipe' not in done.stdout


@pytest.mark.parametrize(('target', 'count'), [('lib.trainer.step:_step', 3), ('lib.evaluation.evaluate:_look', 1)])
def test_a_rank_that_fails_ends_all(scripts, products, tmp_path, target, count):
    """The other one is in a collective then, or soon will be."""
    started = time.monotonic()
    running = start_ranks(scripts, 2, tmp_path, 'tests/scripts/fail_on_rank.py', 1, target, count,
                          REPOSITORY / 'main.py', *options_of(products))  # fmt: skip
    main, other = (one.wait(2) for one in running)
    assert other.stderr == 'error: rank 1: this rank fails\n'
    assert main.stderr == 'error: rank 0: another rank has ended, so this one does too; its own line says why\n'
    assert time.monotonic() - started < 30


def test_preemption_of_all_ranks(scripts, products, tmp_path):
    """Each is told at a step of its own; all stop after the same one."""
    running = start_ranks(scripts, 2, tmp_path, 'main.py', *options_of(products, '--TRAIN_MAX_EPOCH', 1000))
    running[0].wait_for('epoch 2, step 1 of')
    os.kill(running[1].process, signal.SIGTERM)
    time.sleep(0.05)
    os.kill(running[0].process, signal.SIGTERM)
    main, _ = (one.wait(143) for one in running)
    assert 'stopped and saved' in main.stdout
    done = scripts.run(tmp_path, 'main.py', *options_of(products, *LAST, '--TRAIN_MAX_EPOCH', 3), code=None)
    assert 'going on from log/run/last.pth' in done.stdout or 'epochs are done' in done.stdout + done.stderr


@pytest.mark.slow
def test_torchrun_itself(products, tmp_path):
    """The command of the README, with a rank that fails: torchrun tells its reason, and ends at once."""
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2']
    options = map(str, options_of(products))
    environment = os.environ | ENVIRONMENT
    main = [*command, str(REPOSITORY / 'main.py'), *options]
    done = subprocess.run(main, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'log' / 'run' / 'report.html').exists()
    again = subprocess.run(main, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert again.returncode
    assert 'error: rank 0: log/run holds the checkpoints of an earlier run' in again.stderr
