"""Errors of lib/trainer get the options that help, in the layer that knows options; lines about the training data."""

import logging
import re

import numpy as np
import pytest

from lib.builders.split import found_split
from lib.builders.training_data import TrainingData
from lib.commands.train import _ADVICE, _advice, _log_data
from lib.config.defaults import KEYS
from lib.distributed.process_group import SINGLE_PROCESS
from lib.errors import UserError
from lib.runtime.device import pick_device
from lib.runtime.log import LOGGER


@pytest.mark.parametrize('kind', _ADVICE)
def test_advice_names_existing_options(kind):
    with pytest.raises(UserError) as caught, _advice():
        raise kind('the loss is not finite')
    text = str(caught.value)
    assert text.startswith('the loss is not finite; ')
    options = re.findall(r'\b[A-Z]+\.[A-Z_]+\b', text)
    assert options
    assert set(options) <= set(KEYS)


def test_other_errors_pass_unchanged():
    with pytest.raises(UserError, match=r'^another mistake$'), _advice():
        raise UserError('another mistake')


@pytest.mark.parametrize(
    ('labels', 'line', 'warns'),
    [
        ([0, 0], 'train: 2 images of 1 class, 2 to 2 per class', True),
        ([1], 'train: 1 image of 2 classes, 1 to 1 per class', True),
        ([0, 1], 'train: 2 images of 2 classes, 1 to 1 per class', False),
    ],
)
def test_training_images_of_one_class_are_a_warning(caplog, labels, line, warns):
    paths = [f'{row}.jpg' for row in range(len(labels))]
    split = found_split(paths, np.array(labels, np.int32), max(labels) + 1, 'photos', '.')
    data = TrainingData(split, None, None)
    with caplog.at_level(logging.INFO, LOGGER.name):
        _log_data(data, data.index(), [], pick_device('cpu', 'float32'), SINGLE_PROCESS)
    assert caplog.messages[0] == line
    warnings = [record.getMessage() for record in caplog.records if record.levelname == 'WARNING']
    assert any('one class' in text for text in warnings) == warns
