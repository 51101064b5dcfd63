"""tools/merge.py as a user runs it: its result is an ordinary checkpoint in every use."""

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from lib.trainer.checkpointing.io import read_checkpoint, write_checkpoint
from lib.trainer.checkpointing.sharded import ClassifierShard
from lib.trainer.checkpointing.state import TrainingSet
from lib.trainer.run_folder import RunFolder
from tests.scripts.rank_runs import run_ranks_of
from tests.scripts.running import ON_CPU, REPOSITORY, TINY, check_same_run, contents, error_line
from tests.trainer.small import small_checkpoint

MERGE = 'tools/merge.py'
BEST = ('--RESUME_MODEL', 'log/run/best_model.pth')


@pytest.fixture(scope='module')
def options(products):
    return ('--config', TINY, '--DATASET_ROOT', products, '--NAME', 'run', '--MODEL_CLASSIFIER_SHARDED', True,
            '--TRAIN_EMA_DECAY', 0.9)  # fmt: skip


@pytest.fixture(scope='module')
def finished_sharded_run(scripts, options, tmp_path_factory):
    """Return the folder of a run of three ranks; read only."""
    folder = tmp_path_factory.mktemp('sharded')
    run_ranks_of(scripts, 3, folder, 'main.py', *options)
    return folder


@pytest.fixture
def sharded_run(finished_sharded_run, tmp_path):
    """Return a copy of the run for one test."""
    shutil.copytree(finished_sharded_run / 'log', tmp_path / 'log')
    return tmp_path


def test_merged_file_contains_everything(scripts, sharded_run):
    run = sharded_run / 'log' / 'run'
    before = contents(sharded_run)
    stdout = scripts.run(sharded_run, MERGE, '--RESUME_MODEL', 'log/run/last.pth').stdout
    assert 'log/run/last.pth: 6 classes, rows from log/run/head-2-0' in stdout
    assert 'wrote log/run/last_merged.pth' in stdout
    after = contents(sharded_run)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {'log/run/last_merged.pth'}
    shutil.rmtree(run / 'head-2-0')
    merged, expected = (torch.load(path, weights_only=True) for path in (run / 'last_merged.pth', run / 'last.pth'))
    assert merged['head'] is None
    assert merged['state_dict']['classifier.weight'].shape[0] == 6
    assert merged['training_state_dict'].keys() == merged['state_dict'].keys()
    assert 'rows' not in merged['optimizer']
    numbers = merged['optimizer']['param_groups'][0]['params'] + merged['optimizer']['param_groups'][-1]['params']
    assert merged['optimizer']['state'].keys() == set(numbers)
    scores = [one['selection'].pop('best_scores') for one in (merged, expected)]
    torch.testing.assert_close(*scores, rtol=0, atol=0)
    for name in expected.keys() - {'state_dict', 'training_state_dict', 'optimizer', 'head'}:
        values = merged[name], expected[name]
        if name == 'class_counts':
            torch.testing.assert_close(*values, rtol=0, atol=0)
        elif name == 'rng':
            assert torch.equal(values[0]['torch'], values[1]['torch'])
        else:
            assert values[0] == values[1], name


def test_predictions_and_tau_are_equal(scripts, products, sharded_run):
    """In another folder without the shards, by one process and by two."""
    scripts.run(sharded_run, MERGE, *BEST, '--output', 'exported/best_model.pth')
    valid = ('--DATASET_ROOT', products, '--DATASET_TEST_JSON', products / 'converted_val.json', *ON_CPU)
    scripts.run(sharded_run, 'test.py', *BEST, *valid, '--TEST_EMBEDDINGS', True)
    scripts.run(sharded_run, 'tau_norm.py', *BEST, *valid)
    run, other = sharded_run / 'log' / 'run', sharded_run / 'log' / 'other'
    expected = [
        (run / name).read_bytes()
        for name in ('predictions_converted_val.csv', 'predictions_converted_val.features.npy')
    ]
    merged = ('--RESUME_MODEL', 'exported/best_model.pth', '--NAME', 'other', *valid)
    scripts.run(sharded_run, 'test.py', *merged, '--TEST_EMBEDDINGS', True)
    assert [
        (other / name).read_bytes()
        for name in ('predictions_converted_val.csv', 'predictions_converted_val.features.npy')
    ] == expected
    metrics = [json.loads((folder / 'predictions_converted_val.metrics.json').read_text()) for folder in (run, other)]
    assert metrics[0] == metrics[1]
    run_ranks_of(scripts, 2, sharded_run, 'test.py', *merged)
    assert (other / 'predictions_converted_val.csv').read_bytes() == expected[0]
    scripts.run(sharded_run, 'tau_norm.py', *merged)
    tau = [json.loads((sharded_run / 'log_tau' / name / 'tau.json').read_text()) for name in ('run', 'other')]
    assert tau[0] == tau[1]


