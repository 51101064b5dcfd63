"""RUN.COMPILE with and without replicas on several GPUs, which are fakes."""

import logging

import pytest
import torch
from torch import nn

from lib.builders.trainer import _compiled
from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.runtime.device import Compiled, Device
from lib.runtime.log import LOGGER


@pytest.mark.long
@pytest.mark.parametrize(
    ('replicas', 'group', 'num_images', 'expected'),
    [
        ((), SINGLE_PROCESS, 8, True),
        ((0,), SINGLE_PROCESS, 8, True),
        ((0, 1), SINGLE_PROCESS, 8, False),
        # DataParallel does not use GPUs that would have a single image.
        ((0, 1), SINGLE_PROCESS, 3, True),
        ((1,), ProcessGroup(1, 2, 1), 8, True),
    ],
)
def test_replicas_are_not_compiled(caplog, monkeypatch, replicas, group, num_images, expected):
    monkeypatch.setattr(LOGGER, 'propagate', True)
    forward, device = nn.Linear(1, 1), Device(torch.device('cpu'), replicas, None, None)
    with caplog.at_level(logging.WARNING, LOGGER.name):
        found = _compiled(forward, device, group, num_images)
    assert isinstance(found, Compiled) is expected
    assert expected or found is forward
    notes = [record.getMessage() for record in caplog.records if record.name == LOGGER.name]
    assert len(notes) == (0 if expected else 1)
    assert expected or 'torchrun --nproc-per-node 2 main.py' in notes[0]
