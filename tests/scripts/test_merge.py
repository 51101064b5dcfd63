"""tools/merge.py as a user runs it: what it writes is an ordinary checkpoint in every use."""

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from lib.trainer.checkpointing.sharded import ClassifierShard
from lib.trainer.checkpointing.io import read_checkpoint, write_checkpoint
from lib.trainer.run_folder import RunFolder
from tests.scripts.rank_runs import run_ranks_of
from tests.scripts.running import ON_CPU, REPOSITORY, TINY, check_same_run, contents, the_error
from tests.trainer.small import small_checkpoint

MERGE = 'tools/merge.py'
BEST = ('--RESUME_MODEL', 'log/run/best_model.pth')


@pytest.fixture(scope='module')
def options(products):
    return ('--config', TINY, '--DATASET_ROOT', products, '--NAME', 'run', '--MODEL_CLASSIFIER_SHARDED', True,
            '--TRAIN_EMA_DECAY', 0.9)  # fmt: skip


@pytest.fixture(scope='module')
def finished_in_parts(scripts, options, tmp_path_factory):
    """A run of three ranks: not to be changed."""
    folder = tmp_path_factory.mktemp('parts')
    run_ranks_of(scripts, 3, folder, 'main.py', *options)
    return folder


@pytest.fixture
def in_parts(finished_in_parts, tmp_path):
    """A copy of it of the test's own."""
    shutil.copytree(finished_in_parts / 'log', tmp_path / 'log')
    return tmp_path


def test_all_is_in_one_file(scripts, in_parts):
    run = in_parts / 'log' / 'run'
    before = contents(in_parts)
    said = scripts.run(in_parts, MERGE, '--RESUME_MODEL', 'log/run/last.pth').stdout
    assert 'log/run/last.pth: 6 classes, their rows from log/run/head-2-0' in said
    assert 'wrote log/run/last_merged.pth' in said
    after = contents(in_parts)
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
    for name in expected.keys() - {'state_dict', 'training_state_dict', 'optimizer', 'head'}:
        values = merged[name], expected[name]
        if name == 'class_counts':
            torch.testing.assert_close(*values, rtol=0, atol=0)
        elif name == 'rng':
            assert torch.equal(values[0]['torch'], values[1]['torch'])
        else:
            assert values[0] == values[1], name


def test_it_predicts_and_is_rebalanced_alike(scripts, products, in_parts):
    """In another folder, without the parts, by one process and by two."""
    scripts.run(in_parts, MERGE, *BEST, '--output', 'handed_on/best_model.pth')
    valid = ('--DATASET_ROOT', products, '--DATASET_TEST_JSON', products / 'converted_val.json', *ON_CPU)
    scripts.run(in_parts, 'test.py', *BEST, *valid, '--TEST_EMBEDDINGS', True)
    scripts.run(in_parts, 'tau_norm.py', *BEST, *valid)
    run, other = in_parts / 'log' / 'run', in_parts / 'log' / 'other'
    expected = [(run / name).read_bytes() for name in ('best_model.csv', 'best_model_features.npy')]
    merged = ('--RESUME_MODEL', 'handed_on/best_model.pth', '--NAME', 'other', *valid)
    scripts.run(in_parts, 'test.py', *merged, '--TEST_EMBEDDINGS', True)
    assert [(other / name).read_bytes() for name in ('best_model.csv', 'best_model_features.npy')] == expected
    metrics = [json.loads((folder / 'best_model_metrics.json').read_text()) for folder in (run, other)]
    assert metrics[0] == metrics[1]
    run_ranks_of(scripts, 2, in_parts, 'test.py', *merged)
    assert (other / 'best_model.csv').read_bytes() == expected[0]
    scripts.run(in_parts, 'tau_norm.py', *merged)
    tau = [json.loads((in_parts / 'log_tau' / name / 'tau.json').read_text()) for name in ('run', 'other')]
    assert tau[0] == tau[1]


@pytest.mark.parametrize('count', [1, 2])
def test_it_goes_on_as_the_parts_do(scripts, options, in_parts, count):
    """Bit for bit: weights, average and the state of the optimiser, whole or in parts again."""
    scripts.run(in_parts, MERGE, '--RESUME_MODEL', 'log/run/last.pth', '--output', 'handed_on.pth')
    on = (*options, '--TRAIN_MAX_EPOCH', 3)
    ways = {'parts': 'log/run/last.pth', 'merged': 'handed_on.pth'}
    for name, path in ways.items():
        done = run_ranks_of(scripts, count, in_parts, 'main.py', *on, '--NAME', name, '--RESUME_MODEL', path)
        assert f'going on from {path}, 2 epochs' in done[0].stdout
    parts, merged = (in_parts / 'log' / name for name in ways)
    check_same_run(merged, parts, ['last.pth'])
    states = [read_checkpoint(folder / 'last.pth').training_state for folder in (parts, merged)]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def test_it_is_fine_tuned_from(scripts, options, products, in_parts):
    scripts.run(in_parts, MERGE, *BEST)
    tuned = ('--RESUME_MODEL', 'log/run/best_model_merged.pth', '--RESUME_MODE', 'finetune', '--TRAIN_MAX_EPOCH', 0)
    done = scripts.run(in_parts, 'main.py', '--DATASET_ROOT', products, *tuned, *ON_CPU)
    assert 'fine-tuning from log/run/best_model_merged.pth into log/run_finetune' in done.stdout
    states = [
        read_checkpoint(in_parts / 'log' / name).state_dict for name in ('run/best_model.pth', 'run_finetune/last.pth')
    ]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def test_the_run_goes_on_beside_it(scripts, options, in_parts):
    """It is a checkpoint among the others of its folder; only the parts that one refers to are kept."""
    run = in_parts / 'log' / 'run'
    scripts.run(in_parts, MERGE, *BEST)
    (run / 'notes.pth').write_bytes(b'no checkpoint')
    run_ranks_of(scripts, 2, in_parts, 'main.py', *options, '--RESUME_MODEL', 'last', '--TRAIN_MAX_EPOCH', 3)
    heads = {read_checkpoint(run / name, with_rows=False).shard_folder.name for name in ('last.pth', 'best_model.pth')}
    assert {path.name for path in run.glob('head-*')} == heads
    assert read_checkpoint(run / 'best_model_merged.pth').num_classes == 6


