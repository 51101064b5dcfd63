"""The scripts on several ranks: the same images, the same results, and output from one rank."""

import json
import os
import shutil
import signal
import time

import numpy as np
import pytest
import torch

from lib.trainer.checkpointing.io import read_checkpoint
from tests.scripts.rank_runs import run_ranks_of, start_ranks
from tests.scripts.running import ON_CPU, REPOSITORY, TINY, check_same_run, metrics_of

LAST = ('--RESUME_MODEL', 'last')
BACKBONE_SHARDED = ('--MODEL_BACKBONE_SHARDED', True)
SHARDED = ('--MODEL_CLASSIFIER_SHARDED', True, '--TRAIN_EMA_DECAY', 0.9)
# LayerNorm: the normalization of an image does not depend on the other images of its rank.
NO_BATCHNORM = ('--MODEL_BACKBONE', 'test_vit', '--INPUT_SIZE', 160, '--INPUT_SCALE', '0.9,1')


def options_of(products, *options):
    return ('--config', TINY, '--DATASET_ROOT', products, '--NAME', 'run', *options)


def some_of(products, path, num_images, *more):
    """Write annotations of the first validation images, and of more files that may not exist."""
    content = json.loads((products / 'converted_val.json').read_text())
    entries = [{**entry, 'fpath': str(products / entry['fpath'])} for entry in content['annotations'][:num_images]]
    entries += [{'category_id': 0, 'fpath': str(file)} for file in more]
    path.write_text(json.dumps({**content, 'annotations': entries}))
    return path


