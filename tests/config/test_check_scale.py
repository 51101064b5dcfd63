"""Chunked, sharded and sampled classification: which other settings work with it."""

import pytest

from lib.config.check import check_scale
from lib.config.defaults import KEYS
from lib.errors import UserError

LEAN = {'MODEL.CLASSIFIER_SHARDED': True, 'LOSS.CHUNK_IMAGES': 8, 'LOSS.SAMPLED_CLASSES': 0.5}
CONTRAST, DISTILL = {'LOSS.AUXILIARY': 'balanced_contrastive'}, {'LOSS.AUXILIARY': 'distillation'}
TRIPLET = {'LOSS.AUXILIARY': 'triplet'}


def check(values):
    check_scale({**{name: key.default for name, key in KEYS.items()}, **values})


@pytest.mark.parametrize(
    ('values', 'words'),
    [
        *[({**DISTILL, name: value}, ['distillation', f'{name} {value}']) for name, value in LEAN.items()],
        ({**CONTRAST, 'MODEL.CLASSIFIER_SHARDED': True}, ['balanced_contrastive', "--LOSS_AUXILIARY ''"]),
        ({**CONTRAST, 'TRAIN.DEVICE_BATCH_SIZE': 8}, ['balanced_contrastive', '--TRAIN_DEVICE_BATCH_SIZE 0']),
        ({**TRIPLET, 'TRAIN.DEVICE_BATCH_SIZE': 8}, ['AUXILIARY triplet', '--TRAIN_DEVICE_BATCH_SIZE 0']),
        ({'TRAIN.DEVICE_BATCH_SIZE': 1}, ['TRAIN.DEVICE_BATCH_SIZE is 1', 'at least 2']),
        ({'TRAIN.DEVICE_BATCH_SIZE': -1, 'MODEL.CLASSIFIER_SHARDED': True}, ['DEVICE_BATCH_SIZE -1', 'give a number']),
        ({'TRAIN.DEVICE_BATCH_SIZE': -1, 'MODEL.BACKBONE_SHARDED': True}, ['DEVICE_BATCH_SIZE -1', 'give a number']),
        ({'MODEL.TUNE': 'lora', 'MODEL.BACKBONE_SHARDED': True}, ['MODEL.TUNE lora', '--MODEL_TUNE full']),
        ({'TRAIN.FEATURES': 'cached', 'MODEL.BACKBONE_SHARDED': True}, ['--MODEL_BACKBONE_SHARDED False']),
        ({'LOSS.SAMPLED_CLASSES': 0.5, 'LOSS.LABEL_SMOOTHING': 0.1}, ['SAMPLED_CLASSES', 'LABEL_SMOOTHING 0']),
        ({'LOSS.SAMPLED_CLASSES': 0.5, 'LOSS.TYPE': 'label_aware_smoothing'}, ['SAMPLED_CLASSES 0.5', 'LOSS.TYPE']),
    ],
)  # fmt: skip
def test_refused(values, words):
    with pytest.raises(UserError) as caught:
        check(values)
    message = str(caught.value)
    assert '\n' not in message
    for word in words:
        assert word in message
    # Each setting alone is valid, except a device batch of 1.
    for name in values:
        if name != 'TRAIN.DEVICE_BATCH_SIZE' or values[name] != 1:
            check({name: values[name]})


@pytest.mark.parametrize(
    'values',
    [
        LEAN,
        {'TRAIN.DEVICE_BATCH_SIZE': 2, **LEAN},
        {'MODEL.BACKBONE_SHARDED': True, 'MODEL.TUNE': 'norm', **LEAN},
        {'TRAIN.DEVICE_BATCH_SIZE': -1, 'LOSS.CHUNK_IMAGES': 8},
        {**CONTRAST, 'LOSS.CHUNK_IMAGES': 8},
        {**TRIPLET, **LEAN},
        {**DISTILL, 'TRAIN.DEVICE_BATCH_SIZE': 8},
        {'LOSS.LABEL_SMOOTHING': 0.1, 'LOSS.CHUNK_IMAGES': 8, 'MODEL.CLASSIFIER_SHARDED': True},
    ],
)
def test_accepted(values):
    check(values)