def test_nothing_is_overwritten(scripts, in_parts):
    run = in_parts / 'log' / 'run'
    scripts.run(in_parts, MERGE, *BEST)
    merged = run / 'best_model_merged.pth'
    whole = merged.read_bytes()
    merged.write_bytes(b'mine')
    line = the_error(scripts.run(in_parts, MERGE, *BEST, code=2))
    assert 'log/run/best_model_merged.pth is there already: --OVERWRITE True' in line
    assert merged.read_bytes() == b'mine'
    scripts.run(in_parts, MERGE, *BEST, '--OVERWRITE', True)
    assert torch.load(merged, weights_only=True).keys() == read_keys(whole, in_parts / 'again.pth')
    # Over the one it is made of, too.
    scripts.run(in_parts, MERGE, *BEST, '--output', run / 'best_model.pth', '--OVERWRITE', True)
    assert read_checkpoint(run / 'best_model.pth', with_rows=False).shard_folder is None


def read_keys(content, path):
    path.write_bytes(content)
    return torch.load(path, weights_only=True).keys()


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (('--RESUME_MODEL', 'ordinary.pth'), 'ordinary.pth: is an ordinary checkpoint already'),
        (('--RESUME_MODEL', 'none.pth'), 'none.pth: no such file; there are'),
        (('--RESUME_MODEL', 'text.pth'), 'text.pth: '),
        ((), 'required: --RESUME_MODEL'),
        ((*BEST, '--output', 'log'), '--output log: is a folder'),
        ((*BEST, '--overwrite', 'True'), 'unrecognized arguments: --overwrite'),
        ((*BEST, '--OVERWRITE', 'maybe'), "--OVERWRITE is 'maybe', but must be True or False"),
    ],
)
def test_mistakes(scripts, in_parts, arguments, words):
    write_checkpoint(in_parts / 'ordinary.pth', small_checkpoint())
    (in_parts / 'text.pth').write_text('no checkpoint')
    before = contents(in_parts)
    assert words in the_error(scripts.run(in_parts, MERGE, *arguments, code=2))
    assert contents(in_parts) == before


@pytest.mark.parametrize('damage', ['folder', 'part', 'cut'])
def test_parts_that_are_missing(scripts, in_parts, damage):
    run = in_parts / 'log' / 'run'
    head = read_checkpoint(run / 'best_model.pth', with_rows=False).shard_folder
    part = next(head.glob('*-00002-of-*'))
    if damage == 'folder':
        head.rename(in_parts / 'elsewhere')
    elif damage == 'part':
        part.unlink()
    else:
        part.write_bytes(part.read_bytes()[:-8])
    before = contents(in_parts)
    line = the_error(scripts.run(in_parts, MERGE, *BEST, code=2))
    assert str(head.relative_to(in_parts)) in line
    assert contents(in_parts) == before


@pytest.mark.skipif(sys.platform != 'linux', reason='only Linux bounds the memory that data takes')
def test_memory_holds_the_rows_once(scripts, tmp_path):
    """160 MB of rows by eight ranks, in the memory of one and a half: one copy, one file, what else there is."""
    num_classes, width = 200_000, 200
    rows = {'classifier.weight': torch.arange(num_classes * width, dtype=torch.float32).view(num_classes, width)}
    checkpoint = small_checkpoint()
    checkpoint.training_set.class_counts = np.ones(num_classes, np.int64)
    for rank in reversed(range(8)):
        classes = range(rank * num_classes // 8, (rank + 1) * num_classes // 8)
        part = {name: tensor[classes.start : classes.stop] for name, tensor in rows.items()}
        head = ClassifierShard(part, classes, num_classes, rank, 8)
        optimizer = {**checkpoint.optimizer, 'rows': {}}
        state = {'backbone.weight': torch.ones(2)}
        RunFolder(tmp_path, writes=rank == 0).save(
            replace(checkpoint, state_dict=state, optimizer=optimizer, head=head)
        )
    megabytes = 1.5 * rows['classifier.weight'].nbytes / 1e6
    limited = ('lib.commands.merge', megabytes, REPOSITORY / MERGE, '--RESUME_MODEL', 'last.pth')
    scripts.run(tmp_path, 'tests/scripts/limit_memory.py', *limited)
    merged = read_checkpoint(tmp_path / 'last_merged.pth').state_dict
    torch.testing.assert_close(merged['classifier.weight'], rows['classifier.weight'], rtol=0, atol=0)
    # The bound is one: half of it is too little.
    limited = ('lib.commands.merge', megabytes / 2, *limited[2:], '--OVERWRITE', True)
    assert 'out of memory' in the_error(scripts.run(tmp_path, 'tests/scripts/limit_memory.py', *limited, code=2))