def check_metrics(found, expected):
    """Counts and metrics from counts are exact; losses and confidences are summed in another order."""
    if isinstance(found, dict):
        assert found.keys() == expected.keys()
        for name, value in found.items():
            if name in ('loss', 'balanced_loss', 'ece', 'confidence'):
                assert value == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name
            elif name not in ('epoch', 'split', 'lr', 'seconds') and not name.endswith('_second'):
                check_metrics(value, expected[name])
    elif isinstance(found, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            check_metrics(one, other)
    else:
        assert found == expected


@pytest.fixture(scope='module')
def on_two(scripts, products, tmp_path_factory):
    """A run on two ranks, and the outputs of both."""
    folder = tmp_path_factory.mktemp('two')
    return folder, run_ranks_of(scripts, 2, folder, 'main.py', *options_of(products))


def test_one_rank_logs_and_writes(on_two):
    folder, (main, other) = on_two
    assert '2 ranks, each on cpu, float32' in main.stdout
    lines = main.stdout.splitlines()
    assert len(set(lines)) == len(lines)
    # Not even the process group's warning that it was not destroyed.
    assert main.stderr == other.stdout == other.stderr == ''
    assert [(line['epoch'], line['split']) for line in metrics_of(folder / 'log' / 'run')] == [
        (epoch, split) for epoch in (1, 2) for split in ('train', 'valid')
    ]


@pytest.mark.parametrize(('num_images', 'counts'), [(23, (2, 5)), (2, (3,))], ids=['uneven', 'fewer than ranks'])
def test_predictions_do_not_depend_on_ranks(scripts, products, on_two, tmp_path, num_images, counts):
    """With one undecodable file, which keeps its row."""
    run = tmp_path / 'log' / 'run'
    shutil.copytree(on_two[0] / 'log', tmp_path / 'log')
    (tmp_path / 'none.jpg').write_bytes(b'no image')
    test = some_of(products, tmp_path / 'test.json', num_images - 1, tmp_path / 'none.jpg')
    options = ('--RESUME_MODEL', run / 'best_model.pth', '--DATASET_ROOT', products, '--DATASET_TEST_JSON', test,
               '--TEST_TOP_K', 2, '--TEST_EMBEDDINGS', True, '--TEST_BATCH_SIZE', 4, *ON_CPU)  # fmt: skip

    def results():
        names = ('predictions_test.csv', 'predictions_test.top2.csv', 'bad_images.csv')
        texts = [(run / name).read_bytes() for name in names]
        metrics = json.loads((run / 'predictions_test.metrics.json').read_text())
        return texts, metrics, np.load(run / 'predictions_test.features.npy')

    alone = scripts.run(tmp_path, 'test.py', *options)
    expected, expected_metrics, expected_features = results()
    assert expected[0].count(b'\n') == num_images + 1
    assert expected[0].endswith(b',-1,,\n')
    for count in counts:
        main, *others = run_ranks_of(scripts, count, tmp_path, 'test.py', *options)
        found, metrics, features = results()
        assert found == expected
        check_metrics(metrics, expected_metrics)
        # All ranks have the batches of one process.
        np.testing.assert_array_equal(features, expected_features)
        assert main.stderr == alone.stderr
        assert main.stdout == alone.stdout
        assert {one.stdout + one.stderr for one in others} == {''}


def test_tau_does_not_depend_on_ranks(scripts, products, on_two):
    folder, _ = on_two
    options = ('--RESUME_MODEL', 'log/run/best_model.pth', '--DATASET_ROOT', products, *ON_CPU)
    scripts.run(folder, 'tau_norm.py', *options)
    expected = json.loads((folder / 'log_tau' / 'run' / 'tau.json').read_text())
    main, *others = run_ranks_of(scripts, 3, folder, 'tau_norm.py', *options, '--OVERWRITE', True)
    assert json.loads((folder / 'log_tau' / 'run' / 'tau.json').read_text()) == expected
    assert main.stdout.count('wrote log_tau/run/best_model.pth') == main.stdout.count('next steps') == 1
    assert main.stderr == ''
    assert {one.stdout + one.stderr for one in others} == {''}


@pytest.mark.parametrize('extra', [(), ('--MODEL_CLASSIFIER_SHARDED', True)], ids=['whole', 'sharded'])
def test_validation_where_a_rank_has_no_image(scripts, products, tmp_path, extra):
    """Two images for three ranks; the metrics equal those of one process."""
    valid = some_of(products, tmp_path / 'valid.json', 2)
    options = options_of(products, '--DATASET_VALID_JSON', valid, '--TRAIN_MAX_EPOCH', 1, *extra)
    run_ranks_of(scripts, 3, tmp_path, 'main.py', *options)
    run = tmp_path / 'log' / 'run'
    test = ('--RESUME_MODEL', run / 'last.pth', '--DATASET_ROOT', products, '--DATASET_TEST_JSON', valid, *ON_CPU)
    scripts.run(tmp_path, 'test.py', *test)
    found = json.loads((run / 'last_predictions_valid.metrics.json').read_text())
    line = metrics_of(run)[1]
    check_metrics(
        {name: line[name] for name in line if name in found}, {name: found[name] for name in line if name in found}
    )
    assert {'loss', 'top1', 'top5', 'mean_class_error', 'few'} <= line.keys() & found.keys()


@pytest.mark.parametrize(
    'extra',
    [
        (),
        pytest.param(('--TRAIN_DEVICE_BATCH_SIZE', 2), marks=pytest.mark.slow),
        ('--MODEL_CLASSIFIER_SHARDED', True),
        pytest.param((*BACKBONE_SHARDED, '--TRAIN_DEVICE_BATCH_SIZE', 2), marks=pytest.mark.slow),
        pytest.param((*BACKBONE_SHARDED, '--MODEL_CLASSIFIER_SHARDED', True), marks=pytest.mark.slow),
    ],
    ids=['at once', 'in parts', 'sharded', 'backbone sharded, in parts', 'both sharded'],
)
def test_weights_do_not_depend_on_ranks(scripts, products, tmp_path, extra):
    options = options_of(products, *NO_BATCHNORM, '--TRAIN_EMA_DECAY', 0.9, '--OPTIMIZER_CLIP_NORM', 1.0)
    one, two = tmp_path / 'one', tmp_path / 'two'
    one.mkdir()
    two.mkdir()
    scripts.run(one, 'main.py', *options)
    run_ranks_of(scripts, 2, two, 'main.py', *options, *extra)
    expected, found = (read_checkpoint(folder / 'log' / 'run' / 'last.pth') for folder in (one, two))
    for name in ('state_dict', 'training_state'):
        # Sums in another order, over a dozen steps; 6e-8 was observed.
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-5)
    for line, other in zip(metrics_of(one / 'log' / 'run'), metrics_of(two / 'log' / 'run'), strict=True):
        assert line['top1'] == other['top1']
        assert line['loss'] == pytest.approx(other['loss'], rel=1e-4)


