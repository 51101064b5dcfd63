"""Values for 'auto': which weights a run starts with, and the preprocessing that belongs to them."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import timm

from lib.backbone.bundled import BUNDLED, IMAGENET
from lib.backbone.create import published_preprocessing
from lib.builders.cache_key import input_key
from lib.builders.loader import TRAIN_TRANSFORMS, plain_view
from lib.builders.preprocessing import resolve_preprocessing, uses_recipe
from lib.commands.ensemble import tta_views
from lib.config.defaults import KEYS
from lib.config.keys.method import BUNDLED as BUNDLED_NAMES
from lib.config.load import load_config, merge_checkpoint_config
from lib.config.yaml_text import as_node, as_text, as_values
from lib.errors import UserError
from lib.runtime.device import pick_device
from lib.runtime.log import LOGGER
from tests.defaults import DEFAULTS

ROOT = Path(__file__).resolve().parents[2]
LITE0 = 'tf_efficientnet_lite0'
AUTO = {'INPUT.SIZE': 0, 'INPUT.MEAN': (), 'INPUT.STD': (), 'INPUT.CROP_RATIO': 0.0, 'INPUT.INTERPOLATION': 'auto'}


def config(**changes):
    changes = {name.replace('__', '.'): value for name, value in changes.items()}
    return as_node({name: key.default for name, key in KEYS.items()} | {'NAME': 'x'} | changes)


def resolved(trains=False, is_resumed=False, **changes):
    cfg = resolve_preprocessing(config(**changes), trains=trains, is_resumed=is_resumed)
    inputs = cfg.INPUT
    return cfg.MODEL.PRETRAINED, (inputs.SIZE, inputs.MEAN, inputs.STD, inputs.CROP_RATIO, inputs.INTERPOLATION)


@pytest.fixture
def log(caplog, monkeypatch):
    monkeypatch.setattr(LOGGER, 'propagate', True)
    caplog.set_level(logging.INFO)
    return caplog


def test_the_defaults_are_auto():
    assert as_values(config())['MODEL.PRETRAINED'] == 'auto'
    assert {name: as_values(config())[name] for name in AUTO} == AUTO
    assert tuple(BUNDLED) == BUNDLED_NAMES, 'check.py and the help know the backbones with bundled weights'


@pytest.mark.parametrize('backbone', ['resnest50', 'res32_cifar', 'no_such_backbone'])
def test_without_weights_the_images_are_as_before(backbone):
    expected = (112, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 0.875, 'bilinear')
    assert resolved(MODEL__BACKBONE=backbone) == ('', expected)
    assert resolved(MODEL__BACKBONE=backbone, MODEL__PRETRAINED='') == ('', expected)


@pytest.mark.parametrize('backbone', BUNDLED)
@pytest.mark.parametrize('pretrained', ['auto', 'bundled'])
def test_bundled_weights(backbone, pretrained):
    size = {'0': 224, '1': 240, '2': 260}[backbone[-1]]
    chosen, (*found, crop, interpolation) = resolved(MODEL__BACKBONE=backbone, MODEL__PRETRAINED=pretrained)
    assert (chosen, found, interpolation) == ('bundled', [size, (0.5,) * 3, (0.5,) * 3], 'bicubic')
    assert crop == timm.get_pretrained_cfg(backbone).crop_pct


def test_random_weights_of_a_bundled_backbone():
    assert resolved(MODEL__BACKBONE=LITE0, MODEL__PRETRAINED='') == ('', IMAGENET)
    with pytest.raises(UserError, match=r'there are no bundled weights for MODEL\.BACKBONE resnet18, only for tf_eff'):
        resolved(MODEL__BACKBONE='resnet18', MODEL__PRETRAINED='bundled')


@pytest.mark.parametrize('backbone', ['resnet50', 'vit_base_patch16_224.dino', 'convnext_tiny.in12k', 'test_vit'])
def test_weights_of_timm_have_its_preprocessing(backbone):
    """Oracle: timm's own resolution of the preprocessing for evaluation."""
    expected = timm.data.resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg(backbone).to_dict())
    (_, _, size), interpolation = expected['input_size'], expected['interpolation']
    found = resolved(MODEL__BACKBONE=backbone, MODEL__PRETRAINED='timm')
    assert found == ('timm', (size, expected['mean'], expected['std'], expected['crop_pct'], interpolation))


