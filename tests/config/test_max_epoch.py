"""TRAIN.MAX_EPOCH alone can be changed with any shipped config: the warm-up is a fraction of the run, or in epochs."""

import pytest

from lib.builders.loss import deferred_start_epoch
from lib.builders.optim import build_schedule
from lib.builders.recipe import resolve_recipe
from lib.builders.trainer import unreached_epochs
from lib.config.load import load_config
from lib.config.yaml_text import as_node, as_text
from lib.errors import UserError
from tests.config.test_load import ALL_CONFIGS, CONFIGS, OVERLAYS
from tests.defaults import DEFAULTS

# Warm-up of the recipes in epochs when their length was not changed.
WARMUP = {
    'own_photos': 1.5, 'own_photos_search': 1.5, 'finetune': 1.5, 'GroceryStore_pretrained': 1.5,
    'own_photos_scratch': 6, 'demo': 2, 'Products10K_search': 2,
    'GroceryStore': 18, 'GroceryStore_LT': 18, 'Products10K': 2, 'AiProducts_strong': 2,
    'Cifar10_LT': 5, 'Cifar100_LT': 5, 'Cifar_LT_long': 10,
}  # fmt: skip


def load(*argv, checkpoint=None):
    cfg = load_config(
        [str(word) for word in argv], program='', description='', find_checkpoint_config=lambda *_: checkpoint
    ).cfg
    return resolve_recipe(cfg, 2640)


def config(**changes):
    changes = {name.replace('__', '.'): value for name, value in changes.items()}
    return as_node(DEFAULTS | {'NAME': 'x'} | changes)


def options_of(path):
    """Return --config with the file over its base, and what a second stage or a student needs."""
    options = ['--config', path, '--NAME', 'x']
    if path.parent != CONFIGS or path.stem in OVERLAYS:
        options[1:1] = [CONFIGS / f'{OVERLAYS.get(path.stem, "own_photos_scratch")}.yaml']
    if 'FREEZE_BACKBONE' in path.read_text(encoding='utf-8'):
        options += ['--RESUME_MODEL', 'stage1.pth']
    return options + (['--LOSS_TEACHER', 'teacher.pth'] if path.stem == 'dive' else [])


def rates(cfg, steps_per_epoch):
    schedule = build_schedule(cfg, steps_per_epoch)
    return [schedule(step) for step in range(max(1, cfg.TRAIN.MAX_EPOCH) * steps_per_epoch)]


@pytest.mark.long
@pytest.mark.parametrize('path', ALL_CONFIGS, ids=lambda path: path.stem)
def test_every_config_trains_for_any_number_of_epochs(path):
    for epochs in (1, 2, 5):
        cfg = load(*options_of(path), '--TRAIN_MAX_EPOCH', epochs)
        for steps_per_epoch in (1, 3, 40):
            found = rates(cfg, steps_per_epoch)
            assert all(0 < rate <= cfg.OPTIMIZER.LR for rate in found)
            assert max(found) == pytest.approx(cfg.OPTIMIZER.LR), 'the warm-up ends within the run'
        unreached_epochs(cfg)


# L-BFGS has no learning rate.
WITH_RATES = [path for path in ALL_CONFIGS if 'TYPE: lbfgs' not in path.read_text(encoding='utf-8')]


@pytest.mark.long
@pytest.mark.parametrize('path', WITH_RATES, ids=lambda path: path.stem)
def test_the_rates_of_every_recipe_are_as_before(path):
    cfg = load(*options_of(path))
    epochs = float(WARMUP.get(path.stem, 0 if path.parent == CONFIGS or cfg.TRAIN.MAX_EPOCH != 60 else 6))
    before = load(*options_of(path), '--SCHEDULE_WARMUP_EPOCHS', epochs)
    assert epochs == before.SCHEDULE.WARMUP_EPOCHS
    for steps_per_epoch in (1, 7, 58):
        assert rates(cfg, steps_per_epoch) == rates(before, steps_per_epoch)
    assert unreached_epochs(cfg) == []


