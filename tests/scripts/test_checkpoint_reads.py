"""A command reads each checkpoint file once."""

import shutil
from collections import Counter

import pytest

from tests.scripts.running import ON_CPU, REPOSITORY

BEST, LAST = 'log/tiny/best_model.pth', 'log/tiny/last.pth'


def reads(scripts, folder, script, *options) -> dict[str, int]:
    """Return {path: number of reads} of a command."""
    log = folder / 'reads.txt'
    scripts.run(folder, 'tests/scripts/count_reads.py', log, REPOSITORY / script, *options, *ON_CPU)
    return dict(Counter(log.read_text().splitlines()))


@pytest.mark.parametrize('script', ['test.py', 'tau_norm.py', 'tools/report.py'])
def test_a_command_with_a_trained_model(scripts, run_folder, script):
    assert reads(scripts, run_folder, script, '--RESUME_MODEL', BEST) == {BEST: 1}


def test_the_last_checkpoint_of_a_run(scripts, run_folder):
    assert reads(scripts, run_folder, 'test.py', '--RESUME_MODEL', 'last', '--NAME', 'tiny') == {LAST: 1}


@pytest.mark.parametrize('resume_model', ['last', LAST])
def test_resuming(scripts, run_folder, resume_model):
    # best_model.pth is opened to see whether it is of the selected epoch, last.pth again to see, under the lock of the
    # folder, whether another run has saved since; neither is read as a whole.
    options = ('--NAME', 'tiny', '--RESUME_MODEL', resume_model, '--TRAIN_MAX_EPOCH', 3)
    assert reads(scripts, run_folder, 'main.py', *options) == {LAST: 2, BEST: 1}


def test_fine_tuning(scripts, run_folder):
    options = ('--RESUME_MODE', 'finetune', '--RESUME_MODEL', BEST, '--TRAIN_MAX_EPOCH', 1)
    assert reads(scripts, run_folder, 'main.py', *options) == {BEST: 1}


def test_exported_weights(scripts, run_folder):
    scripts.run(run_folder, 'tools/export.py', '--RESUME_MODEL', BEST, '--EXPORT_FORMAT', 'safetensors', *ON_CPU)
    exported = 'log/tiny/best_model.safetensors'
    assert reads(scripts, run_folder, 'test.py', '--RESUME_MODEL', exported) == {exported: 1}


def test_an_ensemble_reads_each_member_once(scripts, run_folder):
    shutil.copytree(run_folder / 'log' / 'tiny', run_folder / 'log' / 'other')
    other = 'log/other/best_model.pth'
    options = ('--RESUME_MODEL', BEST, '--TEST_ENSEMBLE', f'{other},{LAST}')
    assert reads(scripts, run_folder, 'test.py', *options) == {BEST: 1, other: 1, LAST: 1}


def test_comparing_models_reads_each_once(scripts, run_folder):
    assert reads(scripts, run_folder, 'tools/compare.py', BEST, LAST) == {BEST: 1, LAST: 1}