@pytest.mark.parametrize(
    ('backbone', 'file', 'weights'),
    [
        ('resnet50', 'resnet50-19c8e357.pth', 'resnet50.tv_in1k'),  # an older file of torchvision
        ('res50', 'resnet50-0676ba61.pth', 'resnet50.tv_in1k'),
        ('resnet50', 'resnet50-11ad3fa6.pth', 'resnet50.tv2_in1k'),
        ('resnet50', 'resnet50_a1_0-14fe96d1.pth', 'resnet50.a1_in1k'),
        ('resnet50.ra_in1k', 'mine.pth', 'resnet50.ra_in1k'),
        ('vit_base_patch16_224', 'dino_vitbase16_pretrain.pth', 'vit_base_patch16_224.dino'),
        ('vit_base_patch16_224', 'vit_base_patch16_224.mae.safetensors', 'vit_base_patch16_224.mae'),
        ('vit_base_patch16_224.dino', 'mine.pth', 'vit_base_patch16_224.dino'),
        ('resnest50', 'resnest50-528c19ca.pth', 'resnest50d.in1k'),
    ],
)
def test_files_are_recognized_by_name(backbone, file, weights):
    found = published_preprocessing(backbone, file)
    assert (found.weights, found.others) == (weights, '')
    published = timm.get_pretrained_cfg(weights)
    assert found.preprocessing == (
        published.input_size[1], published.mean, published.std, published.crop_pct, published.interpolation,
    )  # fmt: skip


def test_a_file_that_may_be_of_several_kinds_is_logged(log):
    first = timm.get_pretrained_cfg('vit_base_patch16_224')
    options = {'MODEL__BACKBONE': 'vit_base_patch16_224', 'MODEL__PRETRAINED': 'folder/mine.pth'}
    assert resolved(trains=True, **options)[1][1] == first.mean == (0.5, 0.5, 0.5)
    assert log.messages == [
        'preprocessing of the weights: 224 px, mean 0.5, std 0.5, bicubic, crop 0.9',
        f'mine.pth: preprocessed as vit_base_patch16_224.{first.tag}',
        '  if it is of another kind, name that: --MODEL_BACKBONE vit_base_patch16_224.dino',
    ]
    assert published_preprocessing('resnet50', 'mine.pth').others == ''  # all have ImageNet's statistics
    assert published_preprocessing('res32_cifar', 'mine.pth') is None


def test_what_the_user_sets_wins(log):
    options = {'INPUT__SIZE': 96, 'INPUT__MEAN': (0.1, 0.2, 0.3), 'INPUT__INTERPOLATION': 'bilinear'}
    found = resolved(trains=True, MODEL__BACKBONE=LITE0, **options)
    assert found == ('bundled', (96, (0.1, 0.2, 0.3), (0.5,) * 3, 0.875, 'bilinear'))
    assert log.messages[1:] == ['INPUT.MEAN is 0.1 0.2 0.3, not that of the weights']
    assert resolved(MODEL__BACKBONE=LITE0, INPUT__STD=(1.0,) * 3)[1][2] == (1.0,) * 3


def test_one_line_is_logged_if_the_run_starts_with_the_weights(log):
    resolved(MODEL__BACKBONE=LITE0)  # a tool
    resolved(trains=True, is_resumed=True, MODEL__BACKBONE=LITE0)  # the weights are those of a checkpoint
    resolved(trains=True, MODEL__BACKBONE='resnet18')  # random weights
    assert log.messages == []
    resolved(trains=True, MODEL__BACKBONE=LITE0)
    resolved(trains=True, MODEL__BACKBONE='resnest50', MODEL__PRETRAINED='timm')
    assert log.messages == [
        'preprocessing of the weights: 224 px, mean 0.5, std 0.5, bicubic, crop 0.875',
        'preprocessing of the weights: 224 px, ImageNet mean/std, bilinear, crop 0.875',
    ]
    assert max(map(len, log.messages)) <= 80


