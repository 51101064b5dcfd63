"""The recipe by number of training images, and the advice for random weights."""

import itertools
import shlex
from pathlib import Path

import pytest

from lib.builders.preprocessing import resolve_preprocessing
from lib.builders.recipe import finetuning_recipe, random_weights_advice, resolve_recipe
from lib.config.load import load_config
from lib.config.yaml_text import as_text, as_values

ROOT = Path(__file__).resolve().parents[2]


def config(*options, checkpoint=None, files=('own_photos.yaml',)):
    argv = ['--config', *(str(ROOT / 'configs' / file) for file in files), '--DATASET_ROOT', 'my photos', *options]
    loaded = load_config(argv, program='', description='', find_checkpoint_config=lambda *_: checkpoint)
    return resolve_preprocessing(loaded.cfg, trains=True)


def chosen(cfg):
    return cfg.INPUT.SIZE, cfg.INPUT.TEST_SIZE, cfg.OPTIMIZER.LR, cfg.TRAIN.MAX_EPOCH


def test_more_images_get_fewer_epochs_and_at_most_the_size_of_fewer():
    recipes = [finetuning_recipe(num_images) for num_images in range(1, 200_001, 97)]
    for few, more in itertools.pairwise(recipes):
        assert few.max_epoch >= more.max_epoch
        assert few.size >= more.size
        assert few.test_size / few.size == more.test_size / more.size == 1.125
    assert finetuning_recipe(1_000).max_epoch == 30
    assert all((1 + 97 * number) * recipe.max_epoch >= 9_600 for number, recipe in enumerate(recipes))
    assert recipes[-1].max_epoch >= 5


def test_what_the_user_sets_wins():
    assert chosen(resolve_recipe(config(), 2640)) == (160, 180, 0.02, 15)
    cfg = resolve_recipe(config('--INPUT_SIZE', '96', '--TRAIN_MAX_EPOCH', '3'), 2640)
    assert chosen(cfg) == (96, 180, 0.02, 3)
    cfg = resolve_recipe(config('--OPTIMIZER_LR', '0.1', '--INPUT_TEST_SIZE', '0'), 2640)
    assert chosen(cfg) == (160, 0, 0.1, 15)


def test_random_weights_have_a_recipe_of_their_own():
    for options in (('--MODEL_PRETRAINED', ''), ('--MODEL_BACKBONE', 'resnet18')):  # no weights are bundled for it
        assert chosen(resolve_recipe(config(*options), 2640)) == (112, 0, 0.05, 60)


def test_a_run_is_resumed_with_the_numbers_of_its_checkpoint():
    cfg = resolve_recipe(config(), 2640)
    argv = ['--RESUME_MODEL', 'x.pth']
    text = as_text(cfg)
    again = load_config(argv, program='', description='', find_checkpoint_config=lambda *_: text).cfg
    again = resolve_recipe(resolve_preprocessing(again, trains=True, is_resumed=True), 10)  # some photos were deleted
    assert as_values(again) == as_values(cfg) | {'RESUME_MODEL': 'x.pth'}


def test_without_auto_nothing_changes():
    cfg = config('--INPUT_SIZE', '96', '--INPUT_TEST_SIZE', '0', '--OPTIMIZER_LR', '0.1', '--TRAIN_MAX_EPOCH', '3')
    assert resolve_recipe(cfg, 2640) is cfg


def test_random_weights_on_few_images_get_a_better_command():
    cfg = config('--MODEL_PRETRAINED', '', '--DATASET_VALID_JSON', 'v.json', '--NAME', 'x')
    line = random_weights_advice(cfg, 2640)
    assert line.startswith('2,640 images: few for random weights; better: python ')
    assert len(line.splitlines()) == 1
    words = shlex.split(line.partition('better: ')[2])
    assert Path(words[1]).is_file()
    better = load_config(words[2:], program='', description='', find_checkpoint_config=lambda *_: None).cfg
    assert (better.DATASET.ROOT, better.DATASET.VALID_JSON, better.NAME) == ('my photos', 'v.json', 'x_pretrained')
    assert resolve_preprocessing(better).MODEL.PRETRAINED == 'bundled'
    packed = config('--MODEL_PRETRAINED', '', '--DATASET_ROOT', '', '--DATASET_SHARDS', 'packed', '--LOG_ROOT', 'runs')
    words = shlex.split(random_weights_advice(packed, 2640).partition('better: ')[2])
    better = load_config(words[2:], program='', description='', find_checkpoint_config=lambda *_: None).cfg
    assert (better.DATASET.ROOT, better.DATASET.SHARDS, better.LOG_ROOT) == ('', 'packed', 'runs')
    assert random_weights_advice(cfg, 20_000) is None
    assert random_weights_advice(config(), 2640) is None


@pytest.mark.parametrize('name', ['demo', 'Cifar10_LT'])
def test_generated_and_published_sets_get_none(name):
    loaded = load_config(
        ['--config', str(ROOT / f'configs/{name}.yaml')], program='', description='',
        find_checkpoint_config=lambda *_: None,
    )  # fmt: skip
    assert random_weights_advice(resolve_preprocessing(loaded.cfg), 2640) is None


@pytest.mark.parametrize('files', [['GroceryStore_pretrained.yaml'], ['GroceryStore.yaml', 'method/finetune.yaml']])
def test_one_recipe_is_written_in_three_files(files):
    """They differ in what names the data set, and in nothing for its 2,640 images."""
    own, other = (as_values(resolve_recipe(config(files=names), 2640)) for names in (['own_photos.yaml'], files))
    different = {name for name in own if own[name] != other[name]}
    assert different <= {'NAME', 'DATASET.SOURCE'}
