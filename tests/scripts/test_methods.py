"""Every method of configs/method: two tiny epochs, and the same weights when stopped and gone on."""

import pytest
import yaml

from lib.trainer.checkpointing.io import read_checkpoint
from tests.scripts.running import REPOSITORY, TINY, metrics_of
from tests.scripts.test_exact_resume import STEP

FOLDER = REPOSITORY / 'configs' / 'method'
METHODS = sorted(path.stem for path in FOLDER.glob('*.yaml'))
# One of each kind runs every time: class weights and a cosine head, pairs, features mixed, two views, a second stage,
# a teacher.
ALWAYS = ('ldam_drw', 'cmo', 'manifold_mixup', 'bcl', 'mislas', 'dive')
NOT_TRAINED = ('ncm', 'tau_norm')
STAGE_TWO = ('crt', 'lws', 'mislas', 'weight_balancing')
STEPS = 6  # an epoch


def options_of(method, products, first):
    """Return the options of a run of two epochs; `first` is the checkpoint of a plain run."""
    config = FOLDER / f'{method}.yaml'
    found = ['--config', TINY, config, '--DATASET_ROOT', products, '--TRAIN_MAX_EPOCH', 2, '--NAME', 'run']
    # The tail of six classes begins higher than that of thousands.
    if method == 'seql':
        found += ['--LOSS_TAIL_SHARE', 0.15]
    if method == 'dive':
        found += ['--LOSS_TEACHER', first]
    return found


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
    place = read_checkpoint(tmp_path / 'stopped' / 'log' / 'run' / 'last.pth').progress
    assert (place.epoch, place.step) == (1, 2)
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
def test_the_header_says_how_to_run_it(method):
    text = (FOLDER / f'{method}.yaml').read_text(encoding='utf-8')
    comments = [line for line in text.splitlines() if line.startswith('#')]
    assert any(f'configs/method/{method}.yaml' in line for line in comments)
    assert isinstance(yaml.safe_load(text), dict)