def test_three_ranks_save_two_resume_one_predicts(scripts, products, tmp_path):
    options = options_of(products, *SHARDED)
    run_ranks_of(scripts, 3, tmp_path, 'main.py', *options)
    run = tmp_path / 'log' / 'run'
    before = read_checkpoint(run / 'last.pth')
    assert before.state_dict['classifier.weight'].shape[0] == 6
    assert not any('classifier' in name for name in torch.load(run / 'last.pth', weights_only=True)['state_dict'])
    run_ranks_of(scripts, 2, tmp_path, 'main.py', *options, *LAST, '--TRAIN_MAX_EPOCH', 3)
    after = read_checkpoint(run / 'last.pth')
    assert (before.progress.epoch, after.progress.epoch) == (2, 3)
    # Shards that no checkpoint refers to are removed.
    heads = {read_checkpoint(run / name, with_rows=False).shard_folder.name for name in ('last.pth', 'best_model.pth')}
    assert {path.name for path in run.glob('head-*')} == heads
    scripts.run(tmp_path, 'test.py', '--RESUME_MODEL', run / 'best_model.pth', '--DATASET_ROOT', products, *ON_CPU)
    assert (run / 'predictions_test.csv').read_text().count('\n') == 1 + 6
    # One process with the whole classifier resumes from the shards, too.
    whole = ('--MODEL_CLASSIFIER_SHARDED', False, '--TRAIN_MAX_EPOCH', 4)
    done = scripts.run(tmp_path, 'main.py', *options, *LAST, *whole)
    assert 'resuming' in done.stdout
    assert 'another recipe' not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize('more', [(), ('--OPTIMIZER_TYPE', 'adamw', '--OPTIMIZER_LR', 1e-3, *SHARDED)])
