"""MODEL.TUNE head and MODEL.FREEZE_BACKBONE True are the same; of two that differ the later one wins."""

import pytest

from lib.config.load import load_config
from lib.errors import UserError

ROOT = ('--DATASET_ROOT', 'shop', '--MODEL_PRETRAINED', 'timm')


def load(tmp_path, text: str, *options: str, checkpoint: str | None = None):
    (tmp_path / 'recipe.yaml').write_text(f'NAME: x\n{text}')
    argv = ('--config', str(tmp_path / 'recipe.yaml'), *ROOT, *options)
    if checkpoint is not None:
        argv += ('--RESUME_MODEL', 'last')
    return load_config(
        argv, program='main.py', description='', find_checkpoint_config=lambda model, folder: checkpoint
    ).cfg.MODEL


def check(model, kind: str) -> None:
    found = (model.TUNE, model.FREEZE_BACKBONE)
    assert found == (kind, kind == 'head')


@pytest.mark.parametrize(
    ('recipe', 'option', 'kind'),
    [
        ('', '', 'full'),
        ('FREEZE_BACKBONE: True', '', 'head'),
        ('TUNE: head', '', 'head'),
        ('{TUNE: head, FREEZE_BACKBONE: True}', '', 'head'),
        ('TUNE: lora', '', 'lora'),
        ('{TUNE: lora, FREEZE_BACKBONE: False}', '', 'lora'),
        ('TUNE: lora', '--MODEL_FREEZE_BACKBONE True', 'head'),
        ('{TUNE: lora, TUNE_RANK: 4}', '--MODEL_FREEZE_BACKBONE True', 'head'),
        ('TUNE: lora', '--MODEL_FREEZE_BACKBONE False', 'lora'),
        ('FREEZE_BACKBONE: True', '--MODEL_TUNE ssf', 'ssf'),
        ('FREEZE_BACKBONE: True', '--MODEL_TUNE full', 'full'),
        ('TUNE: head', '--MODEL_FREEZE_BACKBONE False', 'full'),
    ],
)
def test_the_later_one_wins(tmp_path, recipe, option, kind):
    if recipe and not recipe.startswith('{'):
        recipe = f'{{{recipe}}}'
    text = f'MODEL: {recipe}\n' if recipe else ''
    model = load(tmp_path, text, *option.split())
    check(model, kind)


@pytest.mark.parametrize(
    ('checkpoint', 'recipe', 'kind'),
    [
        ('{FREEZE_BACKBONE: True}', '', 'head'),  # of a version without MODEL.TUNE
        ('{FREEZE_BACKBONE: False}', '', 'full'),
        ('{TUNE: head, FREEZE_BACKBONE: True}', '{TUNE: lora}', 'lora'),
        ('{TUNE: lora, FREEZE_BACKBONE: False}', '{FREEZE_BACKBONE: True}', 'head'),
        ('{TUNE: lora, FREEZE_BACKBONE: False}', '', 'lora'),
    ],
)
def test_a_checkpoint_comes_before_the_recipe(tmp_path, checkpoint, recipe, kind):
    text = f'MODEL: {recipe}\n' if recipe else ''
    model = load(tmp_path, text, checkpoint=f'NAME: x\nMODEL: {checkpoint}\n')
    check(model, kind)


def test_both_in_one_place_are_an_error(tmp_path):
    both = 'MODEL: {TUNE: lora, FREEZE_BACKBONE: True}\n'
    with pytest.raises(UserError, match=r'^MODEL.FREEZE_BACKBONE True trains only the classifier, but MODEL.TUNE lora'):
        load(tmp_path, both)


@pytest.mark.parametrize('option', ['TUNE_RANK', 'TUNE_SCALE'])
def test_adapters_only(tmp_path, option):
    with pytest.raises(UserError, match=rf'^MODEL.{option} is 2.*, but MODEL.TUNE ssf does not use it; lora'):
        load(tmp_path, '', '--MODEL_TUNE', 'ssf', f'--MODEL_{option}', '2')