@pytest.mark.parametrize('name', ['TRAIN__MAX_EPOCH', 'OPTIMIZER__LR'])
def test_sizes_are_left_to_the_recipe_of_a_run_that_has_one(log, name):
    auto = {name: KEYS[name.replace('__', '.')].auto, 'INPUT__TEST_SIZE': -1, 'MODEL__BACKBONE': LITE0}
    assert uses_recipe(config(**auto))
    assert not uses_recipe(config())
    cfg = resolve_preprocessing(config(**auto), trains=True)
    assert (cfg.INPUT.SIZE, cfg.INPUT.TEST_SIZE, cfg.INPUT.CROP_RATIO) == (0, -1, 0.875)
    assert log.messages == ['preprocessing of the weights: mean 0.5, std 0.5, bicubic, crop 0.875']
    cfg = resolve_preprocessing(config(**auto))  # a tool, which knows no number of images
    assert (cfg.INPUT.SIZE, cfg.INPUT.TEST_SIZE) == (224, 0)


def test_the_checkpoint_keeps_its_preprocessing():
    first = resolve_preprocessing(config(MODEL__BACKBONE=LITE0, TRAIN__MAX_EPOCH=5))
    text = as_text(first)
    assert ': auto' not in text.replace('RUN:', '').split('INPUT:')[1].split('SAMPLER:')[0]
    loaded = load_config(
        ['--RESUME_MODEL', 'x.pth'], program='', description='', find_checkpoint_config=lambda *_: text
    )
    for cfg in (loaded.cfg, merge_checkpoint_config(text, 'x.pth', {})):
        assert as_values(resolve_preprocessing(cfg, trains=True, is_resumed=True)) == as_values(cfg)
        assert {**as_values(cfg), 'RESUME_MODEL': ''} == as_values(first)


@pytest.mark.parametrize('text', ['', 'NAME: x', 'NAME: x\nMODEL: {BACKBONE: tf_efficientnet_lite0}'])
def test_checkpoints_of_older_versions_keep_theirs(text):
    """Their images were resized with the bilinear filter, also those of weights that timm trained with another one."""
    cfg = merge_checkpoint_config(text, 'x.pth', {})
    assert ('', 'bilinear', IMAGENET.mean) == (cfg.MODEL.PRETRAINED, cfg.INPUT.INTERPOLATION, cfg.INPUT.MEAN)
    assert as_values(resolve_preprocessing(cfg)) == as_values(cfg)


@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
def test_all_views_use_the_filter_and_keys_of_stored_results_name_it(interpolation):
    cfg = as_node(DEFAULTS | {'NAME': 'x', 'INPUT.INTERPOLATION': interpolation, 'TEST.CROPS': 'ten'})
    views = [plain_view(cfg), *tta_views(cfg).others, *(make(cfg.INPUT) for make in TRAIN_TRANSFORMS.values())]
    assert [view.interpolation for view in views] == [interpolation] * (2 + 4 + 2)
    key = input_key(cfg, pick_device('cpu', 'float32'))
    assert key.get('interpolation', 'bilinear') == interpolation
    assert 'bilinear' not in str((key, tta_views(cfg).key)), 'keys of older versions remain valid'


@pytest.mark.process
def test_neither_torch_nor_timm_is_imported_for_it():
    program = (
        'import sys; from lib.commands.cli import read_command; '
        f'cfg = read_command(["--MODEL_BACKBONE", "{LITE0}", "--NAME", "x"]).cfg; '
        'print(cfg.INPUT.SIZE, "torch" in sys.modules, "timm" in sys.modules, "numpy" in sys.modules)'
    )
    done = subprocess.run([sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == '112 False False False'  # configs/AiProducts.yaml sets the size
