"""Every method of configs/method: two epochs on tiny data, with identical weights after an interruption."""

import pytest
import timm
import torch
import yaml

from lib.trainer.checkpointing.io import read_checkpoint
from tests.scripts.running import REPOSITORY, TINY, metrics_of
from tests.scripts.test_exact_resume import STEP

FOLDER = REPOSITORY / 'configs' / 'method'
METHODS = sorted(path.stem for path in FOLDER.glob('*.yaml'))
# One of each kind is not marked slow: class weights with a cosine classifier, paired images, feature mixing, a second
# stage, tuning of pretrained weights. Those of two views and of a teacher are in test_auxiliary.py.
ALWAYS = ('ldam_drw', 'cmo', 'manifold_mixup', 'mislas', 'lift')
NOT_TRAINED = ('ncm', 'tau_norm', 'linear_probe')  # the last one has one step per epoch: test_lbfgs.py
STAGE_TWO = ('crt', 'lws', 'mislas', 'weight_balancing')
STEPS = 6  # per epoch


def options_of(method, products, first):
    """Return the options of a run of two epochs; `first` is the checkpoint of a plain run."""
    config = FOLDER / f'{method}.yaml'
    options = ['--config', TINY, config, '--DATASET_ROOT', products, '--TRAIN_MAX_EPOCH', 2, '--NAME', 'run']
    # With six classes, the frequency of tail classes is higher than with thousands.
    if method == 'seql':
        options += ['--LOSS_TAIL_SHARE', 0.15]
    if method == 'dive':
        options += ['--LOSS_TEACHER', first]
    if method == 'finetune':
        options += ['--INPUT_SIZE', 32, '--INPUT_TEST_SIZE', 40, '--TRAIN_BATCH_SIZE', 8]
    if method == 'lift':
        options += ['--MODEL_BACKBONE', 'test_vit', '--MODEL_PRETRAINED', vit_weights(first.parent), '--INPUT_SIZE', 32]
        options += ['--TRAIN_BATCH_SIZE', 8, '--MODEL_TUNE_RANK', 2]
    return options


def vit_weights(folder):
    """Return a file with the weights of a small ViT, in place of those of CLIP."""
    file = folder / 'vit.pth'
    if not file.exists():
        torch.manual_seed(0)
        torch.save(timm.create_model('test_vit', num_classes=0).state_dict(), file)
    return file


@pytest.mark.parametrize(
    'method',
    [
        name if name in ALWAYS else pytest.param(name, marks=pytest.mark.slow)
        for name in METHODS
        if name not in NOT_TRAINED
    ],
)
def test_trains_and_resumes_bit_identically(scripts, products, finished, tmp_path, method):
    first = finished / 'log' / 'tiny' / 'last.pth'
    options = options_of(method, products, first)
    start = ('--RESUME_MODEL', first, '--RESUME_MODE', 'finetune') if method in STAGE_TWO else ()
    for folder in ('whole', 'stopped'):
        (tmp_path / folder).mkdir()
    scripts.run(tmp_path / 'whole', 'main.py', *options, *start)
    scripts.run_until(tmp_path / 'stopped', 'SIGINT', STEP, STEPS + 2, *options, *start, code=130)
    progress = read_checkpoint(tmp_path / 'stopped' / 'log' / 'run' / 'last.pth').progress
    assert (progress.epoch, progress.step) == (1, 2)
    scripts.run(tmp_path / 'stopped', 'main.py', *options, '--RESUME_MODEL', 'last')
    one, other = (read_checkpoint(tmp_path / name / 'log' / 'run' / 'last.pth') for name in ('whole', 'stopped'))
    assert one.progress.epoch == 2
    assert one.state_dict.keys() == other.state_dict.keys()
    for key, value in one.state_dict.items():
        assert value.isfinite().all(), key
        assert value.equal(other.state_dict[key]), key
    losses = [line['loss'] for line in metrics_of(tmp_path / 'whole' / 'log' / 'run') if line['split'] == 'train']
    assert len(losses) == 2


@pytest.mark.parametrize('method', METHODS)
def test_header_contains_the_command(method):
    text = (FOLDER / f'{method}.yaml').read_text(encoding='utf-8')
    comments = [line for line in text.splitlines() if line.startswith('#')]
    assert any(f'configs/method/{method}.yaml' in line for line in comments)
    assert isinstance(yaml.safe_load(text), dict)
