"""A tuned model through all scripts: its checkpoints lack the weights of the base, which all of them load again."""

import shutil

import numpy as np
import pytest
import timm
import torch

from lib.trainer.checkpointing.io import read_checkpoint
from tests.scripts.rank_runs import run_ranks_of
from tests.scripts.running import ON_CPU, TINY, check_same_run, error_line

STEP = 'lib.trainer.step:TrainStep.__call__'


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    """Weights of a ViT of 160 px."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp('base') / 'vit.pth'
    torch.save(timm.create_model('test_vit').state_dict(), path)
    return path


@pytest.fixture(scope='module')
def options(products, base):
    return (
        '--config', TINY, '--DATASET_ROOT', products, '--NAME', 'run', '--MODEL_BACKBONE', 'test_vit',
        '--MODEL_PRETRAINED', base, '--OPTIMIZER_TYPE', 'adamw', '--OPTIMIZER_LR', 0.002, '--MODEL_TUNE',
    )  # fmt: skip


@pytest.fixture(scope='module')
def finished_tuned(scripts, options, tmp_path_factory):
    """A folder with a run with LoRA and EMA; read-only."""
    folder = tmp_path_factory.mktemp('tuned')
    scripts.run(folder, 'main.py', *options, 'lora', '--TRAIN_EMA_DECAY', 0.8)
    return folder


@pytest.fixture
def tuned_run(finished_tuned, tmp_path):
    shutil.copytree(finished_tuned / 'log', tmp_path / 'log')
    return tmp_path


def embeddings(scripts, folder, path, *more):
    """Return the features that test.py computes with a checkpoint."""
    test = ('--TEST_EMBEDDINGS', True, '--TEST_CONTACT_SHEET', False, *ON_CPU)
    scripts.run(folder, 'test.py', '--RESUME_MODEL', path, *test, *more)
    (features,) = folder.rglob('*.npy')
    return np.load(features)


def test_an_interrupted_run_is_bit_identical(scripts, options, finished_tuned, tmp_path):
    """With EMA and AdamW: stopped within an epoch, then resumed from a checkpoint of the tuned part."""
    ema = ('--TRAIN_EMA_DECAY', 0.8)
    scripts.run_until(tmp_path, 'SIGTERM', STEP, 4, *options, 'lora', *ema, code=143)
    done = scripts.run(tmp_path, 'main.py', *options, 'lora', *ema, '--RESUME_MODEL', 'last')
    check_same_run(tmp_path / 'log' / 'run', finished_tuned / 'log' / 'run')
    assert 'MODEL.TUNE lora, rank 8: 43,398 of 343,494 parameters are trained (13%)' in done.stdout
    more = ('--TRAIN_MAX_EPOCH', 3, '--RESUME_MODEL', 'last')
    error = error_line(scripts.run(tmp_path, 'main.py', *options, 'ssf', *ema, *more, code=2))
    assert 'log/run/last.pth was trained with another MODEL.TUNE or MODEL.TUNE_RANK than MODEL.TUNE ssf: set' in error
    last = read_checkpoint(tmp_path / 'log' / 'run' / 'last.pth')
    assert last.base is not None
    assert last.state_dict.keys() == last.training_state.keys()
    assert all('lora' in name or name.startswith('classifier.') for name in last.state_dict)


def test_exported_files_predict_the_same(scripts, tuned_run, base):
    """The safetensors file has plain weights, which timm loads."""
    best = 'log/run/best_model.pth'
    expected = embeddings(scripts, tuned_run, best)
    scripts.run(tuned_run, 'tools/export.py', '--RESUME_MODEL', best, '--EXPORT_FORMAT', 'safetensors', *ON_CPU)
    base_away = base.rename(base.with_name('away.pth'))
    try:
        (tuned_run / 'other').mkdir()
        shutil.copy(tuned_run / 'log' / 'run' / 'best_model.safetensors', tuned_run / 'other' / 'model.safetensors')
        found = embeddings(scripts, tuned_run / 'other', 'model.safetensors')
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()))
        done = scripts.run(tuned_run, 'test.py', '--RESUME_MODEL', best, *ON_CPU, code=2)
        needs = 'contains only the weights that MODEL.TUNE trained, and needs those of its base: MODEL.PRETRAINED'
        assert f'{best} {needs} {base}: no such file' in error_line(done)
    finally:
        base_away.rename(base)
    state = read_checkpoint(tuned_run / 'log' / 'run' / 'best_model.safetensors').state_dict
    tuned = read_checkpoint(tuned_run / 'log' / 'run' / 'best_model.pth').state_dict
    assert torch.equal(state['classifier.weight'], tuned['classifier.weight'])
    backbone = {name[9:]: value for name, value in state.items() if name.startswith('backbone.')}
    timm.create_model('test_vit', num_classes=0, img_size=32).load_state_dict(backbone)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['adaptformer', 'lora', 'norm'])
def test_sharded_ranks(scripts, options, tmp_path, kind):
    """Two ranks with a sharded classifier, resumed by one process; tau_norm.py, merge and fine-tuning of the head."""
    sharded = (*options, kind, '--MODEL_CLASSIFIER_SHARDED', True, '--TRAIN_EMA_DECAY', 0.8)
    run_ranks_of(scripts, 2, tmp_path, 'main.py', *sharded)
    scripts.run(tmp_path, 'main.py', *sharded, '--TRAIN_MAX_EPOCH', 3, '--RESUME_MODEL', 'last')
    if kind == 'norm':
        bias = (*sharded, '--MODEL_TUNE', 'bias', '--TRAIN_MAX_EPOCH', 4, '--RESUME_MODEL', 'last')
        error = error_line(scripts.run(tmp_path, 'main.py', *bias, code=2))
        assert 'MODEL.TUNE or MODEL.FREEZE_BACKBONE; give these their former values' in error
    best = ('--RESUME_MODEL', 'log/run/best_model.pth')
    scripts.run(tmp_path, 'tau_norm.py', *best, *ON_CPU)
    balanced = read_checkpoint(tmp_path / 'log_tau' / 'run' / 'best_model.pth')
    assert balanced.base is not None
    scripts.run(tmp_path, 'test.py', '--RESUME_MODEL', 'log_tau/run/best_model.pth', *ON_CPU)
    if kind == 'adaptformer':
        done = scripts.run(tmp_path, 'main.py', *best, '--MODEL_TUNE', 'head', *ON_CPU, code=2)
        assert 'MODEL.TUNE adaptformer, which cannot be merged' in error_line(done)
    else:
        scripts.run(tmp_path, 'main.py', *best, '--MODEL_TUNE', 'head', '--TRAIN_MAX_EPOCH', 1, *ON_CPU)
        assert read_checkpoint(tmp_path / 'log' / 'run_finetune' / 'best_model.pth').base is None
