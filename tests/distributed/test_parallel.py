"""A module on several devices."""

import torch
from torch import nn

from lib.distributed.parallel import spread
from lib.distributed.process_group import ALONE
from lib.runtime.device import Device


def test_one_device_needs_no_replicas():
    module = nn.Linear(1, 1)
    for replicas in ((), (0,)):
        assert spread(module, Device(torch.device('cpu'), replicas, None, None), ALONE, num_images=8) is module