def test_any_ranks_resume_a_sharded_backbone(scripts, products, tmp_path, more):
    """Two ranks that are stopped within an epoch; then one process, or two ranks with the whole backbone, ends it."""
    options = options_of(products, *NO_BATCHNORM, '--TRAIN_EMA_DECAY', 0.9, '--OPTIMIZER_CLIP_NORM', 1.0, *more)
    alone, stopped = tmp_path / 'alone', tmp_path / 'stopped'
    for folder in (alone, stopped):
        folder.mkdir()
    scripts.run(alone, 'main.py', *options)
    expected = read_checkpoint(alone / 'log' / 'run' / 'last.pth')
    stop = ('SIGTERM', 'lib.trainer.step:TrainStep.__call__', 9, REPOSITORY / 'main.py', *options, *BACKBONE_SHARDED)
    run_ranks_of(scripts, 2, stopped, 'tests/scripts/raise_signal.py', *stop, code=143)
    for count, extra in ((1, ()), (2, ()), (2, BACKBONE_SHARDED), (3, BACKBONE_SHARDED)):
        resumed = tmp_path / f'{count} {len(extra)}'
        shutil.copytree(stopped, resumed)
        whole = extra or ('--MODEL_BACKBONE_SHARDED', False)
        main, *_ = run_ranks_of(scripts, count, resumed, 'main.py', *options, *whole, *LAST)
        assert 'another recipe' not in main.stdout
        found = read_checkpoint(resumed / 'log' / 'run' / 'last.pth')
        for name in ('state_dict', 'training_state'):
            # AdamW steps by the learning rate, 1e-3, also where a gradient is only rounding, as of the keys' bias.
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-4)
        for index, values in expected.optimizer['state'].items():
            torch.testing.assert_close(found.optimizer['state'][index], values, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_sharded_backbone_needs_ranks(scripts, products, tmp_path):
    done = scripts.run(tmp_path, 'main.py', *options_of(products, *BACKBONE_SHARDED), code=2)
    assert done.stderr.startswith('error: MODEL.BACKBONE_SHARDED True splits the backbone over the ranks of torchrun')
    assert done.stderr.count('\n') == 1


@pytest.mark.parametrize(
    'extra',
    [
        pytest.param((), marks=pytest.mark.slow),
        SHARDED,
        pytest.param(BACKBONE_SHARDED, marks=pytest.mark.slow),
        pytest.param((*SHARDED, *BACKBONE_SHARDED), marks=pytest.mark.slow),
    ],
    ids=['whole', 'sharded', 'backbone sharded', 'both sharded'],
)
def test_preempted_ranks_resume_bit_for_bit(scripts, products, tmp_path, extra):
    options = options_of(products, *extra)
    whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
    for folder in (whole, stopped):
        folder.mkdir()
    run_ranks_of(scripts, 2, whole, 'main.py', *options)
    # Within the second epoch.
    stop = ('SIGTERM', 'lib.trainer.step:TrainStep.__call__', 9, REPOSITORY / 'main.py', *options)
    main, other = run_ranks_of(scripts, 2, stopped, 'tests/scripts/raise_signal.py', *stop, code=143)
    assert main.stdout.count('stopped and saved') == 1
    assert main.stderr == other.stdout == other.stderr == ''
    epoch, step = read_checkpoint(stopped / 'log' / 'run' / 'last.pth').progress.position
    assert (epoch, step >= 3) == (1, True)
    run_ranks_of(scripts, 2, stopped, 'main.py', *options, *LAST)
    check_same_run(stopped / 'log' / 'run', whole / 'log' / 'run')


def test_ranks_that_are_signaled_one_after_another_stop_together(scripts, products, tmp_path):
    """As torchrun signals them: from outside, at any time."""
    running = start_ranks(scripts, 2, tmp_path, 'main.py', *options_of(products, '--TRAIN_MAX_EPOCH', 1000))
    running[0].wait_for('epoch 2, step 1 of')
    os.kill(running[1].process, signal.SIGTERM)
    time.sleep(0.05)
    os.kill(running[0].process, signal.SIGTERM)
    main, other = (one.wait(143) for one in running)
    assert main.stdout.count('stopped and saved') == 1
    assert main.stderr == other.stdout == other.stderr == ''
    assert read_checkpoint(tmp_path / 'log' / 'run' / 'last.pth').progress.epoch >= 1


@pytest.mark.slow
def test_no_rank_ends_before_the_run_is_saved(scripts, products, tmp_path):
    """Slurm and torchrun end the remaining ranks soon after the first one."""
    slow = (0, 0.1, 0, REPOSITORY / 'main.py', *options_of(products, '--TRAIN_MAX_EPOCH', 1000))
    main, other = start_ranks(scripts, 2, tmp_path, 'tests/scripts/in_phases.py', *slow)
    main.wait_for('epoch 2, step 1 of')
    for one in (main, other):
        os.kill(one.process, signal.SIGTERM)
    other.wait(143)
    assert 'stopped and saved' in main.stdout.read_text()
    main.wait(143)


def images_of(folder):
    """Return the images of each step, over all ranks, in order."""
    steps = {}
    for file in sorted(folder.iterdir()):
        for line in file.read_text().splitlines():
            step, label, digest = line.split()
            steps.setdefault(int(step), []).append((label, digest))
    return steps


@pytest.mark.parametrize(
    ('extra', 'num_workers'),
    [((), 0), pytest.param((), 1, marks=pytest.mark.slow), pytest.param(SHARDED, 1, marks=pytest.mark.slow)],
    ids=['whole', 'whole, workers', 'sharded, workers'],
)
def test_other_ranks_and_workers_get_the_same_images_next(scripts, products, tmp_path, extra, num_workers):
    """Two ranks that are stopped, then three with workers that are stopped, then one process to the end."""
    options = options_of(products, *extra)
    alone, together = tmp_path / 'alone', tmp_path / 'together'
    told, ranks_told = (folder / 'told' for folder in (alone, together))
    for folder in (told, ranks_told):
        folder.mkdir(parents=True)
    tell = REPOSITORY / 'tests' / 'scripts' / 'record_images.py'
    scripts.run(alone, tell, told, REPOSITORY / 'main.py', *options)
    expected, found = images_of(told), {}
    assert sorted(expected) == list(range(12))
    assert {len(images) for images in expected.values()} == {8}
    assert len({image for images in expected.values() for image in images}) == 12 * 8
    for count, workers, resume in ((2, 0, ()), (3, num_workers, LAST), (1, 0, LAST)):
        script = (tell, ranks_told, REPOSITORY / 'main.py', *options, '--RUN_NUM_WORKERS', workers, *resume)
        if count > 1:
            stop = ('tests/scripts/raise_signal.py', 'SIGTERM', 'lib.trainer.step:TrainStep.__call__', 3)
            run_ranks_of(scripts, count, together, *stop, *script, code=143)
        else:
            scripts.run(together, *script)
        for step, images in images_of(ranks_told).items():
            assert step not in found, 'a step was taken twice'
            found[step] = images
        for file in ranks_told.iterdir():
            file.unlink()
    assert found == expected


@pytest.mark.slow
def test_many_ranks_of_few_images_each(scripts, products, tmp_path):
    """Seven ranks for six images; all ranks refuse a batch that leaves a rank without images, in one line each."""
    run_ranks_of(scripts, 4, tmp_path, 'main.py', *options_of(products))
    started = time.monotonic()
    refused = run_ranks_of(scripts, 5, tmp_path, 'main.py', *options_of(products), '--NAME', 'other', code=2)
    assert time.monotonic() - started < 30
    for rank, one in enumerate(refused):
        assert one.stderr.startswith(
            f'error: rank {rank}: TRAIN.BATCH_SIZE: steps of 8 images leave some of the 5 ranks'
        )
        assert one.stderr.count('\n') == 1
    best = ('--RESUME_MODEL', 'log/run/best_model.pth', '--DATASET_ROOT', products, *ON_CPU)
    scripts.run(tmp_path, 'test.py', *best)
    csv = tmp_path / 'log' / 'run' / 'predictions_test.csv'
    expected = csv.read_bytes()
    run_ranks_of(scripts, 7, tmp_path, 'test.py', *best)
    assert csv.read_bytes() == expected
