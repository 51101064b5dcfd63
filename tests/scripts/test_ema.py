"""The EMA of the weights, and all other options of a step, through a whole run."""

import json
from dataclasses import replace

import pytest
import torch

from lib.trainer.checkpointing.io import read_checkpoint, write_checkpoint
from tests.scripts.running import ON_CPU, REPOSITORY, TINY, check_same_run, metrics_of

DECAY = 0.8
EVERYTHING = (
    '--TRAIN_EMA_DECAY', DECAY, '--TRAIN_DEVICE_BATCH_SIZE', 4, '--OPTIMIZER_CLIP_NORM', 0.5, '--LOSS_CHUNK_IMAGES', 3,
    '--OPTIMIZER_LAYER_DECAY', 0.9, '--RUN_PRECISION', 'float16', '--MIX_TYPE', 'mixup', '--OPTIMIZER_TYPE', 'adamw',
    '--OPTIMIZER_LR', 0.001,
)  # fmt: skip


@pytest.fixture
def options(products):
    return ('--config', TINY, '--DATASET_ROOT', products, '--NAME', 'run', '--SEED', 2)


def test_the_ema_of_all_steps(scripts, options, tmp_path):
    """decay^t w(0) + (1 - decay) sum_i decay^(t - i) w(i), of the recorded weights w(i)."""
    states = tmp_path / 'states.pt'
    record = REPOSITORY / 'tests' / 'scripts' / 'record_weights.py'
    scripts.run(tmp_path, record, states, REPOSITORY / 'main.py', *options, '--TRAIN_EMA_DECAY', DECAY)
    first, *recorded = torch.load(states, weights_only=True)
    assert len(recorded) == 12
    checkpoint = read_checkpoint(tmp_path / 'log' / 'run' / 'last.pth')
    torch.testing.assert_close(checkpoint.training_state, recorded[-1], rtol=0, atol=0)
    for name, start in first.items():
        if not start.is_floating_point():
            assert torch.equal(checkpoint.state_dict[name], recorded[-1][name])
            continue
        expected = DECAY ** len(recorded) * start.double()
        for i, state in enumerate(recorded, start=1):
            expected += (1 - DECAY) * DECAY ** (len(recorded) - i) * state[name].double()
        torch.testing.assert_close(checkpoint.state_dict[name].double(), expected, rtol=1e-5, atol=1e-6)
    moved = checkpoint.state_dict['classifier.weight'] - recorded[-1]['classifier.weight']
    assert moved.abs().max() > 1e-3, 'the EMA would be equal to the weights'


def test_everything_resumes(scripts, options, tmp_path):
    """EMA, scaler, micro-batches, clipping, layer decay and chunks: stopped within an epoch, bit for bit the same."""
    whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
    for folder in (whole, stopped):
        folder.mkdir()
    scripts.run(whole, 'main.py', *options, *EVERYTHING)
    scripts.run_until(stopped, 'SIGTERM', 'lib.trainer.step:TrainStep.__call__', 4, *options, *EVERYTHING, code=143)
    scripts.run(stopped, 'main.py', *options, *EVERYTHING, '--RESUME_MODEL', 'last')
    run, other = stopped / 'log' / 'run', whole / 'log' / 'run'
    check_same_run(run, other)
    one, two = (read_checkpoint(folder / 'last.pth') for folder in (run, other))
    assert one.scaler == two.scaler
    assert one.scaler['scale'] > 1
    torch.testing.assert_close(one.training_state, two.training_state, rtol=0, atol=0)


def test_validation_and_prediction_use_the_ema(scripts, options, products, tmp_path):
    """The metrics of the weights themselves differ."""
    scripts.run(tmp_path, 'main.py', *options, '--TRAIN_EMA_DECAY', DECAY)
    run = tmp_path / 'log' / 'run'
    valid = {line['epoch']: line for line in metrics_of(run) if line['split'] == 'valid'}
    last = read_checkpoint(run / 'last.pth')
    write_checkpoint(run / 'trained.pth', replace(last, state_dict=last.training_state, training_state=None))
    on_valid = ('--DATASET_ROOT', products, '--DATASET_TEST_JSON', products / 'converted_val.json', *ON_CPU)
    found = {}
    for name in ('last', 'best_model', 'trained'):
        scripts.run(tmp_path, 'test.py', '--RESUME_MODEL', run / f'{name}.pth', *on_valid)
        stem = ('' if name == 'best_model' else f'{name}_') + 'predictions_converted_val'
        found[name] = json.loads((run / f'{stem}.metrics.json').read_text())
    for name, epoch in (('last', 2), ('best_model', last.selection.selected_epoch)):
        assert found[name]['loss'] == pytest.approx(valid[epoch]['loss'], rel=1e-5)
        assert found[name]['top1'] == valid[epoch]['top1']
        assert found[name]['mean_class_error'] == valid[epoch]['mean_class_error']
    assert found['trained']['loss'] != pytest.approx(valid[2]['loss'], rel=1e-3)
