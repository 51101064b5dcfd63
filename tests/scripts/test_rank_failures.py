"""A rank that fails ends the run: its message is reported, no rank hangs, and no file is left."""

import json
import shutil
import time

import pytest

from lib.runtime.folders import lock_folder
from lib.trainer.checkpointing.io import read_checkpoint
from tests.scripts.rank_runs import run_ranks_of
from tests.scripts.running import REPOSITORY, TINY

OTHERS = 'error: rank 0: rank 1 has ended, so this one ends, too; see the error line of that rank\n'
STEP, FEATURES = 'lib.trainer.step:TrainStep.__call__', 'lib.inference.engine:EagerEngine.features'
SHARDED = ('--MODEL_CLASSIFIER_SHARDED', True)
SECONDS = 30


def options_of(products, *options):
    return ('--config', TINY, '--DATASET_ROOT', products, '--NAME', 'run', *options)


def fail(scripts, folder, how, target, count, *options):
    """Return the outcomes of both ranks, of which the second fails."""
    started = time.monotonic()
    wrapped = (1, how, target, count, REPOSITORY / 'main.py', *options)
    done = run_ranks_of(scripts, 2, folder, 'tests/scripts/fail_on_rank.py', *wrapped, code=None)
    assert time.monotonic() - started < SECONDS
    return done


@pytest.mark.parametrize('extra', [(), SHARDED], ids=['whole', 'sharded'])
@pytest.mark.parametrize(('target', 'count'), [(STEP, 3), (FEATURES, 1), ('lib.dataset.pipeline:flip_images', 9)],
                         ids=['training', 'evaluation', 'reading'])  # fmt: skip
def test_an_error(scripts, products, tmp_path, target, count, extra):
    """The other rank is in a collective then, or soon will be."""
    if extra and target == FEATURES:
        target = 'lib.inference.engine:EagerEngine.logits'
    main, other = fail(scripts, tmp_path, 'error', target, count, *options_of(products, *extra))
    assert (main.returncode, other.returncode) == (2, 2)
    assert other.stderr == 'error: rank 1: this rank fails\n'
    assert main.stderr == OTHERS


def test_a_bug(scripts, products, tmp_path):
    main, other = fail(scripts, tmp_path, 'bug', STEP, 3, *options_of(products))
    assert other.returncode not in (0, 2)
    assert 'AssertionError: this cannot be' in other.stderr
    assert main.stderr == OTHERS


@pytest.mark.parametrize('extra', [(), SHARDED], ids=['whole', 'sharded'])
def test_a_kill(scripts, products, tmp_path, extra):
    """As the system does when memory runs out."""
    main, other = fail(scripts, tmp_path, 'kill', STEP, 9, *options_of(products, *extra))
    assert (main.returncode, other.returncode) == (2, -9)
    assert main.stderr.startswith('error: rank 0: rank 1 was killed (SIGKILL), ')
    assert main.stderr.count('\n') == 1
    assert read_checkpoint(tmp_path / 'log' / 'run' / 'last.pth').progress.position == (1, 0)


def test_a_worker(scripts, products, tmp_path):
    """A single undecodable image ends its rank, in a worker process."""
    content = json.loads((products / 'converted_train.json').read_text())
    root = tmp_path / 'products'
    shutil.copytree(products, root)
    broken = root / content['annotations'][20]['fpath']
    broken.write_bytes(broken.read_bytes()[:100])
    started = time.monotonic()
    options = options_of(root, '--RUN_NUM_WORKERS', 1, '--DATASET_ON_BAD_IMAGE', 'raise')
    done = run_ranks_of(scripts, 2, tmp_path, 'main.py', *options, code=2)
    assert time.monotonic() - started < SECONDS
    errors = [one.stderr for one in done]
    assert sum(broken.name in text for text in errors) == 1
    assert sum('see the error line of that rank' in text for text in errors) == 1
    assert [text.count('\n') for text in errors] == [1, 1]


def test_a_mistake_is_reported_by_all(scripts, products, tmp_path):
    """All ranks find it, before they join the process group."""
    done = run_ranks_of(scripts, 2, tmp_path, 'main.py', *options_of(products, '--LOSS_TYPE', 'none'), code=2)
    assert [one.stderr.partition('--LOSS_TYPE')[0] for one in done] == ['error: rank 0: ', 'error: rank 1: ']


def test_a_folder_in_use_is_found_by_the_main_rank(scripts, products, tmp_path):
    started = time.monotonic()
    with lock_folder(tmp_path / 'log' / 'run'):
        main, other = run_ranks_of(scripts, 2, tmp_path, 'main.py', *options_of(products, *SHARDED), code=2)
    assert time.monotonic() - started < SECONDS
    assert 'log/run is in use by another run' in main.stderr
    assert 'error: rank 1: ' in other.stderr


@pytest.mark.slow
def test_rows_that_cannot_be_saved(scripts, products, tmp_path):
    """The main rank waits for them for a few seconds; no partial checkpoint is written."""
    target = 'lib.trainer.checkpointing.sharded:write_shard'
    main, other = fail(scripts, tmp_path, 'error', target, 2, *options_of(products, *SHARDED, '--TRAIN_MAX_EPOCH', 9))
    assert (main.returncode, other.returncode) == (2, 2)
    assert other.stderr == 'error: rank 1: this rank fails\n'
    assert main.stderr.startswith('error: rank 0: ')
    assert main.stderr.count('\n') == 1
    assert read_checkpoint(tmp_path / 'log' / 'run' / 'last.pth').progress.position == (1, 0)
    # The shard that the main rank has written does no harm, and is removed later.
    run_ranks_of(scripts, 2, tmp_path, 'main.py', *options_of(products, *SHARDED), '--RESUME_MODEL', 'last')
    folders = {path.name for path in (tmp_path / 'log' / 'run').glob('head-*')}
    assert 'head-2-0' in folders <= {'head-1-0', 'head-2-0'}