@pytest.mark.long
def test_the_later_of_epochs_and_fraction_wins(tmp_path):
    def file(name, line):
        (tmp_path / name).write_text(f'NAME: x\nTRAIN: {{MAX_EPOCH: 40}}\nSCHEDULE: {{TYPE: cosine, {line}}}\n')
        return tmp_path / name

    epochs, fraction = file('epochs.yaml', 'WARMUP_EPOCHS: 3'), file('fraction.yaml', 'WARMUP_FRACTION: 0.2')
    both = file('both.yaml', 'WARMUP_EPOCHS: 3, WARMUP_FRACTION: 0.2')
    none = file('none.yaml', 'FINAL_LR: 0')
    saved = 'NAME: x\nTRAIN: {MAX_EPOCH: 40}\nSCHEDULE: {TYPE: cosine, WARMUP_EPOCHS: 3}'  # of an older version

    def length(*argv, checkpoint=None):
        cfg = load(*argv, checkpoint=checkpoint)
        again = load('--RESUME_MODEL', 'x.pth', checkpoint=as_text(cfg))  # the saved text has both keys in one layer
        found = rates(cfg, 10)
        assert rates(again, 10) == found
        return 1 + found.index(max(found))

    assert length('--config', none) == 1
    assert length('--config', epochs) == length('--config', both) == 30
    assert length('--config', fraction) == 80
    assert length('--config', epochs, fraction) == 80
    assert length('--config', fraction, epochs) == 30
    assert length('--config', fraction, '--SCHEDULE_WARMUP_EPOCHS', 0) == 1
    assert length('--config', epochs, '--SCHEDULE_WARMUP_FRACTION', 0.5) == 200
    assert length('--RESUME_MODEL', 'x.pth', checkpoint=saved) == 30
    assert length('--RESUME_MODEL', 'x.pth', '--SCHEDULE_WARMUP_FRACTION', 0.5, checkpoint=saved) == 200


def test_a_warm_up_in_epochs_must_fit(tmp_path):
    (tmp_path / 'a.yaml').write_text('NAME: x\nSCHEDULE: {TYPE: one_cycle, WARMUP_EPOCHS: 6}\nTRAIN: {MAX_EPOCH: 60}')
    for epochs in (5, 6):  # falling after the warm-up, a one-cycle schedule needs more
        with pytest.raises(UserError, match=f'WARMUP_EPOCHS is 6, but TRAIN.MAX_EPOCH is {epochs}.*_FRACTION 0.1'):
            load('--config', tmp_path / 'a.yaml', '--TRAIN_MAX_EPOCH', epochs)
    assert load('--config', tmp_path / 'a.yaml', '--TRAIN_MAX_EPOCH', 7)
    assert load('--config', tmp_path / 'a.yaml', '--TRAIN_MAX_EPOCH', 6, '--SCHEDULE_TYPE', 'multistep')


def test_a_deferred_method_has_at_least_the_last_epoch():
    assert [deferred_start_epoch(-1, epochs) for epochs in (0, 1, 2, 3, 5, 200)] == [0, 0, 1, 2, 4, 160]
    assert [deferred_start_epoch(epoch, 5) for epoch in (0, 3, 40)] == [0, 3, 40]


def test_keys_without_effect_in_a_short_run_are_named():
    recipe = {
        'SAMPLER__SWITCH_TYPE': 'reverse',
        'SAMPLER__SWITCH_EPOCH': 40,
        'LOSS__REWEIGHT_EPOCH': 5,
        'INPUT__SIZE_SCHEDULE': (0, 64, 60, 128),
        'MIX__TYPE': 'mixup',
        'MIX__OFF_EPOCHS': 10,
    }
    assert unreached_epochs(config(TRAIN__MAX_EPOCH=5, **recipe)) == [
        'SCHEDULE.MILESTONE_EPOCHS 10, 20, 30: not reached in 5 epochs',
        'SAMPLER.SWITCH_EPOCH 40: not reached in 5 epochs',
        'LOSS.REWEIGHT_EPOCH 5: not reached in 5 epochs',
        'INPUT.SIZE_SCHEDULE 60: not reached in 5 epochs',
        'MIX.OFF_EPOCHS 10: no image is mixed in 5 epochs',
    ]
    for epochs in (0, 61):
        assert unreached_epochs(config(TRAIN__MAX_EPOCH=epochs, **recipe)) == []
    assert unreached_epochs(config(TRAIN__MAX_EPOCH=5, SCHEDULE__TYPE='cosine', MIX__OFF_EPOCHS=10)) == []