@pytest.mark.parametrize('count', [pytest.param(1, marks=pytest.mark.slow), 2])
def test_merged_and_sharded_runs_resume_identically(scripts, options, sharded_run, count):
    """Bit for bit: weights, EMA and optimizer state, by one rank or sharded again."""
    scripts.run(sharded_run, MERGE, '--RESUME_MODEL', 'log/run/last.pth', '--output', 'exported.pth')
    longer = (*options, '--TRAIN_MAX_EPOCH', 3)
    sources = {'sharded': 'log/run/last.pth', 'merged': 'exported.pth'}
    for name, path in sources.items():
        done = run_ranks_of(scripts, count, sharded_run, 'main.py', *longer, '--NAME', name, '--RESUME_MODEL', path)
        assert f'resuming from {path}, 2 epochs' in done[0].stdout
    sharded, merged = (sharded_run / 'log' / name for name in sources)
    # The rows of the best model stay in the first run's folder, so a sharded run selects again.
    check_same_run(merged, sharded, ['last.pth'], with_selection=False)
    states = [read_checkpoint(folder / 'last.pth').training_state for folder in (sharded, merged)]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def test_fine_tuning_from_a_merged_checkpoint(scripts, options, products, sharded_run):
    scripts.run(sharded_run, MERGE, *BEST)
    tuned = ('--RESUME_MODEL', 'log/run/best_model_merged.pth', '--RESUME_MODE', 'finetune', '--TRAIN_MAX_EPOCH', 0)
    done = scripts.run(sharded_run, 'main.py', '--DATASET_ROOT', products, *tuned, *ON_CPU)
    assert 'fine-tuning from log/run/best_model_merged.pth into log/run_finetune' in done.stdout
    states = [
        read_checkpoint(sharded_run / 'log' / name).state_dict
        for name in ('run/best_model.pth', 'run_finetune/last.pth')
    ]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def test_run_resumes_with_a_merged_checkpoint_in_its_folder(scripts, options, sharded_run):
    """The merged file stays; shard folders are kept only while a checkpoint refers to them."""
    run = sharded_run / 'log' / 'run'
    scripts.run(sharded_run, MERGE, *BEST)
    (run / 'notes.pth').write_bytes(b'no checkpoint')
    run_ranks_of(scripts, 2, sharded_run, 'main.py', *options, '--RESUME_MODEL', 'last', '--TRAIN_MAX_EPOCH', 3)
    shard_folders = {
        read_checkpoint(run / name, with_rows=False).shard_folder.name for name in ('last.pth', 'best_model.pth')
    }
    assert {path.name for path in run.glob('head-*')} == shard_folders
    assert read_checkpoint(run / 'best_model_merged.pth').num_classes == 6


def test_existing_files_are_not_overwritten(scripts, sharded_run):
    run = sharded_run / 'log' / 'run'
    scripts.run(sharded_run, MERGE, *BEST)
    merged = run / 'best_model_merged.pth'
    whole = merged.read_bytes()
    merged.write_bytes(b'mine')
    line = error_line(scripts.run(sharded_run, MERGE, *BEST, code=2))
    assert 'log/run/best_model_merged.pth exists already: set --OVERWRITE True' in line
    assert merged.read_bytes() == b'mine'
    scripts.run(sharded_run, MERGE, *BEST, '--OVERWRITE', True)
    assert torch.load(merged, weights_only=True).keys() == read_keys(whole, sharded_run / 'again.pth')
    # The input itself can be overwritten, too.
    scripts.run(sharded_run, MERGE, *BEST, '--output', run / 'best_model.pth', '--OVERWRITE', True)
    assert read_checkpoint(run / 'best_model.pth', with_rows=False).shard_folder is None


