"""Auxiliary losses as a user runs them: contrast and distillation."""

import json

import torch

from lib.trainer.checkpointing.io import read_checkpoint
from tests.scripts.running import ON_CPU, TINY, error_line, selected_metrics

CONTRAST = ('--LOSS_AUXILIARY', 'balanced_contrastive', '--LOSS_CONTRAST_WIDTH', 16)


def test_contrast(scripts, products, tmp_path):
    new = ('--config', TINY, '--DATASET_ROOT', products, '--NAME', 'bcl')
    scripts.run(tmp_path, 'main.py', *new, *CONTRAST)
    path = tmp_path / 'log' / 'bcl' / 'best_model.pth'
    trained = read_checkpoint(path).state_dict
    projector = {key: value for key, value in trained.items() if key.startswith('projector.')}
    assert len([key for key in projector if key.endswith('weight')]) == 6
    again = ('--RESUME_MODEL', 'log/bcl/best_model.pth', *ON_CPU)
    # Prediction and re-balancing read the architecture from the checkpoint, and ignore the projector.
    valid = ('--DATASET_TEST_JSON', products / 'converted_val.json')
    scripts.run(tmp_path, 'test.py', *again, *valid)
    metrics = json.loads((path.parent / 'predictions_converted_val.metrics.json').read_text())
    assert metrics['mean_class_error'] == selected_metrics(path.parent)['mean_class_error']
    scripts.run(tmp_path, 'tau_norm.py', *again)
    balanced = read_checkpoint(tmp_path / 'log_tau' / 'bcl' / 'best_model.pth').state_dict
    assert all(torch.equal(balanced[key], value) for key, value in projector.items())
    # Fine-tuning without the loss drops it.
    plain = ('--LOSS_AUXILIARY', '', '--TRAIN_MAX_EPOCH', 1, '--OPTIMIZER_LR', 0)
    scripts.run(tmp_path, 'main.py', *again, *plain)
    tuned = read_checkpoint(tmp_path / 'log' / 'bcl_finetune' / 'best_model.pth').state_dict
    assert set(tuned) == set(trained) - set(projector)
    assert torch.equal(tuned['classifier.weight'], trained['classifier.weight'])


def test_contrast_after_a_first_stage_without(scripts, products, run_folder):
    first = ('--RESUME_MODEL', 'log/tiny/best_model.pth', '--TRAIN_MAX_EPOCH', 1, *ON_CPU)
    scripts.run(run_folder, 'main.py', *first, *CONTRAST)
    state = read_checkpoint(run_folder / 'log' / 'tiny_finetune' / 'best_model.pth').state_dict
    assert state['projector.rows.3.weight'].shape[0] == 16
    # The step ran through both perceptrons: BatchNorm has counted a batch in each.
    for name in ('features', 'rows'):
        assert state[f'projector.{name}.1.num_batches_tracked'] > 0


def test_a_teacher(scripts, products, run_folder):
    new = ('--config', TINY, '--DATASET_ROOT', products, '--NAME', 'student', '--TRAIN_MAX_EPOCH', 1)
    taught = (*new, '--LOSS_AUXILIARY', 'distillation', '--LOSS_TEACHER', 'log/tiny/best_model.pth')
    before = (run_folder / 'log' / 'tiny' / 'best_model.pth').read_bytes()
    done = scripts.run(run_folder, 'main.py', *taught)
    assert 'teacher: log/tiny/best_model.pth, test_resnet' in done.stdout
    state = read_checkpoint(run_folder / 'log' / 'student' / 'last.pth').state_dict
    assert set(state) == set(read_checkpoint(run_folder / 'log' / 'tiny' / 'last.pth').state_dict)
    assert (run_folder / 'log' / 'tiny' / 'best_model.pth').read_bytes() == before
    wrong = (*taught[:-1], 'log/none.pth', '--NAME', 'other')
    assert 'LOSS.TEACHER log/none.pth: no such file' in error_line(scripts.run(run_folder, 'main.py', *wrong, code=2))
    assert not (run_folder / 'log' / 'other').exists()