def read_keys(content, path):
    path.write_bytes(content)
    return torch.load(path, weights_only=True).keys()


@pytest.mark.parametrize(
    ('arguments', 'text'),
    [
        (('--RESUME_MODEL', 'ordinary.pth'), 'ordinary.pth: its classifier is not sharded'),
        (('--RESUME_MODEL', 'none.pth'), 'none.pth: no such file; there are'),
        (('--RESUME_MODEL', 'text.pth'), 'text.pth: '),
        ((), 'required: --RESUME_MODEL'),
        ((*BEST, '--output', 'log'), '--output log: is a folder'),
        ((*BEST, '--overwrite', 'True'), 'unrecognized arguments: --overwrite'),
        ((*BEST, '--OVERWRITE', 'maybe'), "--OVERWRITE is 'maybe', but must be True or False"),
    ],
)
def test_mistakes(scripts, sharded_run, arguments, text):
    write_checkpoint(sharded_run / 'ordinary.pth', small_checkpoint())
    (sharded_run / 'text.pth').write_text('no checkpoint')
    before = contents(sharded_run)
    assert text in error_line(scripts.run(sharded_run, MERGE, *arguments, code=2))
    assert contents(sharded_run) == before


@pytest.mark.parametrize('damage', ['folder', 'shard', 'cut'])
def test_missing_and_damaged_shards_raise(scripts, sharded_run, damage):
    run = sharded_run / 'log' / 'run'
    shard_folder = read_checkpoint(run / 'best_model.pth', with_rows=False).shard_folder
    shard = next(shard_folder.glob('*-00002-of-*'))
    if damage == 'folder':
        shard_folder.rename(sharded_run / 'elsewhere')
    elif damage == 'shard':
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-8])
    before = contents(sharded_run)
    line = error_line(scripts.run(sharded_run, MERGE, *BEST, code=2))
    assert str(shard_folder.relative_to(sharded_run)) in line
    assert contents(sharded_run) == before


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='only Linux bounds the memory that data takes')
def test_merge_needs_the_memory_of_the_rows_once(scripts, tmp_path):
    """160 MB of rows of eight ranks are merged in 1.5 times that memory, but not in 0.75 times."""
    num_classes, width = 200_000, 200
    rows = {'classifier.weight': torch.arange(num_classes * width, dtype=torch.float32).view(num_classes, width)}
    checkpoint = small_checkpoint()
    names = [str(label) for label in range(num_classes)]
    checkpoint.training_set = TrainingSet('digest', np.ones(num_classes, np.int64), names, [])
    for rank in reversed(range(8)):
        classes = range(rank * num_classes // 8, (rank + 1) * num_classes // 8)
        shard = {name: tensor[classes.start : classes.stop] for name, tensor in rows.items()}
        classifier_shard = ClassifierShard(shard, classes, num_classes, rank, 8)
        optimizer = {**checkpoint.optimizer, 'rows': {}}
        state = {'backbone.weight': torch.ones(2)}
        RunFolder(tmp_path, writes=rank == 0).save(
            replace(checkpoint, state_dict=state, optimizer=optimizer, classifier_shard=classifier_shard)
        )
    megabytes = 1.5 * rows['classifier.weight'].nbytes / 1e6
    limited = ('lib.commands.merge', megabytes, REPOSITORY / MERGE, '--RESUME_MODEL', 'last.pth')
    scripts.run(tmp_path, 'tests/scripts/limit_memory.py', *limited)
    merged = read_checkpoint(tmp_path / 'last_merged.pth').state_dict
    torch.testing.assert_close(merged['classifier.weight'], rows['classifier.weight'], rtol=0, atol=0)
    # The limit is effective: half of it is too little.
    limited = ('lib.commands.merge', megabytes / 2, *limited[2:], '--OVERWRITE', True)
    assert 'out of memory' in error_line(scripts.run(tmp_path, 'tests/scripts/limit_memory.py', *limited, code=2))
